"""Assembles one step's input rows for one shard: keys, joined columns, kept frames.

`given_keys` selects the keys: those for which this very shard has something new. So a retry shard
holds only the rows that are new or updated in it, at whichever step it began.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.shards import ShardMetadata, existing, shard_path
from clipmill.pipeline.dataset.steps import KeptRows, given_keys, inputs_of
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList, beginnings
from clipmill.schemas.clocks import CLOCK_COLUMNS, file_zero_seconds
from clipmill.schemas.damage import reading
from clipmill.schemas.errors import RowFailed
from clipmill.schemas.folders import FRAMES, SOURCES
from clipmill.schemas.tables import FRAME
from clipmill.schemas.tables import SOURCES as SOURCES_SCHEMA
from clipmill.stages.media.read.sampling import FramePick, pick_frames

_FOOTERS_READ = 20


def rows_a_shard(dataset: Path, names: Sequence[str]) -> int:
    """The sources in a large shard; a sample will do: shards are of similar size."""
    paths = [shard_path(dataset / SOURCES, name) for name in names[:_FOOTERS_READ]]
    return max((ShardMetadata.read(path).inputs for path in paths if path.exists()), default=1)


def pending_sources(
    dataset: Path, shards: ShardList, todo: Mapping[str, Sequence[str]], most: int
) -> int:
    """How many sources the pending shards hold; not counted further than just over `most`."""
    found = 0
    for name in sorted({shard for missing in todo.values() for shard in missing}):
        if found > most:
            break
        if (request := shards.retries.get(name)) is not None:
            found += sum(map(len, beginnings(request).values()))
        elif (path := shard_path(dataset / SOURCES, name)).exists():
            found += ShardMetadata.read(path).kept
    return found


def step_schema(plan: Plan, label: str) -> pa.Schema:
    return SOURCES_SCHEMA if label == SOURCES else plan.by_label[label].stage.table_schema


def step_folder(plan: Plan, dataset: Path, label: str) -> Path:
    return dataset / SOURCES if label == SOURCES else plan.by_label[label].folder(dataset)


def kept_rows(table: pa.Table) -> pa.Table:
    """The rows with neither a rejection nor an error."""
    return table.filter(pc.and_(pc.is_null(table["rejection"]), pc.is_null(table["error"])))


def without(table: pa.Table, key: str, keys: Collection[str]) -> pa.Table:
    """The rows of all other keys."""
    return table.filter(pc.invert(pc.is_in(table[key], pa.array(keys, pa.string()))))


def read_shard(folder: Path, shard: str, schema: pa.Schema, columns: list[str]) -> pa.Table:
    """Columns of one shard in the requested order; those that an older file lacks are null."""
    path = shard_path(folder, shard)
    with reading(path):
        file = pq.ParquetFile(path)
        present = [name for name in columns if name in file.schema_arrow.names]
        table = file.read(columns=present)
    for name in columns:
        if name not in present:
            kind = schema.field(name).type
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
    return table.select(columns)


def read_group(
    step: PlannedStep, dataset: Path, group: Sequence[str], columns: list[str]
) -> Iterator[tuple[str, pa.Table]]:
    """The key and other columns of shards of a step, oldest first; a key's newest row counts.

    `group` names a base shard and its retries in order; uncommitted ones are left out.
    """
    folder, schema = step.folder(dataset), step.stage.table_schema
    for shard in existing(folder, group):
        yield shard, read_shard(folder, shard, schema, [step.key, *columns])


@dataclass
class _JoinedRows:
    """Kept rows of one upstream step over a shard's whole group, looked up by key."""

    table: pa.Table
    index: dict[str, int]
    kept: dict[str, KeptRows]


def _load(
    plan: Plan,
    dataset: Path,
    label: str,
    shard: str,
    group: Sequence[str],
    key: str,
    columns: list[str],
) -> _JoinedRows:
    folder, schema = step_folder(plan, dataset, label), step_schema(plan, label)
    wanted = dict.fromkeys([key, "video_id", *columns, "rejection", "error"])
    names = [name for name in wanted if name in schema.names]
    parts: list[pa.Table] = []
    kept: dict[str, KeptRows] = {}
    for name in existing(folder, group):
        part = kept_rows(read_shard(folder, name, schema, names))
        unchanged = _unchanged(parts, part, key) if name == shard else frozenset()
        kept[name] = KeptRows.of(part, key, unchanged)
        parts.append(part)
    table = (
        pa.concat_tables(parts)
        if parts
        else pa.schema([schema.field(name) for name in names]).empty_table()
    )
    return _JoinedRows(table, {k: i for i, k in enumerate(table[key].to_pylist())}, kept)


def _unchanged(before: Sequence[pa.Table], part: pa.Table, key: str) -> frozenset[str]:
    """The keys of a shard's rows that are the same as in an earlier shard.

    So a retry for a part of a video, such as its subtitles, continues only where that part is
    read.
    """
    known: dict[str, list[dict[str, Any]]] = {}
    for table in before:
        known.update(_rows_by(table.filter(pc.is_in(table[key], part[key].combine_chunks())), key))
    now = _rows_by(part, key) if known else {}
    return frozenset(name for name, rows in now.items() if rows == known.get(name))


def _rows_by(table: pa.Table, key: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        found.setdefault(row[key], []).append(row)
    return found


def input_table(
    plan: Plan,
    step: PlannedStep,
    dataset: Path,
    shard: str,
    group: Sequence[str],
    *,
    only_keys: set[str] | None = None,
) -> pa.Table:
    """Input rows of a step for a shard: the key, then the columns that it reads.

    `group` names the shards of the same base, oldest first. `only_keys` is the retry's request, at
    a step where the retry begins: no shard has anything else new for it, unless the retry also
    begins at a step before it. For stages that want frames, `_video_id`, `_start_seconds` and
    `_end_seconds` are added.
    """
    unit = step.key
    # The clip columns that the frame reader needs.
    span = ["start_seconds", "end_seconds"] if step.stage.frames_picked() else []
    inputs = inputs_of(step, {label: step_schema(plan, label).names for label in step.inputs})
    joined = {
        label: _load(
            plan,
            dataset,
            label,
            shard,
            group,
            unit if label in inputs.of_keys else "video_id",
            [*(read.column for read in step.reads if read.label == label), *span],
        )
        for label in (*inputs.of_keys, *inputs.of_videos)
    }
    given = given_keys(inputs, {label: part.kept for label, part in joined.items()})
    keys = [
        key
        for key, shards in given.items()
        if shard in shards or (only_keys is not None and key in only_keys)
    ]
    base = inputs.of_keys[0]
    columns: dict[str, pa.Array | pa.ChunkedArray] = {unit: pa.array(keys, pa.string())}
    base_rows = joined[base].table.take(
        pa.array([joined[base].index[key] for key in keys], pa.int64())
    )
    videos = base_rows["video_id"].to_pylist() if "video_id" in base_rows.column_names else keys
    for read in step.reads:
        part = joined[read.label]
        look_up = keys if read.label in inputs.of_keys else videos
        rows = pa.array([part.index.get(key) for key in look_up], pa.int64())
        columns[read.shown_as] = part.table[read.column].take(rows)
    if step.stage.frames_picked():
        columns["_video_id"] = pa.array(videos, pa.string())
        columns["_start_seconds"] = base_rows["start_seconds"]
        columns["_end_seconds"] = base_rows["end_seconds"]
    return pa.table(columns)


class KeptFrameReader:
    """Adds kept frames to clips, one row group (one video) at a time, in shard order.

    If a video's frames were deleted, they are read from the video again by seeking.
    """

    def __init__(self, plan: Plan, dataset: Path, group: Sequence[str]) -> None:
        self._dataset = dataset
        self.decoded_frames = 0
        self._groups: dict[str, tuple[Path, pq.ParquetFile, int]] = {}
        self._cached: tuple[str, list[float], pa.Table] | None = None
        step = plan.frames_step()
        self._scan = step.stage if step is not None else None
        if step is not None:
            folder = step.folder(dataset, FRAMES)
            for name in existing(folder, group):
                path = shard_path(folder, name)
                with reading(path):
                    file = pq.ParquetFile(path)
                    for row_group in range(file.num_row_groups):
                        ids = file.read_row_group(row_group, columns=["video_id"]).column(0)
                        self._groups[ids[0].as_py()] = (path, file, row_group)
        self._videos = self._video_paths(plan, dataset, group)

    @staticmethod
    def _video_paths(
        plan: Plan, dataset: Path, group: Sequence[str]
    ) -> dict[str, tuple[str, float]]:
        """Each video's file, and the time in the video of the file's time 0."""
        step = next(
            (s for s in plan.steps if {"video_id", "path"} <= set(s.stage.table_schema.names)), None
        )
        if step is None:
            return {}
        schema = step.stage.table_schema
        columns = ["video_id", "path", *(name for name in CLOCK_COLUMNS if name in schema.names)]
        found = {}
        for _, table in read_group(step, dataset, group, [*columns, "rejection", "error"]):
            for row in kept_rows(table).select(columns).to_pylist():
                found[row["video_id"]] = (row["path"], file_zero_seconds(row))
        return found

    def attach(
        self, batch: pa.Table, picks: tuple[FramePick, ...]
    ) -> tuple[pa.Table, dict[int, RowFailed]]:
        """`batch` with its `frames` column; rows whose video can't be read again, by index.

        The batch carries `_video_id`, `_start_seconds` and `_end_seconds`.
        """
        videos = batch["_video_id"].to_pylist()
        starts = batch["_start_seconds"].to_pylist()
        ends = batch["_end_seconds"].to_pylist()
        frames: list[list[dict[str, Any]]] = [[] for _ in videos]
        failed: dict[int, RowFailed] = {}
        for video, rows in _runs(videos):
            spans = [(starts[row], ends[row]) for row in rows]
            try:
                if video in self._groups:
                    found = self._kept(video, spans, picks)
                else:
                    found = self._again(video, spans, picks)
            except RowFailed as error:
                failed.update(dict.fromkeys(rows, error))
                continue
            for row, clip_frames in zip(rows, found, strict=True):
                frames[row] = clip_frames
        column = pa.array(frames, pa.list_(FRAME))
        plain = batch.drop_columns(["_video_id", "_start_seconds", "_end_seconds"])
        return plain.append_column("frames", column), failed

    def _kept(
        self, video: str, spans: list[tuple[float, float]], picks: tuple[FramePick, ...]
    ) -> list[list[dict[str, Any]]]:
        if self._cached is None or self._cached[0] != video:
            path, file, group = self._groups[video]
            with reading(path):
                table = file.read_row_group(group, columns=["frame_number", "seconds", "jpeg"])
            self._cached = (video, table["seconds"].to_pylist(), table)
        _, seconds, table = self._cached
        return [
            table.take(pa.array(pick_frames(seconds, start, end, picks), pa.int64())).to_pylist()
            for start, end in spans
        ]

    def _again(
        self, video: str, spans: list[tuple[float, float]], picks: tuple[FramePick, ...]
    ) -> list[list[dict[str, Any]]]:
        from clipmill.stages.media.isolation.isolated import Limits, collect_isolated
        from clipmill.stages.media.read.seek import by_span, read_frames

        if video not in self._videos:
            return [[] for _ in spans]
        path, starts_at_seconds = self._videos[video]
        whole = Path(path) if Path(path).is_absolute() else self._dataset / path
        scan = self._scan

        def count(frames: int) -> None:
            self.decoded_frames += frames

        frames, (wanted, _) = collect_isolated(
            read_frames,
            whole,
            [(start, end, picks) for start, end in spans],
            getattr(scan, "frame_short_side", 384),
            getattr(scan, "frame_quality", 90),
            starts_at_seconds,
            limits=getattr(scan, "limits", Limits()),
            counted=count,
        )
        return by_span(frames, wanted)


def _runs(values: list[str]) -> Iterator[tuple[str, list[int]]]:
    """Each value with the rows that hold it, in order of first appearance."""
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    yield from rows.items()
