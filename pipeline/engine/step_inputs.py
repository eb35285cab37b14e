"""Assembles one step's input rows for one shard: keys, joined columns, kept frames.

Which keys: those that every required upstream step kept, and that at least one upstream file of
this very shard brings; a file of videos brings all their clips. So a retry shard holds just the
rows that are new or known better in it, wherever in the recipe it began; if a key is in
several shards of a group, the newest counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.shards import existing, shard_path
from clipmill.pipeline.recipes.plan import Plan, Step
from clipmill.schemas.clocks import CLOCK_COLUMNS, file_zero_seconds
from clipmill.schemas.damage import reading
from clipmill.schemas.errors import RowFailed
from clipmill.schemas.folders import FRAMES, SOURCES
from clipmill.schemas.tables import FRAME
from clipmill.schemas.tables import SOURCES as SOURCES_SCHEMA
from clipmill.stages.media.read.sampling import FramePick, pick_frames


def step_schema(plan: Plan, label: str) -> pa.Schema:
    return SOURCES_SCHEMA if label == SOURCES else plan.by_label[label].stage.table_schema


def step_folder(plan: Plan, dataset: Path, label: str) -> Path:
    return dataset / SOURCES if label == SOURCES else plan.by_label[label].folder(dataset)


def kept_rows(table: pa.Table) -> pa.Table:
    """The rows with neither a rejection nor an error."""
    return table.filter(pc.and_(pc.is_null(table["rejection"]), pc.is_null(table["error"])))


def read_shard(folder: Path, shard: str, schema: pa.Schema, columns: list[str]) -> pa.Table:
    """Columns of one shard in the order asked for; those that an older file lacks are null."""
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


@dataclass
class _Joined:
    """Kept rows of one upstream step over a shard's whole group, looked up by key.

    `new_keys` are those that this very shard has, but for rows that say here what they did.
    """

    table: pa.Table
    index: dict[str, int]
    new_keys: list[str]


def _load(
    plan: Plan,
    dataset: Path,
    label: str,
    shard: str,
    group: Sequence[str],
    key: str,
    columns: list[str],
    unit: str,
) -> _Joined:
    folder, schema = step_folder(plan, dataset, label), step_schema(plan, label)
    wanted = list(dict.fromkeys([key, unit, *columns, "rejection", "error"]))
    wanted = [name for name in wanted if name in schema.names]
    parts: list[pa.Table] = []
    new_keys: list[str] = []
    for name in existing(folder, group):
        part = kept_rows(read_shard(folder, name, schema, wanted))
        if name == shard:
            new_keys = _changed(parts, part, key)
        parts.append(part)
    table = (
        pa.concat_tables(parts)
        if parts
        else pa.schema([schema.field(name) for name in wanted]).empty_table()
    )
    keys = table[key].to_pylist()
    return _Joined(table, {k: i for i, k in enumerate(keys)}, new_keys)


def _changed(before: Sequence[pa.Table], part: pa.Table, key: str) -> list[str]:
    """The keys of a shard's rows, without those whose row is as it was in a shard before.

    So a retry for a part of a video, its subtitles say, goes on only where that part is read.
    """
    keys: list[str] = part[key].to_pylist()
    known: dict[str, list[dict[str, Any]]] = {}
    for table in before:
        found: dict[str, list[dict[str, Any]]] = {}
        for row in table.filter(pc.is_in(table[key], part[key].combine_chunks())).to_pylist():
            found.setdefault(row[key], []).append(row)
        known.update(found)
    if not known:
        return keys
    now: dict[str, list[dict[str, Any]]] = {}
    for row in part.to_pylist():
        now.setdefault(row[key], []).append(row)
    return [name for name in keys if now[name] != known.get(name)]


def _join_key(schema: pa.Schema, unit: str) -> str:
    """The column by which a unit's rows are looked up in a table."""
    if unit in schema.names:
        return unit
    return "video_id" if "video_id" in schema.names else "source_key"


def input_table(
    plan: Plan,
    step: Step,
    dataset: Path,
    shard: str,
    group: Sequence[str],
    *,
    only_keys: set[str] | None = None,
) -> pa.Table:
    """Input rows of a step for a shard: the key, then the columns that it reads.

    `group` names the shards of the same base, oldest first. `only_keys` is the retry's request,
    at the step where the retry begins. For stages that want frames, `_video_id`, `_start_seconds`
    and `_end_seconds` are added.
    """
    unit = step.stage.key
    reads_of: dict[str, list[Any]] = {}
    for label in step.upstream or (SOURCES,):
        reads_of.setdefault(label, [])
    for read in step.reads:
        reads_of.setdefault(read.label, []).append(read)
    required = {
        label
        for label, reads in reads_of.items()
        if not reads or any(not read.optional for read in reads)
    }
    # What the frame reader needs of the clips.
    span = ["start_seconds", "end_seconds"] if step.stage.frames_picked() else []
    extra = ["video_id", *span]
    joined = {
        label: _load(
            plan,
            dataset,
            label,
            shard,
            group,
            _join_key(step_schema(plan, label), unit),
            [read.column for read in reads] + extra,
            unit,
        )
        for label, reads in reads_of.items()
    }
    at_unit = [label for label in joined if unit in step_schema(plan, label).names]
    base = at_unit[0]
    keys = _todo(joined, at_unit, required, base, unit)
    if "video_id" in joined[base].table.column_names:
        keys = _whose_video_is_kept(keys, joined, required - set(at_unit), base)
    if only_keys is not None:
        keys = [key for key in keys if key in only_keys]
    else:
        keys = _brought(keys, joined, at_unit, base)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {unit: pa.array(keys, pa.string())}
    base_rows = joined[base].table.take(
        pa.array([joined[base].index[key] for key in keys], pa.int64())
    )
    videos = base_rows["video_id"].to_pylist() if "video_id" in base_rows.column_names else keys
    for label, reads in reads_of.items():
        look_up = keys if label in at_unit else videos
        part = joined[label]
        rows = part.table.take(pa.array([part.index.get(key) for key in look_up], pa.int64()))
        for read in reads:
            columns[read.shown_as] = rows[read.column]
    if step.stage.frames_picked():
        columns["_video_id"] = pa.array(videos, pa.string())
        columns["_start_seconds"] = base_rows["start_seconds"]
        columns["_end_seconds"] = base_rows["end_seconds"]
    return pa.table(columns)


def _todo(
    joined: dict[str, _Joined], at_unit: list[str], required: set[str], base: str, unit: str
) -> list[str]:
    """Keys that all required upstream steps kept, in the base's order, each once."""
    order = dict.fromkeys(joined[base].table[unit].to_pylist())
    others = [joined[label].index for label in at_unit if label in required and label != base]
    return [key for key in order if key is not None and all(key in index for index in others)]


def _whose_video_is_kept(
    keys: list[str], joined: dict[str, _Joined], required: set[str], base: str
) -> list[str]:
    """Without the clips of videos that a required video-level stage has not kept."""
    if not required:
        return keys
    videos = joined[base].table["video_id"].to_pylist()
    return [
        key
        for key in keys
        if all(videos[joined[base].index[key]] in joined[label].index for label in required)
    ]


def _brought(
    keys: list[str], joined: dict[str, _Joined], at_unit: list[str], base: str
) -> list[str]:
    """The keys that this very shard has something new for, if only about their video."""
    new = {key for label in at_unit for key in joined[label].new_keys}
    new_videos = {
        video for label in joined.keys() - set(at_unit) for video in joined[label].new_keys
    }
    if not new_videos or "video_id" not in joined[base].table.column_names:
        return [key for key in keys if key in new]
    videos = joined[base].table["video_id"].to_pylist()
    return [key for key in keys if key in new or videos[joined[base].index[key]] in new_videos]


class KeptFrameReader:
    """Adds kept frames to clips, a row group (one video) at a time, in shard order.

    If a video's frames are gone they are read from the video again by seeking.
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
        for name in existing(step.folder(dataset), group):
            table = read_shard(step.folder(dataset), name, schema, [*columns, "rejection", "error"])
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
