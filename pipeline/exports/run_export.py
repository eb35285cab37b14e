"""Runs one export from start to end, or from where it was interrupted."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.catalog.user_sql import readable_errors
from clipmill.pipeline.dataset.shards import commit, temporary_beside
from clipmill.pipeline.exports import lines, webdataset
from clipmill.pipeline.exports.columns import Columns, choose_columns
from clipmill.pipeline.exports.export_shards import (
    SHARDS,
    PackTask,
    Shard,
    ShardFile,
    pack,
    plan,
    roll,
    unit_by_unit,
)
from clipmill.pipeline.exports.folder import ExportFolder, open_folder
from clipmill.pipeline.exports.hub_card import CARD, card
from clipmill.pipeline.exports.internvid_scores import internvid_scores
from clipmill.pipeline.exports.output_places import check_output
from clipmill.pipeline.exports.provenance import clips_of, hash_of, provenance, summarise
from clipmill.pipeline.exports.removed_clips import Removals
from clipmill.pipeline.exports.request import ExportRequest
from clipmill.pipeline.exports.selection import (
    NO_MEDIA,
    Selection,
    Unit,
    load_selection,
    select_clips,
)
from clipmill.pipeline.exports.table_files import (
    CsvFile,
    ParquetFile,
    VideoTable,
    csv_parts,
    fits_with_videos,
    parts_of,
    shown_columns,
    with_video,
)
from clipmill.pipeline.exports.tar_samples import SAMPLE_BYTES
from clipmill.pipeline.exports.units import FAILURES, read_problems, read_unit, work_on_units
from clipmill.pipeline.exports.values import json_text
from clipmill.pipeline.subsets.expressions import Expressions
from clipmill.pipeline.subsets.freeze import FrozenSubset, load_subset
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.words import counted


@dataclass
class ExportWatcher:
    """Callbacks of a running export; any of them may be omitted."""

    begin: Callable[[str, int | None], None] = lambda step, clips: None
    """Called with `select`, `cut`, `render` or `write`, and how many clips that step has."""
    step: Callable[[int, int], None] = lambda clips, failed: None
    """Called with how many more clips are done, and how many of these failed."""


@dataclass(frozen=True)
class Exported:
    """A finished export: its manifest, and whether it was finished before."""

    manifest: dict[str, Any]
    was_finished: bool

    def __getitem__(self, name: str) -> Any:
        """An entry of the manifest: counts, files, videos, hours, notes, provenance."""
        return self.manifest[name]


def run_export(
    request: ExportRequest,
    *,
    code_version: str,
    watcher: ExportWatcher | None = None,
    memory_limit: str | None = None,
) -> Exported:
    """Exports, resumes an interrupted export, or does nothing if it is finished.

    Raises UsageError for a folder with other contents, and for clips, columns or options
    that don't exist; ClipmillError if the machine lacks what is needed.
    """
    watcher = watcher or ExportWatcher()
    check_output(request.dataset, request.output)
    if request.cut is not None:
        # Exports without media need no decoder; others report a missing one before they begin.
        from clipmill.stages.media.cutting.cut import check_encoder

        if request.cut.media == "exact":
            # Fixed before anything starts, so that it is the same on every worker.
            request = replace(request, cut=replace(request.cut, encoder=check_encoder(request.cut)))
    subset = None if request.subset is None else load_subset(request.dataset, request.subset)
    with readable_errors(), open_catalog(request.dataset, memory_limit=memory_limit) as catalog:
        scores = internvid_scores(catalog) if request.format == "internvid" else None
        columns = choose_columns(catalog, request, scores.columns if scores else {})
        _check_where(catalog, request)
        with open_folder(request.output) as folder:
            folder.begin(request.asked(), clips_of(catalog, subset))
            if folder.is_finished:
                assert folder.manifest is not None  # a finished folder has one
                return Exported(folder.manifest, was_finished=True)
            notes = [*(scores.notes if scores else ()), *_crop_notes(request, subset)]
            selection = _select(catalog, request, columns, folder, subset, watcher, notes)
            catalog.close()  # the next steps need memory themselves
            return _finish(request, columns, folder, selection, code_version, watcher)


def _crop_notes(request: ExportRequest, subset: FrozenSubset | None) -> list[str]:
    """A note if a subset's clips that are meant to be cropped are cut as they are."""
    regained = None if subset is None else subset.info.get("regained")
    if not regained or not regained["clips"] or request.cut is None or request.crop is not None:
        return []
    return [
        f"bars and overlays are still in {counted(regained['clips'], 'clip')}, which passed only "
        "to be cropped: --media exact --crop safe does so"
    ]


def _check_where(catalog: Catalog, request: ExportRequest) -> None:
    if request.where is None:
        return
    with catalog.bounded():  # constants in the query are computed here
        kind = Expressions(catalog).type_of(request.where, "--where")
    if kind != "BOOLEAN":
        raise UsageError(
            f"--where {request.where!r} is a {kind}; expected a condition that is "
            "true or false, such as: similarity > 0.3"
        )


def _select(
    catalog: Catalog,
    request: ExportRequest,
    columns: Columns,
    folder: ExportFolder,
    subset: FrozenSubset | None,
    watcher: ExportWatcher,
    notes: Sequence[str],
) -> Selection:
    rows = folder.work / "rows"
    selection = load_selection(rows)
    if selection is None:
        watcher.begin("select", None)
        found = {"provenance": provenance(catalog, request, subset), "notes": list(notes)}
        try:
            with catalog.bounded():  # --where is untrusted
                selection = select_clips(
                    catalog, request, columns, rows, found, lambda clips: watcher.step(clips, 0)
                )
        except ClipmillError:
            folder.abandon()  # the folder can be used with another --where
            raise
    return selection


def _finish(
    request: ExportRequest,
    columns: Columns,
    folder: ExportFolder,
    selection: Selection,
    code_version: str,
    watcher: ExportWatcher,
) -> Exported:
    """Makes the files; repeats what is necessary if videos were removed meanwhile.

    Removals are checked between the steps, when no worker is active that could still write removed
    clips, and once more just before the export is marked as finished.
    """
    rows = folder.work / "rows"
    removals = Removals(request, rows)
    shown = shown_columns(request, columns.shown)
    pinned = json.loads((rows / "selection.json").read_text("utf-8"))
    token = uuid.uuid4().hex
    while True:
        removals.leave_out()
        selection = load_selection(rows) or selection
        _check_there_is_something(request, folder, selection)
        if request.has_units:
            watcher.begin("cut" if request.cut else "render", selection.selected)
            work_on_units(request, selection.units, token, watcher.step)
            if removals.leave_out():
                continue
        summary = summarise(request, selection.units)
        watcher.begin("write", selection.selected)
        report = functools.partial(_step, watcher)
        shards = _write(request, selection.units, shown, token, report)
        found = {
            "code_version": code_version,
            "counts": {
                "clips": selection.clips,
                "exported": summary.clips,
                "left_out": selection.left_out,
                "failed": summary.failures,
            },
            **summary.plain(),
            "provenance": pinned["provenance"],
            "notes": pinned["notes"],
            "files": [
                {"name": shard.name, "items": shard.items, "size_bytes": shard.size_bytes}
                for shard in shards
            ],
        }
        _check_accounts(found["counts"], shards, request)
        _write_beside(request, selection.units, shards, shown, folder, found)
        if not removals.leave_out():
            break
    folder.finish(found, removed=hash_of(removals.known))
    assert folder.manifest is not None  # finish() wrote it
    return Exported(folder.manifest, was_finished=False)


def _check_there_is_something(
    request: ExportRequest, folder: ExportFolder, selection: Selection
) -> None:
    if selection.selected:
        return
    folder.abandon()
    if not selection.clips:
        raise UsageError(
            f"nothing to export: {request.dataset} has no clips yet; see "
            f"`clipmill status {shell_word(request.dataset)}`"
        )
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in selection.left_out.items())
    ways = [way for reason, way in _ways_out(request).items() if reason in selection.left_out]
    raise UsageError(
        "; ".join(
            [
                f"nothing to export: of {counted(selection.clips, 'clip')} all are left out"
                f"{f' ({reasons})' if reasons else ''}",
                *ways,
            ]
        )
    )


def _ways_out(request: ExportRequest) -> dict[str, str]:
    """By reason why clips were left out, how to include them."""
    dataset = shell_word(request.dataset)
    return {
        "no caption": "--keep-uncaptioned keeps clips without a caption, --caption COLUMN uses "
        "another text",
        "where": f"`clipmill subset explain {dataset} --where {shell_word(request.where or '')}` "
        "shows the clips nearest to it",
        NO_MEDIA: "these are only published, and nothing of them is downloaded: --media none "
        f"exports what is known of them, and `clipmill run --dataset {dataset}` gets the media",
        "not in the catalog": "the catalog shows what the newest run made: run the recipe that "
        "made the subset's clips again, or freeze the subset again",
        "not from YouTube": "--format internvid only holds videos from YouTube: use webdataset, "
        "parquet or csv",
        "dropped at random": "--drop 0 leaves none out at random",
    }


def _step(watcher: ExportWatcher, clips: int) -> None:
    watcher.step(clips, 0)


def _check_accounts(
    counts: dict[str, Any], shards: Sequence[Shard], request: ExportRequest
) -> None:
    parts = (counts["exported"], sum(counts["left_out"].values()), sum(counts["failed"].values()))
    written = sum(shard.items for shard in shards)
    if sum(parts) != counts["clips"] or (
        request.format != "interleaved" and written != counts["exported"]
    ):
        raise AssertionError(
            f"{counts['clips']} clips, but {parts[0]} exported + {parts[1]} left "
            f"out + {parts[2]} failed, and {written} in the shards"
        )


def _write(
    request: ExportRequest,
    units: Sequence[Unit],
    shown: Sequence[str],
    token: str,
    report: Callable[[int], None],
) -> list[Shard]:
    """Writes the shards of a format, in order."""
    if request.format == "webdataset":
        fits = functools.partial(webdataset.fits, request)
        return _pack(request, units, token, fits, ".tar", webdataset.write_tar, report)
    if request.format == "huggingface" and request.cut is not None:
        fits = functools.partial(fits_with_videos, request)
        names = tuple(name for name in shown if name != "media_path")
        return _pack(request, units, token, fits, ParquetFile.suffix, VideoTable(names), report)
    if request.format == "interleaved":
        return roll(request, lines.LinesFile, lines.documents(request, units, report))
    kinds: dict[str, tuple[type[ShardFile], Callable[[Unit], Iterator[Any]]]] = {
        "internvid": (lines.LinesFile, lambda unit: lines.internvid_lines(request, unit)),
        "csv": (CsvFile, lambda unit: csv_parts(request, unit, shown)),
        "jsonl": (lines.LinesFile, lambda unit: lines.row_lines(request, unit, shown)),
        "parquet": (ParquetFile, lambda unit: parts_of(request, unit, shown)),
        "huggingface": (ParquetFile, lambda unit: parts_of(request, unit, shown)),
    }
    kind, parts = kinds[request.format]
    return roll(request, kind, unit_by_unit(units, parts, report))


def _pack(
    request: ExportRequest,
    units: Sequence[Unit],
    token: str,
    fits: Callable[[int], bool],
    suffix: str,
    write: Callable[..., None],
    report: Callable[[int], None],
) -> list[Shard]:
    planned = plan(request, units, SAMPLE_BYTES, fits)
    tasks = [
        PackTask(request, token, f"{SHARDS[request.format]}-{number:06d}{suffix}", pieces, write)
        for number, pieces in enumerate(planned)
    ]
    return pack(tasks, report)


def _write_beside(
    request: ExportRequest,
    units: Sequence[Unit],
    shards: Sequence[Shard],
    shown: Sequence[str],
    folder: ExportFolder,
    found: dict[str, Any],
) -> None:
    """Writes the files next to the shards: failures, an index, a card."""
    if request.cut is not None:
        path = request.output / FAILURES
        temporary = temporary_beside(path)
        with open(temporary, "w", encoding="utf-8") as file:
            for unit in units:
                for row in read_problems(request, unit).to_pylist():
                    file.write(json_text(row) + "\n")
        commit(temporary, path)
    if request.format == "webdataset":
        webdataset.write_index(request, shards)
    if request.format == "huggingface":
        schema = read_unit(request, units[0], shown).schema
        if request.cut is not None:
            schema = with_video(schema)
        assert folder.manifest is not None  # begin() made it
        text = card(request, schema, shards, {**folder.manifest, **found})
        path = request.output / CARD
        temporary = temporary_beside(path)
        temporary.write_text(text, "utf-8")
        commit(temporary, path)
