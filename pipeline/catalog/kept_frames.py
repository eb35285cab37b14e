"""Reads kept frames of a few clips from files of perhaps many gigabytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.dataset.shards import base_shard, committed_shards, shard_path
from clipmill.schemas.damage import DamagedFile, reading
from clipmill.schemas.sql_text import quoted
from clipmill.stages.media.read.sampling import pick_frames
from clipmill.stages.protocol import Uniform


@dataclass(frozen=True)
class ClipSpan:
    """A clip, and its span in the video."""

    clip_id: str
    video_id: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class KeptFrame:
    """One frame of a clip, and its time in the video."""

    seconds: float
    jpeg: bytes


def kept_frames(
    catalog: Catalog, spans: Iterable[ClipSpan], count: int
) -> Iterator[tuple[str, list[KeptFrame]]]:
    """At most `count` evenly spaced frames of each clip that has kept frames, with the clip's id.

    Frames are read one video at a time, and only those that are yielded.
    """
    frames = catalog.layout.frames
    by_video: dict[str, dict[str, ClipSpan]] = {}
    for span in spans:
        by_video.setdefault(span.video_id, {})[span.clip_id] = span
    if frames is None or frames.folder is None or not by_video:
        return
    for video_id, files in _files(catalog, Path(frames.folder), list(by_video)).items():
        left = by_video[video_id]
        for file in files:
            # Frames are a cache: a damaged file counts as missing.
            with contextlib.suppress(DamagedFile):
                for group in _groups(file, video_id):
                    for span in list(left.values()):
                        if found := _picked(group, video_id, span, count):
                            del left[span.clip_id]
                            yield span.clip_id, found


def _files(catalog: Catalog, folder: Path, video_ids: list[str]) -> dict[str, list[Path]]:
    """The frame files that may hold each video, newest first: the clip's shard names them."""
    split = next(step for step in catalog.layout.steps if step.role == "split_clips")
    catalog.make_views(f"steps.{split.step}")
    rows = catalog.connection.execute(
        f"SELECT DISTINCT video_id, shard FROM steps.{quoted(split.step)} "
        "WHERE list_contains(?, video_id)",
        [video_ids],
    ).fetchall()
    by_base: dict[str, list[str]] = {}
    for shard in committed_shards(folder):
        by_base.setdefault(base_shard(shard), []).append(shard)
    found: dict[str, list[Path]] = {}
    for video_id, base in sorted({(video_id, base_shard(shard)) for video_id, shard in rows}):
        found.setdefault(video_id, []).extend(
            shard_path(folder, shard) for shard in reversed(by_base.get(base, []))
        )
    return found


@dataclass(frozen=True)
class _Group:
    """A row group of a frame file."""

    path: Path
    file: pq.ParquetFile
    number: int

    def read(self, *columns: str) -> pa.Table:
        with reading(self.path):
            return self.file.read_row_group(self.number, columns=list(columns))


def _groups(path: Path, video_id: str) -> Iterator[_Group]:
    """The row groups that may hold a video, according to their footers."""
    try:
        with reading(path):
            file = pq.ParquetFile(path)
    except OSError:
        return  # deleted meanwhile
    with file:
        column = file.schema_arrow.names.index("video_id")
        for number in range(file.metadata.num_row_groups):
            statistics = file.metadata.row_group(number).column(column).statistics
            known = statistics is not None and statistics.has_min_max
            if not known or statistics.min <= video_id <= statistics.max:
                yield _Group(path, file, number)


def _picked(group: _Group, video_id: str, span: ClipSpan, count: int) -> list[KeptFrame]:
    table = group.read("video_id", "seconds").add_column(
        0, "row", pa.array(range(group.file.metadata.row_group(group.number).num_rows))
    )
    table = table.filter(pc.equal(table["video_id"], video_id)).sort_by("seconds")
    seconds = table["seconds"].to_pylist()
    if not seconds:
        return []
    chosen = pick_frames(seconds, span.start_seconds, span.end_seconds, (Uniform(count),))
    if not chosen:
        return []
    rows = [table["row"][n].as_py() for n in chosen]
    jpegs = group.read("jpeg")["jpeg"].take(rows).to_pylist()
    return [KeptFrame(seconds[n], jpeg or b"") for n, jpeg in zip(chosen, jpegs, strict=True)]
