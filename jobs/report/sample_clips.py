"""Selects the sample clips: at random, and near thresholds or at the ends of scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import duckdb
import pyarrow as pa

from clipmill.jobs.report.numbers import number
from clipmill.jobs.report.pictures import Strip, make_strips
from clipmill.jobs.report.report_tables import Column, ReportTables, RuleThreshold
from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.catalog.kept_frames import ClipSpan
from clipmill.pipeline.catalog.links import clip_link
from clipmill.schemas.sql_text import literal

MOST = 60
DEFAULT = 36
_LONGEST_TEXT = 400
_FINE_SHOWN = 8
_TAGS_SHOWN = 8
_IN, _OUT = "in the subset", "out"
_LEAST_A_GROUP = 4
_SCORES_SHOWN = 8


@dataclass(frozen=True)
class SampleClip:
    """One clip on the page."""

    clip_id: str
    span: str
    title: str | None
    link: str | None
    place: str | None
    """The video's origin, if that is not a link."""
    caption: str | None
    coarse: str | None
    fine: list[tuple[float, str]]
    """Captions of frames, each with its start time."""
    fine_more: int
    given: str | None
    read: str | None
    """What stands on its pictures."""
    tags: list[str]
    scores: list[tuple[str, str]]
    strip: Strip | None
    note: str | None = None

    @property
    def is_out(self) -> bool:
        return self.note is not None and self.note.startswith(_OUT)


@dataclass(frozen=True)
class SampleGroup:
    """Samples under one heading."""

    title: str
    says: str
    samples: list[SampleClip] = field(default_factory=list)


@dataclass(frozen=True)
class _GroupIds:
    """A group before its clips are read: their ids, each with a note."""

    title: str
    says: str
    clips: list[tuple[str, str | None]]


def sample_groups(
    catalog: Catalog, selection: ReportTables, *, samples: int, seed: int
) -> list[SampleGroup]:
    """At most `samples` clips, half of them random if there are also other groups."""
    connection = catalog.connection
    edges: Sequence[RuleThreshold | Column] = selection.thresholds
    if not selection.subset:
        edges = _scores(connection, selection)
    edges = edges[: samples // 2 // _LEAST_A_GROUP]
    at_edges = samples // 2 if edges else 0
    wanted = [_at_random(connection, selection, samples - at_edges, seed)]
    for place, edge in enumerate(edges):
        # Of 18 clips for 4 thresholds, the first two get five each.
        n = at_edges // len(edges) + (place < at_edges % len(edges))
        wanted.append(
            _at_threshold(connection, edge, n)
            if isinstance(edge, RuleThreshold)
            else _at_ends(connection, edge, n)
        )
    rows = rows_of(catalog, sorted({clip for group in wanted for clip, _ in group.clips}))
    strips = make_strips(
        catalog,
        [
            ClipSpan(clip, row["video_id"], row["start_seconds"], row["end_seconds"])
            for clip, row in rows.items()
        ],
        veiled={clip for clip, row in rows.items() if selection.signals.is_veiled(row)},
    )
    columns = [column.name for column in selection.signal_columns.values()]
    columns += [column.name for column in selection.columns]
    return [
        SampleGroup(
            group.title,
            group.says,
            [
                sample_of(rows[clip], strips.get(clip), columns, note)
                for clip, note in group.clips
                if clip in rows
            ],
        )
        for group in wanted
        if group.clips
    ]


def _scores(connection: duckdb.DuckDBPyConnection, selection: ReportTables) -> list[Column]:
    """Columns with values: those made by stages over clips, or else the first measured one."""
    numbers = [column for column in selection.columns if not column.is_switch]
    if not numbers:
        return []
    counts = connection.execute(
        f"SELECT {', '.join(f'count({one.sql})' for one in numbers)} FROM work.report_clips"
    ).fetchall()[0]
    numbers = [one for one, count in zip(numbers, counts, strict=True) if count]
    made = [column for column in numbers if column.stage]
    if selection.signals:  # which have a section with their ends
        return [column for column in made if column.name not in selection.signals.later]
    return made or numbers[:1]


def by_chance(seed: int) -> str:
    return f"md5_number_lower(clip_id || {literal(f':{seed}')})"


def _at_random(
    connection: duckdb.DuckDBPyConnection, selection: ReportTables, count: int, seed: int
) -> _GroupIds:
    rows = connection.execute(
        f"SELECT clip_id FROM work.report_clips WHERE {selection.chosen} "
        f"ORDER BY {by_chance(seed)}, clip_id LIMIT {count}"
    ).fetchall()
    return _GroupIds(
        "At random",
        f"Every clip is equally likely; seed {seed}.",
        [(clip, None) for (clip,) in rows],
    )


_OPPOSITE = {">=": "<", ">": "<=", "<=": ">", "<": ">="}
SIGNS = {">=": "≥", "<=": "≤", ">": ">", "<": "<"}


def _at_threshold(
    connection: duckdb.DuckDBPyConnection, threshold: RuleThreshold, count: int
) -> _GroupIds:
    """The subset's clips next to a threshold, and those just beyond it."""
    clips: list[tuple[str, str | None]] = []
    missing = ""
    for operator, where, n, said in (
        (threshold.operator, "chosen", count - count // 2, _IN),
        (_OPPOSITE[threshold.operator], f"NOT chosen AND {threshold.reaches}", count // 2, _OUT),
    ):
        direction = "ASC" if operator.startswith(">") else "DESC"
        rows = connection.execute(
            f"SELECT clip_id, {threshold.sql} FROM work.report_clips "
            f"WHERE {where} AND {threshold.sql} {operator} {threshold.value!r}::DOUBLE "
            f"ORDER BY {threshold.sql} {direction}, {by_chance(0)} LIMIT {n}"
        ).fetchall()
        clips += [(clip, f"{said}: {number(value)}") for clip, value in rows]
        if not rows:
            missing = "; none is in the subset" if said == _IN else "; there are none beyond it"
    return _GroupIds(
        f"{threshold.column} {SIGNS[threshold.operator]} {number(threshold.value)}",
        f"The clips nearest to this threshold of rule {threshold.rule} ({threshold.says}), both in "
        f"the subset and left out of it{missing}.",
        clips,
    )


def _at_ends(connection: duckdb.DuckDBPyConnection, column: Column, count: int) -> _GroupIds:
    clips: list[tuple[str, str | None]] = []
    for direction, n, said in (
        ("ASC", count // 2, "lowest"),
        ("DESC", count - count // 2, "highest"),
    ):
        rows = connection.execute(
            f"SELECT clip_id, {column.sql} FROM work.report_clips WHERE {column.sql} IS NOT NULL "
            f"ORDER BY {column.sql} {direction}, {by_chance(0)} LIMIT {n}"
        ).fetchall()
        clips += [(clip, f"{said}: {number(value)}") for clip, value in rows]
    shown: dict[str, str | None] = {}
    for clip, note in clips:  # with few clips, one may be both
        shown.setdefault(clip, note)
    return _GroupIds(
        f"{column.name}: lowest and highest",
        f"The ends of {column.name} over all clips.",
        list(shown.items()),
    )


def rows_of(catalog: Catalog, clips: list[str]) -> dict[str, dict[str, Any]]:
    """The columns of `clips` for a few clips."""
    wanted = pa.table({"clip_id": pa.array(clips, pa.string())})
    catalog.connection.register("report_wanted", wanted)
    catalog.make_views("clips")
    result = catalog.connection.execute(
        "SELECT * FROM clips SEMI JOIN report_wanted USING (clip_id)"
    )
    names = [name for name, *_ in result.description]
    rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    catalog.connection.unregister("report_wanted")
    return {row["clip_id"]: row for row in rows}


def sample_of(
    row: Mapping[str, Any], strip: Strip | None, columns: Sequence[str], note: str | None
) -> SampleClip:
    """A row of `clips` for a page; `columns` are the scores to show."""
    fine = _without_repeats(row["captions_fine"] or ())
    step = max(1, -(-len(fine) // _FINE_SHOWN))
    link, place = source_of(row["url"])
    link = clip_link(link, row["start_seconds"], row["end_seconds"])
    scores = [(name, number(row[name])) for name in columns if row.get(name) is not None]
    return SampleClip(
        clip_id=row["clip_id"],
        span=f"{clock(row['start_seconds'])}–{clock(row['end_seconds'])}",
        title=shortened(row["title"], 120),
        link=link,
        place=place,
        caption=shortened(row["caption"]),
        coarse=shortened(row["caption_coarse"]),
        fine=fine[::step],
        fine_more=len(fine) - len(fine[::step]),
        given=shortened(row["caption_given"]),
        read=shortened(" · ".join(row.get("text_read") or ())),
        tags=[shortened(tag["tag"], 40) or "" for tag in (row["tags"] or ())[:_TAGS_SHOWN]],
        scores=scores[:_SCORES_SHOWN],
        strip=strip,
        note=note,
    )


def _without_repeats(captions: Iterable[Mapping[str, Any] | None]) -> list[tuple[float, str]]:
    """Captions of frames in order, without those that repeat their predecessor."""
    said: list[tuple[float, str]] = []
    for entry in captions:
        text = shortened(entry["text"]) if entry else None
        if entry and text and (not said or said[-1][1] != text):
            said.append((entry["seconds"], text))
    return said


def shortened(text: str | None, characters: int = _LONGEST_TEXT) -> str | None:
    """The text on one line, shortened if it is too long; None if there is none."""
    if text is None or not text.strip():
        return None
    words = " ".join(text[: 4 * characters].split())
    return words if len(words) <= characters else f"{words[: characters - 1]}…"


def source_of(url: str | None) -> tuple[str | None, str | None]:
    """A link to a video's page, or a description of its origin.

    Only http and https become links, without user names and passwords. Of a local file, only the
    name is shown, because reports are shared.
    """
    if not url:
        return None, None
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return None, shortened(url, 120)
    if parts.scheme in ("http", "https") and host:
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        return urlunsplit(bare), None
    if url.startswith("/") or parts.scheme == "file":
        return None, shortened(url.rstrip("/").rpartition("/")[2], 120)
    return None, shortened(url, 120)


def clock(seconds: float | None) -> str:
    """Seconds as `1:02:03.4`, as a player shows them."""
    if seconds is None:
        return "?"
    tenths = round(abs(seconds) * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{'-' if seconds < 0 and tenths else ''}{text}:{rest / 10:04.1f}"
