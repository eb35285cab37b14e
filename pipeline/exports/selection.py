"""Selects the clips of an export: rows sorted by video and time, pinned in files, in units.

They are pinned because an export may be interrupted and resumed while the dataset grows. A unit is
a run of rows that holds whole videos, so that its worker opens each video once.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.catalog.user_sql import readable_errors
from clipmill.pipeline.dataset.shards import shard_name, write_json
from clipmill.pipeline.exports.columns import (
    DROPPED,
    MEDIA,
    SUBTITLE_WORDS,
    SUBTITLES,
    TEXT,
    Columns,
)
from clipmill.pipeline.exports.request import ExportRequest
from clipmill.schemas.sql_text import literal, quoted

NO_MEDIA = "without media"
_GONE = "gone.json"
BATCH_ROWS = 50_000
UNITS_A_FILE = 256
# A media unit is lost when its worker dies, so it is small; a unit without media is a row group of
# a table. Neither is ever smaller than a video.
MEDIA_UNIT_CLIPS, MEDIA_UNIT_VIDEOS = 64, 16
ROWS_UNIT_CLIPS = 20_000
YOUTUBE_ID = r"^[A-Za-z0-9_-]{11}$"


@dataclass(frozen=True)
class Unit:
    """A run of pinned rows: row group `group` of file `file`."""

    file: int
    group: int
    clips: int

    @property
    def place(self) -> str:
        """Its folder or file, below those of its file."""
        return f"{self.file:06d}/{self.group:03d}"


@dataclass(frozen=True)
class Selection:
    """The selection: clips requested, clips left out by reason, and the rest in units."""

    clips: int
    left_out: dict[str, int]
    units: tuple[Unit, ...]

    @property
    def selected(self) -> int:
        return sum(unit.clips for unit in self.units)


def rows_file(folder: Path, unit: Unit) -> Path:
    return folder / f"{shard_name(unit.file)}.parquet"


def read_rows(folder: Path, unit: Unit, columns: Sequence[str] | None = None) -> pa.Table:
    """The pinned rows of a unit, without those of videos that have been removed since."""
    gone = read_gone(folder).videos
    with pq.ParquetFile(rows_file(folder, unit)) as file:
        wanted = None if columns is None else list(columns)
        read = (
            wanted
            if wanted is None or not gone
            else list({**dict.fromkeys(wanted), "video_id": None})
        )
        table = file.read_row_group(unit.group, columns=read)
    if gone:
        table = table.filter(pc.invert(pc.is_in(table["video_id"], pa.array(sorted(gone)))))
    return table if columns is None else table.select(wanted)


@dataclass(frozen=True)
class Gone:
    """Videos that were removed from the dataset after their clips had been pinned.

    The pinned rows don't change; readers leave these videos out. `clips` says by place how many
    clips each unit lost.
    """

    videos: frozenset[str] = frozenset()
    clips: Mapping[str, int] = field(default_factory=dict)


def read_gone(folder: Path) -> Gone:
    try:
        found = json.loads((folder / _GONE).read_text("utf-8"))
    except FileNotFoundError:
        return Gone()
    return Gone(frozenset(found["videos"]), found["clips"])


def write_gone(folder: Path, gone: Gone) -> None:
    write_json(folder / _GONE, {"videos": sorted(gone.videos), "clips": dict(gone.clips)})


def load_selection(folder: Path) -> Selection | None:
    """The selection that is pinned in a folder, if one is."""
    try:
        found = json.loads((folder / "selection.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    pinned = [
        Unit(file, group, clips)
        for file, groups in enumerate(found["units"])
        for group, clips in enumerate(groups)
    ]
    gone = read_gone(folder).clips
    units = tuple(
        replace(unit, clips=left)
        for unit in pinned
        if (left := unit.clips - gone.get(unit.place, 0))
    )
    left_out = dict(found["left_out"])
    if lost := sum(gone.values()):
        left_out["removed"] = left_out.get("removed", 0) + lost
    return Selection(found["clips"], left_out, units)


def select_clips(
    catalog: Catalog,
    request: ExportRequest,
    columns: Columns,
    folder: Path,
    beside: Mapping[str, Any],
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Selection:
    """Pins the rows of the selected clips in `folder`, which appears atomically.

    `beside` is stored with them. Memory is bounded: DuckDB sorts the rows, spilling to disk, and
    they are joined with the data about their videos by merging both streams.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    left_out: Counter[str] = Counter()
    facts = _Facts(_reader(catalog, _facts_query(columns)))
    filtered = _filtered(_reader(catalog, _clips_query(request, columns)), request, left_out)
    groups: list[list[int]] = []
    writer: pq.ParquetWriter | None = None
    try:
        for together in _units(facts.beside(filtered), request):
            rows = _without_others(together, request, left_out)
            if not rows.num_rows:
                continue
            if writer is None or len(groups[-1]) == UNITS_A_FILE:
                if writer is not None:
                    writer.close()
                path = temporary / f"{shard_name(len(groups))}.parquet"
                writer = pq.ParquetWriter(path, rows.schema, compression="zstd")
                groups.append([])
            writer.write_table(rows, row_group_size=rows.num_rows)
            groups[-1].append(rows.num_rows)
            on_rows(rows.num_rows)
    finally:
        if writer is not None:
            writer.close()
    seen = sum(map(sum, groups)) + sum(left_out.values())
    asked = _without_those_gone(catalog, request, seen, left_out)
    counted = {reason: count for reason, count in left_out.items() if count}
    write_json(
        temporary / "selection.json",
        {"clips": asked, "left_out": counted, "units": groups, **beside},
    )
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    found = load_selection(folder)
    assert found is not None  # just written
    return found


def _without_those_gone(
    catalog: Catalog, request: ExportRequest, seen: int, left_out: Counter[str]
) -> int:
    """Counts all requested clips, and, by reason, those that the query did not return.

    `seen` is how many it returned. A run or removal may have changed the numbers since, so they
    are clamped to zero.
    """
    there = seen
    if request.where is not None:
        (there,) = catalog.execute(f"SELECT count(*) FROM clips{_members(request)}").fetchall()[0]
        left_out["where"] = max(0, there - seen)
    if request.subset is not None:
        named = literal(request.subset)
        clips, removed = catalog.execute(
            "SELECT count(*), count(*) FILTER (video_id IN (SELECT video_id FROM removed)) "
            f"FROM subset_clips WHERE name = {named}"
        ).fetchall()[0]
        left_out["removed"] = removed
        left_out["not in the catalog"] = max(0, clips - removed - there)
    return seen + sum(left_out[reason] for reason in ("where", "removed", "not in the catalog"))


def _members(request: ExportRequest) -> str:
    """A join that keeps a subset's clips."""
    if request.subset is None:
        return ""
    return (
        " SEMI JOIN (SELECT clip_id FROM subset_clips "
        f"WHERE name = {literal(request.subset)}) AS _members USING (clip_id)"
    )


def _clips_query(request: ExportRequest, columns: Columns) -> str:
    picked = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in columns.clips.items())
    condition = "" if request.where is None else f" WHERE ({request.where}\n)"
    rows = f"SELECT * FROM clips{condition}"
    return (
        f"SELECT {picked} FROM ({rows}){_members(request)} "
        "ORDER BY video_id, start_seconds, clip_id"
    )


def _facts_query(columns: Columns) -> str:
    picked = "".join(f", {sql} AS {quoted(name)}" for name, sql in columns.facts.items())
    return f"SELECT video_id{picked} FROM internal.known_videos ORDER BY video_id"


def _reader(catalog: Catalog, query: str) -> pa.RecordBatchReader:
    with readable_errors():
        catalog.execute(f"SELECT * FROM ({query}) LIMIT 0")  # makes the views that it names
        # `execute` would hold all rows of a result in memory at once.
        return catalog.connection.cursor().sql(query).to_arrow_reader(BATCH_ROWS)


def _filtered(
    reader: pa.RecordBatchReader, request: ExportRequest, left_out: Counter[str]
) -> Iterator[pa.Table]:
    """The rows that have a text, if one is needed, and that random dropping keeps."""
    while True:
        with readable_errors():  # of --where, for example
            batch = next(reader, None)
        if batch is None:
            return
        batch = pa.Table.from_batches([batch])
        if MEDIA in batch.column_names:
            has_media = pc.equal(batch[MEDIA], "present")
            left_out[NO_MEDIA] += batch.num_rows - (pc.sum(has_media).as_py() or 0)
            batch = batch.filter(has_media).drop_columns([MEDIA])
        if not request.keeps_uncaptioned:
            there = pc.fill_null(
                pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(batch[TEXT])), 0), False
            )
            left_out["no caption"] += batch.num_rows - (pc.sum(there).as_py() or 0)
            batch = batch.filter(there)
        if DROPPED in batch.column_names:
            left_out["dropped at random"] += pc.sum(batch[DROPPED]).as_py() or 0
            batch = batch.filter(pc.invert(batch[DROPPED])).drop_columns([DROPPED])
        if batch.num_rows:
            yield batch


def _without_others(rows: pa.Table, request: ExportRequest, left_out: Counter[str]) -> pa.Table:
    """Keeps videos of YouTube only, as InternVid's format requires."""
    if request.format != "internvid":
        return rows
    known = pc.and_kleene(
        pc.equal(pc.utf8_lower(rows["extractor"]), "youtube"),
        pc.match_substring_regex(rows["source_id"], YOUTUBE_ID),
    )
    known = pc.fill_null(known, False)
    left_out["not from YouTube"] += rows.num_rows - (pc.sum(known).as_py() or 0)
    return rows.filter(known)


class _Facts:
    """Data about videos, in order of their ids, joined to sorted rows of clips."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self._reader = reader
        self._window = reader.schema.empty_table()
        self._last: str | None = None

    def beside(self, clips: Iterator[pa.Table]) -> Iterator[pa.Table]:
        before: str | None = None
        for batch in clips:
            rows = batch
            ids = batch["video_id"].combine_chunks()
            self._read_up_to(ids[-1].as_py(), ids[0].as_py())
            places = pc.index_in(ids, self._window["video_id"].combine_chunks())
            for name in self._window.column_names[1:]:
                column = self._window[name].combine_chunks()
                at = places
                if name in (SUBTITLES, SUBTITLE_WORDS):
                    # These are long, and the same for all clips of a video: only the first clip
                    # has them.
                    at = pc.if_else(_starts(ids, before), places, pa.scalar(None, pa.int32()))
                rows = rows.append_column(name, column.take(at))
            before = ids[-1].as_py()
            yield rows

    def _read_up_to(self, last: str, first: str) -> None:
        parts = [self._window.filter(pc.greater_equal(self._window["video_id"], first))]
        while self._last is None or self._last < last:
            batch = next(self._reader, None)
            if batch is None:
                break
            self._last = batch.column("video_id")[-1].as_py()
            table = pa.Table.from_batches([batch])
            parts.append(table.filter(pc.greater_equal(table["video_id"], first)))
        self._window = pa.concat_tables(parts)


def _starts(ids: pa.Array, before: str | None) -> pa.Array:
    """Whether a row is the first of its video."""
    first = pa.array([ids[0].as_py() != before])
    if len(ids) == 1:
        return first
    return pa.concat_arrays([first, pc.not_equal(ids[1:], ids[:-1])])


def _units(rows: Iterator[pa.Table], request: ExportRequest) -> Iterator[pa.Table]:
    """Groups whole videos up to the bounds; a video beyond them is a unit by itself."""
    cutting = request.cut is not None
    most_clips = MEDIA_UNIT_CLIPS if cutting else ROWS_UNIT_CLIPS
    most_videos = MEDIA_UNIT_VIDEOS if cutting else ROWS_UNIT_CLIPS
    waiting: list[pa.Table] = []
    for batch in itertools.chain(rows, [None]):
        if batch is not None:
            waiting.append(batch)
        if not waiting or (batch is not None and sum(map(len, waiting)) < most_clips):
            continue
        table = pa.concat_tables(waiting).combine_chunks()
        starts = np.flatnonzero(_starts(table["video_id"].combine_chunks(), None))
        if batch is None:
            starts = np.append(starts, table.num_rows)
        done = 0
        # Until the end, the last video may continue in the next batch.
        for at in _ends(starts, most_clips, most_videos):
            yield table.slice(done, at - done)
            done = at
        waiting = [table.slice(done)]
        if batch is None and done < table.num_rows:
            yield waiting[0]


def _ends(starts: np.ndarray, most_clips: int, most_videos: int) -> Iterator[int]:
    """Where units end among the starts of videos; rows after the last start wait."""
    first, videos = 0, 0
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if videos and (end - first > most_clips or videos == most_videos):
            yield begin
            first, videos = begin, 0
        videos += 1
        if end - first >= most_clips or videos == most_videos:
            yield end
            first, videos = end, 0
