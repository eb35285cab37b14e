"""Stages that stand in for downloads, videos and an accelerator, for `benchmarks.feed`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.schemas.ids import clip_id
from clipmill.schemas.tables import TEXT_AT, clip_table
from clipmill.stages.embed_clips import EmbedClips
from clipmill.stages.models.batch_size import BatchSize
from clipmill.stages.models.image_queue import ImageQueue
from clipmill.stages.protocol import Rows, Stage, Transform, Workspace, resource
from clipmill.stages.scan_videos import FRAMES

CLIP_SECONDS = 4.0


class NameVideos(Stage):
    """A video's id for each source, without a download."""

    name: ClassVar[str] = "name_videos"
    key: ClassVar[str] = "source_key"
    reads: ClassVar[tuple[str, ...]] = ("sources.url",)
    writes: ClassVar[pa.Schema] = pa.schema([("video_id", pa.string())])

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        def transform(batch: pa.Table) -> pa.Table:
            rows = Rows(self)
            for key, url in zip(
                *batch.select(["source_key", "url"]).to_pydict().values(), strict=True
            ):
                rows.keep(key, video_id="v" + url.rpartition("/")[2])
            return rows.table()

        yield transform


class MakeClips(Stage):
    """Clips of each video, and kept frames: the same few pictures again and again."""

    name: ClassVar[str] = "make_clips"
    key: ClassVar[str] = "video_id"
    reads: ClassVar[tuple[str, ...]] = ("name_videos.video_id",)
    writes: ClassVar[pa.Schema] = pa.schema(
        [("clip_id", pa.string()), ("start_seconds", pa.float64()), ("end_seconds", pa.float64())]
    )
    more_tables: ClassVar[dict[str, pa.Schema]] = {"frames": FRAMES}

    clips: int = 32
    frames_per_clip: int = 4
    pictures: str
    batch_rows: int = resource(1)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        pictures = [path.read_bytes() for path in sorted(Path(self.pictures).glob("*.jpg"))]

        def transform(batch: pa.Table) -> dict[str, pa.Table]:
            (video,) = batch["video_id"].to_pylist()
            rows = Rows(self)
            for number in range(self.clips):
                start = number * CLIP_SECONDS
                end = start + CLIP_SECONDS
                rows.keep(
                    video, clip_id=clip_id(video, start, end), start_seconds=start, end_seconds=end
                )
            count = self.clips * self.frames_per_clip
            step = CLIP_SECONDS / self.frames_per_clip
            frames = [
                {
                    "video_id": video,
                    "frame_number": at,
                    "seconds": (at + 0.5) * step,
                    "jpeg": pictures[at % len(pictures)],
                }
                for at in range(count)
            ]
            return {self.name: rows.table(), "frames": pa.Table.from_pylist(frames, schema=FRAMES)}

        yield transform


class WriteCaptions(Stage):
    """Captions for summaries, without a captioner."""

    name: ClassVar[str] = "write_captions"
    reads: ClassVar[tuple[str, ...]] = ("split_clips.start_seconds",)
    writes: ClassVar[pa.Schema] = clip_table(
        ("caption_coarse", pa.string()), ("captions_fine", pa.list_(TEXT_AT))
    )

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        def transform(batch: pa.Table) -> pa.Table:
            rows = Rows(self)
            for clip in batch["clip_id"].to_pylist():
                fine = [{"seconds": float(i), "text": f"moment {i} of {clip}"} for i in range(4)]
                rows.keep(clip, caption_coarse=f"the clip {clip}", captions_fine=fine)
            return rows.table()

        yield transform


class _SlowPictures:
    """A preparation that takes a fixed time, and no processor."""

    size = (8, 8)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def into(self, jpeg: bytes, out: np.ndarray) -> None:
        time.sleep(self._seconds)
        out[:] = len(jpeg) % 251


class _StandIn:
    """An embedder whose model takes a time per image, and is timed."""

    def __init__(self, stage: EmbedStandIn) -> None:
        self._rate = stage.images_per_second
        self._lock = threading.Lock()
        self._device = threading.Lock()
        self.busy_seconds, self.images = 0.0, 0
        self.began = self.ended = 0.0
        self._queue = ImageQueue(
            _SlowPictures(stage.decode_seconds),
            self._compute,
            BatchSize(stage.batch_images),
            threads=round(stage.cpus),
            ahead=True,
        )

    def _compute(self, pixels: Any) -> np.ndarray:
        with self._device:  # one batch at a time, as on a GPU
            began = time.monotonic()
            self.began = self.began or began
            time.sleep(len(pixels) / self._rate)
            self.ended = time.monotonic()
            self.busy_seconds += self.ended - began
            self.images += len(pixels)
        return np.full((len(pixels), 16), 0.25, np.float32)

    def embed_images(self, jpegs: list[bytes]) -> np.ndarray:
        return np.stack(self._queue.rows(jpegs))


class EmbedStandIn(EmbedClips):
    """embed_clips with a stand-in for its model; writes how long that was busy to `report`."""

    name: ClassVar[str] = "embed_stand_in"
    images_per_second: float = resource(2500.0)
    decode_seconds: float = resource(0.0029)
    report: str = resource("report.txt")
    cpus: float = resource(8.0, gt=0)
    batch_images: int = resource(32)
    model: Any = Field(None)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        embedder: Any = _StandIn(self)
        yield lambda batch: self._embedded(batch, embedder)
        Path(self.report).write_text(
            f"{embedder.busy_seconds} {embedder.ended - embedder.began} {embedder.images}"
        )
