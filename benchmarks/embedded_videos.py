"""Stages that make clips with embeddings out of nothing, for benchmarks of what reads embeddings.

Vectors are distributed as in `benchmarks.near`: around a common direction, half of the rest in
topics of very unequal sizes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import pyarrow as pa

from clipmill.schemas.ids import clip_id
from clipmill.stages.models.vectors import STORED
from clipmill.stages.protocol import Stage, Transform, Workspace, resource

TOPICS = 500


class ListVideos(Stage):
    """A video for each source."""

    name: ClassVar[str] = "list_videos"
    key: ClassVar[str] = "source_key"
    reads: ClassVar[tuple[str, ...]] = ("sources.url",)
    writes: ClassVar[pa.Schema] = pa.schema([("video_id", pa.string())])

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        def transform(batch: pa.Table) -> pa.Table:
            names = [f"made-v{url.rpartition('/')[2]}" for url in batch["url"].to_pylist()]
            return pa.table({"source_key": batch["source_key"], "video_id": names})

        yield transform


class MakeClips(Stage):
    """Clips of a second each."""

    name: ClassVar[str] = "make_clips"
    key: ClassVar[str] = "video_id"
    reads: ClassVar[tuple[str, ...]] = ("list_videos.source_key",)
    writes: ClassVar[pa.Schema] = pa.schema([("clip_id", pa.string())])

    clips: int = 1000

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        def transform(batch: pa.Table) -> pa.Table:
            videos = np.repeat(batch["video_id"].to_pylist(), self.clips)
            seconds = np.tile(np.arange(self.clips), batch.num_rows).tolist()
            ids = [clip_id(v, t, t + 1) for v, t in zip(videos.tolist(), seconds, strict=True)]
            return pa.table({"video_id": videos, "clip_id": ids})

        yield transform


class EmbedClipsAtRandom(Stage):
    """One vector per clip."""

    name: ClassVar[str] = "embed_at_random"
    reads: ClassVar[tuple[str, ...]] = ("make_clips.clip_id",)
    writes: ClassVar[pa.Schema] = pa.schema([("embeddings", STORED)])

    dimensions: int = 256
    batch_rows: int = resource(10_000)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        def transform(batch: pa.Table) -> pa.Table:
            seed = hashlib.sha256(batch["clip_id"][0].as_py().encode()).digest()[:8]
            rng = np.random.default_rng(int.from_bytes(seed, "big"))
            rows = vectors(rng, batch.num_rows, self.dimensions)
            return pa.table({"clip_id": batch["clip_id"], "embeddings": one_frame_each(rows)})

        yield transform


def vectors(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """So many vectors of length 1, as half floats."""
    world = np.random.default_rng(0)
    middle, topics = _unit(world.normal(size=d)), _unit(world.normal(size=(TOPICS, d)))
    own = _unit(rng.standard_normal((n, d), np.float32))
    made = np.sqrt(0.5) * middle + 0.5 * topics[rng.zipf(1.3, n) % TOPICS] + 0.5 * own
    return np.asarray(_unit(made), np.float16)


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def one_frame_each(rows: np.ndarray) -> pa.Array:
    n, d = rows.shape
    inner = pa.ListArray.from_arrays(
        np.arange(0, n * d + 1, d, dtype=np.int32), pa.array(rows.reshape(-1))
    )
    return pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32), inner)
