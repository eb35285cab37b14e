"""Processes one unit of clips: cuts their media and renders their samples, on any machine.

The result of a unit is one Parquet file with its rows and further columns; when it exists, the
unit is done. A clip that can't be cut keeps its row, with a problem.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.shards import shard_writer
from clipmill.pipeline.engine.parallel_map import map_tasks
from clipmill.pipeline.exports.columns import FILE_ZERO, PATH, SOUND_BYTES
from clipmill.pipeline.exports.folder import WORK
from clipmill.pipeline.exports.request import ExportRequest
from clipmill.pipeline.exports.safe_rectangles import PINNED, rectangle_of
from clipmill.pipeline.exports.selection import Unit, read_rows
from clipmill.pipeline.exports.tar_samples import SAMPLE_BYTES, render_samples
from clipmill.schemas.errors import ClipmillError, ErrorKind, RowFailed
from clipmill.schemas.ids import file_name
from clipmill.schemas.storage import full_storage
from clipmill.stages.media.cutting.requests import CutRequest, CutResult

FAILURES = "failures.jsonl"
KIND, MESSAGE = "_problem_kind", "_problem_message"
MEDIA_COLUMNS = pa.schema(
    [
        ("media_path", pa.string()),
        ("media_start_seconds", pa.float64()),
        ("media_end_seconds", pa.float64()),
        ("media_frames", pa.int64()),
        ("media_width", pa.int32()),
        ("media_height", pa.int32()),
        ("media_has_audio", pa.bool_()),
        ("media_bytes", pa.int64()),
    ]
)
"""An export's columns about a clip's file. Its span is what the file actually shows."""
CROP_COLUMNS = pa.schema(
    [
        (f"media_crop_{side}", pa.float64())  # null if the whole picture is kept
        for side in ("left", "top", "right", "bottom")
    ]
)
"""With `--crop`: the part of the picture that the file shows, in shares of the source's."""

# A video whose worker died on it is tried once more; then its clips are failures.
DEATHS_A_VIDEO = 2
# map_tasks gives up a unit after some deaths of its workers, so a unit with several deadly videos
# needs several rounds to find each of them.
ROUNDS = 6


@dataclass(frozen=True)
class UnitTask:
    """One unit to process; `token` is this process's, so that a user's stop is not a crash."""

    request: ExportRequest
    unit: Unit
    token: str


def media_columns(request: ExportRequest) -> pa.Schema:
    """The columns about a clip's file."""
    if request.cut is None:
        return pa.schema([])
    extra = CROP_COLUMNS if request.crop is not None else ()
    return pa.schema([*MEDIA_COLUMNS, *extra])


def unit_file(output: Path, unit: Unit) -> Path:
    return output / WORK / "units" / f"{unit.place}.parquet"


def media_folder(request: ExportRequest, unit: Unit) -> Path:
    """Where a unit's clips are cut to, permanently or until they are packed."""
    packed = request.format in ("webdataset", "huggingface")
    return request.output / (f"{WORK}/cut" if packed else "media") / unit.place


def read_unit(
    request: ExportRequest,
    unit: Unit,
    columns: Sequence[str] | None = None,
    *,
    failed: bool = False,
) -> pa.Table:
    """The rows of a unit with the results; with `failed` also those that failed."""
    if not request.has_units:
        return read_rows(request.output / WORK / "rows", unit, columns)
    wanted = None if columns is None else [*columns, KIND]
    table = pq.read_table(unit_file(request.output, unit), columns=wanted, partitioning=None)
    if not failed:
        table = table.filter(pc.is_null(table[KIND]))
    return table if columns is None else table.select(columns)


def read_problems(request: ExportRequest, unit: Unit) -> pa.Table:
    """`clip_id, video_id, kind, message` of a unit's failed clips."""
    names = ["clip_id", "video_id", KIND, MESSAGE]
    table = pq.read_table(unit_file(request.output, unit), columns=names, partitioning=None)
    return table.filter(pc.is_valid(table[KIND])).rename_columns(
        ["clip_id", "video_id", "kind", "message"]
    )


def work_on_units(
    request: ExportRequest, units: Sequence[Unit], token: str, report: Callable[[int, int], None]
) -> None:
    """Processes the units that are not done; `report` gets numbers of clips done and failed."""
    _token_file(request).write_text(token, "utf-8")
    todo = [
        UnitTask(request, unit, token)
        for unit in units
        if not unit_file(request.output, unit).exists()
    ]
    for left in reversed(range(ROUNDS)):
        again = []
        # Closed before an exception is reported from here: until then Ray's messages are filtered.
        with closing(map_tasks(work_on_unit, todo, engine=request.engine_or_default)) as results:
            for result in results:
                if result.problem is None:
                    assert result.value is not None
                    report(*result.value)
                elif left:
                    again.append(result.item)
                else:
                    report(*_give_up(result.item, result.problem))
        if not again:
            return
        todo = again


def work_on_unit(task: UnitTask) -> tuple[int, int]:
    """Commits the result of a unit; returns its number of clips, and how many of them failed.

    A problem with a clip or video is a failed row; any other error ends the export.
    """
    try:
        return _work_on_unit(task)
    except ClipmillError:
        raise
    except Exception as error:
        if (full := full_storage(error, task.request.output)) is not None:
            raise full from error
        raise ClipmillError(
            f"{task.request.output}: clips could not be processed: "
            f"{type(error).__name__}: {error}; run the same command to continue"
        ) from error


def _work_on_unit(task: UnitTask) -> tuple[int, int]:
    request, unit = task.request, task.unit
    rows = read_rows(request.output / WORK / "rows", unit)
    problems: dict[str, RowFailed] = {}
    if request.cut is not None:
        cuts = {result.clip_id: result for result in _cut(task, rows)}
        ids = rows["clip_id"].to_pylist()
        problems = {clip: problem for clip in ids if (problem := cuts[clip].problem) is not None}
        rows = _with_media(rows, [cuts[clip] for clip in ids], request)
    return _commit(task, rows, problems)


def _commit(task: UnitTask, rows: pa.Table, problems: dict[str, RowFailed]) -> tuple[int, int]:
    found = [problems.get(clip) for clip in rows["clip_id"].to_pylist()]
    rows = rows.append_column(KIND, pa.array([p and p.kind for p in found], pa.string()))
    rows = rows.append_column(MESSAGE, pa.array([p and p.message for p in found], pa.string()))
    if task.request.format == "webdataset":
        rows = render_samples(rows)
    elif task.request.format == "huggingface":
        own = -(-rows.nbytes // max(1, rows.num_rows))
        rows = rows.append_column(SAMPLE_BYTES, pc.add(rows["media_bytes"], own))
    check_own(task.request, task.token)
    path = unit_file(task.request.output, task.unit)
    with shard_writer(path, rows.schema) as writer:
        writer.write(rows)
        writer.finish()
    journal_of(task.request, task.unit).unlink(missing_ok=True)
    return rows.num_rows, len(problems)


def _give_up(task: UnitTask, problem: RowFailed) -> tuple[int, int]:
    """Counts all clips of a unit that couldn't be processed at all as failed."""
    rows = read_rows(task.request.output / WORK / "rows", task.unit)
    ids = rows["clip_id"].to_pylist()
    if task.request.cut is not None:
        rows = _with_media(rows, [CutResult(clip) for clip in ids], task.request)
    return _commit(task, rows, dict.fromkeys(ids, problem))


def _cut(task: UnitTask, rows: pa.Table) -> Iterator[CutResult]:
    folder = media_folder(task.request, task.unit)
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed worker
    folder.mkdir(parents=True)
    journal = journal_of(task.request, task.unit)
    journal.parent.mkdir(parents=True, exist_ok=True)
    tried = journal.read_text("utf-8").split("\n") if journal.exists() else []
    for video, clips in _by_video(rows):
        check_own(task.request, task.token)
        line = f"{task.token} {video}"
        requests = []
        for clip in clips:
            try:
                crop = None if task.request.crop is None else rectangle_of(clip)
            except RowFailed as senseless:
                yield CutResult(clip["clip_id"], problem=senseless)
                continue
            requests.append(
                CutRequest(
                    clip["clip_id"],
                    clip["start_seconds"],
                    clip["end_seconds"],
                    folder / f"{file_name(clip['clip_id'])}.mp4",
                    crop,
                )
            )
        if not requests:
            continue
        if tried.count(line) - tried.count(f"{line} done") >= DEATHS_A_VIDEO:
            problem = RowFailed(
                "crash", f"the process that cut clips of {video} died {DEATHS_A_VIDEO} times"
            )
            yield from (CutResult(one.clip_id, problem=problem) for one in requests)
            continue
        _note(journal, line)
        yield from _cut_video(task.request, video, clips[0], requests)
        _note(journal, f"{line} done")


def _token_file(request: ExportRequest) -> Path:
    return request.output / WORK / "token"


def check_own(request: ExportRequest, token: str) -> None:
    """Ends a worker that outlived its export: another one may be processing its unit by now."""
    if _token_file(request).read_text("utf-8") != token:
        raise ClipmillError(f"{request.output}: another export has taken over")


def _note(journal: Path, line: str) -> None:
    with open(journal, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def _cut_video(
    request: ExportRequest, video: str, facts: dict[str, Any], wanted: list[CutRequest]
) -> Iterator[CutResult]:
    """One result per wanted clip, whatever happens short of the end of the process."""
    # Exports without media need no decoder.
    from clipmill.stages.media.cutting.cut import cut_clips_isolated

    assert request.cut is not None  # otherwise there is nothing to cut
    left = {one.clip_id: one for one in wanted}
    source = None if facts[PATH] is None else request.dataset / facts[PATH]
    kind: ErrorKind = "permanent"
    if source is None:
        reason = f"the dataset has no file for {video}"
    elif not source.is_file():
        reason = f"the file of {video} is no longer there"
    else:
        kind, reason = "crash", f"{video}: cutting gave no result"
        try:
            for result in cut_clips_isolated(
                source,
                wanted,
                request.cut,
                starts_at_seconds=facts[FILE_ZERO],
                is_sound=_is_sound(source, facts),
            ):
                if left.pop(result.clip_id, None) is not None:
                    yield _without_path(result, source, video)
        except ClipmillError:
            raise
        except RowFailed as error:
            kind, reason = error.kind, _nameless(error.message, source, video)
        except Exception as error:  # noqa: BLE001 - whatever it is costs this video only
            kind = "crash"
            reason = _nameless(f"{video}: {type(error).__name__}: {error}", source, video)
    yield from (CutResult(clip, problem=RowFailed(kind, reason)) for clip in left)


def _is_sound(source: Path, facts: dict[str, Any]) -> bool:
    """Whether the file was decoded without an error, and its size has not changed since."""
    size = facts.get(SOUND_BYTES)
    return size is not None and source.stat().st_size == size


def _without_path(result: CutResult, source: Path, video: str) -> CutResult:
    if result.problem is None:
        return result
    message = _nameless(result.problem.message, source, video)
    return CutResult(result.clip_id, problem=RowFailed(result.problem.kind, message))


def _nameless(message: str, source: Path, video: str) -> str:
    """A message without the path: exports are shared, and a file's name may be a title."""
    return message.replace(str(source), video).replace(source.name, video)


def _by_video(rows: pa.Table) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The clips of each video, in order; rows are sorted by video."""
    names = ["clip_id", "video_id", "start_seconds", "end_seconds", PATH, FILE_ZERO, SOUND_BYTES]
    names += PINNED
    clips: list[dict[str, Any]] = []
    # Rows pinned by an earlier version don't say whether the files were decoded without errors, and
    # only those to be cropped have a rectangle.
    there = [name for name in names if name in rows.schema.names]
    for row in rows.select(there).to_pylist():
        if clips and row["video_id"] != clips[0]["video_id"]:
            yield clips[0]["video_id"], clips
            clips = []
        clips.append(row)
    if clips:
        yield clips[0]["video_id"], clips


def _with_media(rows: pa.Table, cuts: list[CutResult], request: ExportRequest) -> pa.Table:
    columns = {
        "media_path": [
            cut.path and cut.path.relative_to(request.output).as_posix() for cut in cuts
        ],
        "media_start_seconds": [cut.start_seconds for cut in cuts],
        "media_end_seconds": [cut.end_seconds for cut in cuts],
        "media_frames": [cut.n_frames for cut in cuts],
        "media_width": [cut.width for cut in cuts],
        "media_height": [cut.height for cut in cuts],
        "media_has_audio": [cut.has_audio for cut in cuts],
        "media_bytes": [cut.size_bytes for cut in cuts],
        "media_crop_left": [cut.crop and cut.crop.left for cut in cuts],
        "media_crop_top": [cut.crop and cut.crop.top for cut in cuts],
        "media_crop_right": [cut.crop and cut.crop.right for cut in cuts],
        "media_crop_bottom": [cut.crop and cut.crop.bottom for cut in cuts],
    }
    for field in media_columns(request):
        rows = rows.append_column(field, pa.array(columns[field.name], field.type))
    return rows


def journal_of(request: ExportRequest, unit: Unit) -> Path:
    """The journal of which videos of a unit are being cut."""
    return unit_file(request.output, unit).with_suffix(".journal")
