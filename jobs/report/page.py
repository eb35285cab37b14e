"""Entry point of the report: queries the catalog, renders the page, and writes it as one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clipmill.jobs.progress_bars import saying
from clipmill.jobs.report import (
    audits_made,
    caption_words,
    charts,
    figures,
    internvid_figures,
    numbers,
    outcomes,
    run_history,
    sample_clips,
    signal_section,
)
from clipmill.jobs.report.figures import Distribution, Values
from clipmill.jobs.report.report_tables import Column, ReportTables, select
from clipmill.jobs.report.sample_clips import SIGNS
from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.catalog.user_sql import readable_errors
from clipmill.pipeline.dataset.run_records import require_dataset
from clipmill.pipeline.dataset.shards import commit, temporary_beside
from clipmill.pipeline.exports.output_places import check_output
from clipmill.pipeline.status import Status, status_report
from clipmill.pipeline.subsets.freeze import FrozenSubset, load_subset
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.words import counted
from clipmill.stages.clip_signals import SIGNAL_UNITS

TEMPLATES = Path(__file__).with_name("templates")
_SIZES = 9
_MEASURES = {
    "motion": "mean change of luma between frames, grey levels",
    "motion_max": "largest change of luma between frames, grey levels",
    "sharpness": "variance of the Laplacian",
    "brightness": "mean luma, 0 to 255",
    **SIGNAL_UNITS,
}


@dataclass(frozen=True)
class Card:
    """One figure with its caption."""

    id: str
    title: str
    noun: str
    histogram: charts.Histogram | None
    rows: list[charts.BarRows]
    distribution: Distribution | None
    values: Values | None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class WrittenReport:
    """Where a page is, how many samples it shows, and its size."""

    path: Path
    samples: int
    size_bytes: int


def write_report(
    dataset: Path,
    output: Path | None = None,
    *,
    subset: str | None = None,
    sample_count: int = sample_clips.DEFAULT,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda said: None,
) -> WrittenReport:
    """Writes the page; without `output` to `NAME-report.html` here, NAME being the dataset's."""
    output = (output or Path(f"{dataset.absolute().name or 'dataset'}-report.html")).expanduser()
    check_page(dataset, output)
    if not 0 <= sample_count <= sample_clips.MOST:
        raise UsageError(f"--samples {sample_count}: give a number from 0 to {sample_clips.MOST}")
    frozen = load_subset(require_dataset(dataset), subset) if subset is not None else None
    on_step("counting outcomes")
    status = status_report(dataset)
    with open_catalog(dataset) as catalog, readable_errors():
        context = _context(catalog, dataset, status, frozen, sample_count, seed, on_step)
    on_step("drawing the page")
    size = write_page(output, render(context))
    shown = sum(len(group.samples) for group in context["groups"])
    return WrittenReport(output, shown, size)


def check_page(dataset: Path, output: Path, option: str = "--output") -> None:
    """UsageError if a page can't be written there."""
    check_output(dataset, output, option)
    if output.is_dir():
        raise UsageError(
            f"{option} {output}: this is a folder; name a file in it, e.g. {output / 'report.html'}"
        )
    if not output.parent.is_dir():
        raise UsageError(f"{option} {output}: no folder {output.parent}; create it first")


def write_page(output: Path, text: str, option: str = "--output") -> int:
    """Writes a page, whole or not at all; returns its size in bytes."""
    page = text.encode("utf-8", "replace")
    temporary = temporary_beside(output)
    try:
        temporary.write_bytes(page)
        commit(temporary, output)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ClipmillError(f"{option} {output}: cannot be written: {error.strerror}") from error
    return len(page)


def report_on(dataset: Path, output: Path | None, **wanted: Any) -> None:
    """The command: writes the page, and prints one line about it."""
    with saying() as say:
        done = write_report(dataset, output, on_step=say, **wanted)
    print(f"{done.path}: {counted(done.samples, 'sample clip')}, {numbers.size(done.size_bytes)}")


def _selected(catalog: Catalog, subset: FrozenSubset | None) -> ReportTables:
    """The clips, evaluated against the subset's rules, which may be a stranger's."""
    import duckdb

    try:
        with catalog.bounded():
            return select(catalog, subset)
    except duckdb.PermissionException as error:
        said = str(error).partition("\n")[0]
        raise UsageError(
            f"a rule of the subset asks for more than the dataset's tables: {said}; "
            "without --subset its rules are not evaluated"
        ) from error
    except (MemoryError, duckdb.OutOfMemoryException) as error:
        hint = (
            "; without --subset its rules are not evaluated"
            if subset is not None
            else "; a machine with more memory may succeed"
        )
        raise ClipmillError(
            f"the report needs more memory than allowed to read through the clips{hint}"
        ) from error


def _context(
    catalog: Catalog,
    dataset: Path,
    status: Status,
    subset: FrozenSubset | None,
    sample_count: int,
    seed: int,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    """Everything that the template shows."""
    on_step("reading the clips")
    selection = _selected(catalog, subset)
    on_step("counting words")
    word_counts = caption_words.count_words(catalog, selection.captions())
    on_step("drawing figures")
    clips, seconds, whole_clips = catalog.connection.execute(
        f"SELECT count(*) FILTER ({selection.chosen}), "
        f"coalesce(sum(duration_seconds) FILTER ({selection.chosen}), 0), count(*) "
        "FROM work.report_clips"
    ).fetchall()[0]
    videos, size_bytes, video_seconds = catalog.connection.execute(
        f"SELECT count(*), sum(size_bytes)::BIGINT, coalesce(sum(duration_seconds), 0) "
        f"FROM work.report_videos WHERE {selection.chosen}"
    ).fetchall()[0]
    rejected, rejected_more = outcomes.reasons(catalog)
    runs, run_count = run_history.runs_made(catalog.layout)
    comparable = internvid_figures.comparable_columns(catalog) if catalog.layout.record else {}
    cards = _cards(catalog, selection, comparable)
    # Missing scores of the paper get a figure anyway; for others a line is enough.
    empty = [
        card.title
        for card in cards
        if card.id.startswith("column-")
        and not card.histogram
        and card.title not in internvid_figures.SCORES
    ]
    languages = next(card for card in cards if card.id == "language")
    signals = signal_section.signal_section(
        catalog,
        selection,
        lambda kind, column: _drawn(
            catalog,
            selection,
            f"signal-{kind.column}",
            kind.title,
            "clips",
            "work.report_clips",
            column.sql,
            kind.unit,
            (),
            whole=kind.whole,
            column_made=column,
        ),
        languages,
    )
    if signals is not None and signals.languages is not None:
        cards.remove(languages)
    on_step("choosing samples")
    groups = sample_clips.sample_groups(catalog, selection, samples=sample_count, seed=seed)
    return {
        "name": dataset.absolute().name or str(dataset),
        "dataset": str(dataset),
        "subset": subset.info if subset else None,
        "gone": selection.gone,
        "made_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "run": status["run"],
        "clips": clips,
        "whole_clips": whole_clips,
        "clip_seconds": seconds,
        "videos": videos,
        "size_bytes": size_bytes,
        "video_seconds": video_seconds,
        "funnel": outcomes.funnel(status, catalog),
        "reasons": rejected,
        "reasons_more": rejected_more,
        "skipped": outcomes.skips(status),
        "shots": outcomes.shots_without_clips(catalog),
        "rules": outcomes.subset_funnel(subset) if subset else [],
        "audits": audits_made.audits_made(dataset, subset),
        "failures": outcomes.failures(catalog, dataset),
        "signals": signals,
        "cards": [card for card in cards if card.title not in empty],
        "empty": empty,
        "left_out": selection.left_out,
        "uncompared": {
            score: scorer
            for score, scorer in internvid_figures.SCORERS.items()
            if score not in comparable.values()
        },
        "published": internvid_figures,
        "words": word_counts,
        "texts": [one for one in status["texts"] if one["texts"]],
        "cloud": _cloud(word_counts.commonest),
        "verbs": charts.counted_rows(word_counts.verbs, "uses"),
        "common": charts.counted_rows(word_counts.commonest[: caption_words.SHOWN_VERBS], "uses"),
        "tags": charts.counted_rows(caption_words.count_tags(catalog, selection.tags()), "clips"),
        "groups": groups,
        "stages": run_history.stages_made(catalog.layout),
        "runs": runs,
        "run_count": run_count,
        "with_catalog": subset is not None,
    }


def _cards(catalog: Catalog, selection: ReportTables, comparable: dict[str, str]) -> list[Card]:
    """The paper's plots in its order, then this dataset's other columns."""
    cards = [
        _source_durations(catalog, selection),
        _drawn(
            catalog,
            selection,
            "clip-durations",
            "Clip durations",
            "clips",
            "work.report_clips",
            "duration_seconds",
            "seconds",
            (*internvid_figures.CLIP_SECONDS_BINS, *internvid_figures.CLIP_SECONDS),
        ),
        _drawn(
            catalog,
            selection,
            "caption-words",
            "Caption lengths",
            "captions",
            "work.report_clips",
            "caption_words",
            "words",
            internvid_figures.CAPTION_WORDS,
            whole=True,
        ),
    ]
    for column in selection.columns:
        if column.is_switch:
            values = figures.switches(
                catalog.connection, selection, "work.report_clips", column.sql
            )
            cards.append(_listed(selection, f"switch-{column.sql}", column.name, "clips", values))
            continue
        score = comparable.get(column.name)
        cards.append(
            _drawn(
                catalog,
                selection,
                f"column-{column.sql}",
                column.name,
                "clips",
                "work.report_clips",
                column.sql,
                _MEASURES.get(column.name, column.name),
                internvid_figures.SCORES[score] if score else (),
                whole=column.is_whole,
                column_made=column,
            )
        )
    for name, title in (("language", "Languages"), ("category", "Categories")):
        values = figures.texts(catalog.connection, selection, "work.report_videos", name)
        cards.append(_listed(selection, name, title, "videos", values))
    sides = figures.shares(
        catalog.connection,
        selection,
        "work.report_videos",
        "short_side",
        internvid_figures.SHORT_SIDE_PIXELS,
    )
    cards.append(
        _listed(
            selection,
            "resolution",
            "Resolution",
            "videos",
            sides,
            "The shorter side of the picture.",
        )
    )
    rates = figures.texts(catalog.connection, selection, "work.report_videos", "rate")
    cards.append(
        _listed(
            selection, "frame-rates", "Frame rates", "videos", rates, "Frames per second, rounded."
        )
    )
    return cards


def _source_durations(catalog: Catalog, selection: ReportTables) -> Card:
    """In minutes, or in seconds if the videos are short; the paper's bins are in minutes."""
    (median,) = catalog.connection.execute(
        "SELECT median(minutes) FROM work.report_videos"
    ).fetchall()[0]
    in_seconds = median is not None and median < 2
    return _drawn(
        catalog,
        selection,
        "source-durations",
        "Source durations",
        "videos",
        "work.report_videos",
        "duration_seconds" if in_seconds else "minutes",
        "seconds" if in_seconds else "minutes",
        internvid_figures.SOURCE_DURATION_MINUTES,
        intervals_of="minutes",
    )


def _drawn(
    catalog: Catalog,
    selection: ReportTables,
    id_: str,
    title: str,
    noun: str,
    table: str,
    column: str,
    unit: str,
    intervals: tuple[internvid_figures.Share, ...],
    *,
    whole: bool = False,
    column_made: Column | None = None,
    intervals_of: str | None = None,
) -> Card:
    connection = catalog.connection
    found = figures.distribution(connection, selection, table, column, whole_numbers=whole)
    values = None
    if intervals:
        values = figures.shares(connection, selection, table, intervals_of or column, intervals)
    name = column_made.name if column_made else column
    thresholds = [
        (f"{SIGNS[one.operator]} {numbers.number(one.value)}", one.value)
        for one in selection.thresholds
        if one.column == name
    ]
    with_catalog = selection.subset is not None
    note = f"Made by {column_made.stage}." if column_made and column_made.stage else ""
    return Card(
        id_,
        title,
        noun,
        charts.histogram(
            found, x_label=unit, noun=noun, with_catalog=with_catalog, thresholds=thresholds
        ),
        [
            rows
            for part in _parts(values)
            if (rows := charts.rows(part, noun=noun, with_catalog=with_catalog))
        ],
        found,
        values,
        unit,
        note,
    )


def _listed(
    selection: ReportTables, id_: str, title: str, noun: str, values: Values, note: str = ""
) -> Card:
    drawn = charts.rows(values, noun=noun, with_catalog=selection.subset is not None)
    return Card(id_, title, noun, None, [drawn] if drawn else [], None, values, "", note)


def _parts(values: Values | None) -> list[Values]:
    """Two drawings if only the last intervals have a published share: they overlap the first."""
    if values is None:
        return []
    first = next((n for n, bar in enumerate(values.bars) if bar.published is not None), 0)
    parts = (values.bars[:first], values.bars[first:])
    return [replace(values, bars=bars) for bars in parts if bars]


def _cloud(commonest: list[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """(word, uses, size from 1 to _SIZES), alphabetically; area is proportional to use."""
    if not commonest:
        return []
    most, least = commonest[0][1] ** 0.5, commonest[-1][1] ** 0.5
    spread = most - least or 1.0
    return sorted(
        (word, uses, 1 + round((_SIZES - 1) * (uses**0.5 - least) / spread))
        for word, uses in commonest
    )


def render(context: dict[str, Any], template: str = "report.html") -> str:
    """The page as text. Its policy lets nothing run, and nothing load that is not inside it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=numbers.number, bytes=numbers.size, hours=numbers.hours, clock=sample_clips.clock
    )
    environment.globals.update(percent=numbers.percent, interval=charts.interval)
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(**context, style=style, policy=policy)
