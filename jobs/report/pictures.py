"""Strips of kept frames for sample clips, as small JPEGs."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.catalog import Catalog
from pipeline.shards import base_shard, committed_shards, shard_path
from schemas.damage import DamagedFile, reading
from schemas.errors import RowFailed
from schemas.sql_text import quoted

if TYPE_CHECKING:
    import numpy as np

FRAMES = 3
FRAME_HEIGHT = 126
WIDEST_FRAME = 224
GAP = 2
STRIP_BYTES = 34_000
_QUALITIES = (76, 60, 45, 30, 15, 5)


@dataclass(frozen=True)
class Strip:
    """A few frames of a clip side by side."""

    data: str
    width: int
    height: int
    seconds: tuple[float, ...]
    """When the frames are, in the video."""


@dataclass(frozen=True)
class Span:
    """Where a clip lies."""

    clip_id: str
    video_id: str
    start_seconds: float
    end_seconds: float


def make_strips(catalog: Catalog, spans: Iterable[Span]) -> dict[str, Strip]:
    """By clip id the strips of those clips that have kept frames that can be read.

    Frames are read of one video at a time, and only those that are shown are decoded.
    """
    frames = catalog.layout.frames
    by_video: dict[str, list[Span]] = {}
    for span in spans:
        by_video.setdefault(span.video_id, []).append(span)
    if frames is None or frames.folder is None or not by_video:
        return {}
    strips: dict[str, Strip] = {}
    for video_id, files in _files(catalog, Path(frames.folder), list(by_video)).items():
        for file in files:
            # Frames are a cache: a damaged file is as one that is gone.
            with contextlib.suppress(DamagedFile):
                for group in _groups(file, video_id):
                    for span in by_video[video_id]:
                        strip = None if span.clip_id in strips else _strip(group, video_id, span)
                        if strip is not None:
                            strips[span.clip_id] = strip
    return strips


def _files(catalog: Catalog, folder: Path, video_ids: list[str]) -> dict[str, list[Path]]:
    """The frames' files that may hold each video, the newest first: the clip's shard names them."""
    split = next(step for step in catalog.layout.steps if step.name == "split_clips")
    rows = catalog.execute(
        f"SELECT DISTINCT video_id, shard FROM steps.{quoted(split.step)} "
        "WHERE list_contains(?, video_id)", [video_ids]).fetchall()
    by_base: dict[str, list[str]] = {}
    for shard in committed_shards(folder):
        by_base.setdefault(base_shard(shard), []).append(shard)
    found: dict[str, list[Path]] = {}
    for video_id, base in sorted({(video_id, base_shard(shard)) for video_id, shard in rows}):
        found.setdefault(video_id, []).extend(
            shard_path(folder, shard) for shard in reversed(by_base.get(base, [])))
    return found


@dataclass(frozen=True)
class _Group:
    """A row group of a frames' file."""

    path: Path
    file: pq.ParquetFile
    number: int

    def read(self, *columns: str) -> pa.Table:
        with reading(self.path):
            return self.file.read_row_group(self.number, columns=list(columns))


def _groups(path: Path, video_id: str) -> Iterator[_Group]:
    """The row groups that may hold a video, by their footers."""
    try:
        with reading(path):
            file = pq.ParquetFile(path)
    except OSError:
        return  # dropped meanwhile
    with file:
        column = file.schema_arrow.names.index("video_id")
        for number in range(file.metadata.num_row_groups):
            statistics = file.metadata.row_group(number).column(column).statistics
            known = statistics is not None and statistics.has_min_max
            if not known or statistics.min <= video_id <= statistics.max:
                yield _Group(path, file, number)


def _strip(group: _Group, video_id: str, span: Span) -> Strip | None:
    from stages.media.sampling import pick_frames
    from stages.protocol import Uniform

    table = group.read("video_id", "seconds").add_column(
        0, "row", pa.array(range(group.file.metadata.row_group(group.number).num_rows)))
    table = table.filter(pc.equal(table["video_id"], video_id)).sort_by("seconds")
    seconds = table["seconds"].to_pylist()
    if not seconds:
        return None
    chosen = pick_frames(seconds, span.start_seconds, span.end_seconds, (Uniform(FRAMES),))
    if not chosen:
        return None
    rows = [table["row"][n].as_py() for n in chosen]
    jpegs = group.read("jpeg")["jpeg"].take(rows).to_pylist()
    images = []
    for jpeg, at in zip(jpegs, chosen, strict=True):
        image = _thumbnail(jpeg)
        if image is not None:
            images.append((image, seconds[at]))
    if not images:
        return None
    return _encode([image for image, _ in images], tuple(at for _, at in images))


def _thumbnail(jpeg: bytes | None) -> np.ndarray | None:
    from stages.media.images import decode_jpeg, fit

    try:
        image = decode_jpeg(jpeg or b"")
    except RowFailed:
        return None
    height, width = image.shape[:2]
    scaled = max(24, min(WIDEST_FRAME, round(FRAME_HEIGHT * width / height)))
    return fit(image, (FRAME_HEIGHT, scaled), "pad")


def _encode(images: list[np.ndarray], seconds: tuple[float, ...]) -> Strip:
    import numpy as np

    from stages.media.keeper import encode_jpeg

    gap = np.full((FRAME_HEIGHT, GAP, 3), 255, np.uint8)
    parts = [part for image in images for part in (gap, image)][1:]
    strip = np.ascontiguousarray(np.concatenate(parts, axis=1)[:, :, ::-1])
    data = b""
    for quality in _QUALITIES:
        data = encode_jpeg(strip, quality)
        if len(data) <= STRIP_BYTES:
            break
    return Strip(base64.b64encode(data).decode("ascii"), strip.shape[1], strip.shape[0], seconds)
