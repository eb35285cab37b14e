"""embed_clips: image embeddings of evenly spread frames of each clip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.schemas.tables import clip_table
from clipmill.stages.models.embedders import IMAGE_CALLS_AT_ONCE, ClipEmbedder, EmbedderStage
from clipmill.stages.models.vectors import STORED, as_column, unit
from clipmill.stages.protocol import (
    FramePick,
    ModelCheck,
    Rows,
    Stage,
    Transform,
    Uniform,
    Workspace,
)

EMBEDDINGS = clip_table(
    # k frames of d numbers each, L2-normalised, in time order.
    ("embeddings", STORED),
    ("embedding_seconds", pa.list_(pa.float64())),
)


SIMILARITY = "frame_similarity"


class EmbedClips(EmbedderStage):
    """Embeddings of length 1 of frames at the middles of equal parts of the clip, as half floats.

    A clip with fewer kept frames has fewer embeddings; one without any is a failure.
    """

    name: ClassVar[str] = "embed_clips"
    writes: ClassVar[pa.Schema] = EMBEDDINGS

    frames_per_clip: int = Field(4, ge=1, description="frames to embed per clip")
    frame_similarity: bool = Field(
        False,
        description="add a column of that name: the smallest cosine of neighbouring frames, "
        "null of a single one",
    )

    def columns_written(self) -> pa.Schema:
        more = [(SIMILARITY, pa.float32())] if self.frame_similarity else []
        return pa.schema([*self.writes, *more])

    @classmethod
    def table_of(cls, settings: Mapping[str, Any]) -> pa.Schema:
        return cls.model_construct(frame_similarity=bool(settings.get(SIMILARITY))).table_schema

    @property
    def calls_at_once(self) -> int:
        return IMAGE_CALLS_AT_ONCE

    def frames_picked(self) -> tuple[FramePick, ...]:
        return (Uniform(self.frames_per_clip),)

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        yield self.embedder_check(label, "image")

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        embedder = self.load("image")

        def transform(batch: pa.Table) -> pa.Table:
            return self._embedded(batch, embedder)

        yield transform

    def _embedded(self, batch: pa.Table, embedder: ClipEmbedder) -> pa.Table:
        keys, frames = batch["clip_id"].to_pylist(), batch["frames"].to_pylist()
        everything = embedder.embed_images([f["jpeg"] for clip in frames for f in clip or ()])
        ends = np.cumsum([len(clip or ()) for clip in frames])
        kept, seconds, vectors, failed = [], [], [], Rows(self)
        for key, clip, end in zip(keys, frames, ends, strict=True):
            own = everything[end - len(clip or ()) : end]
            if not clip:
                failed.fail(key, "bad_media", "no frame of this clip can be read")
            elif not np.isfinite(own).all():
                failed.fail(key, "model", f"{self.model} gave an embedding that is not finite")
            else:
                kept.append(key)
                seconds.append([frame["seconds"] for frame in clip])
                vectors.append(own)
        schema = self.table_schema
        made = {
            "clip_id": pa.array(kept, pa.string()),
            "embeddings": as_column(vectors),
            "embedding_seconds": pa.array(seconds, schema.field("embedding_seconds").type),
            SIMILARITY: pa.array([_least_cosine(own) for own in vectors], pa.float32()),
        }
        columns = [made[f.name] if f.name in made else pa.nulls(len(kept), f.type) for f in schema]
        return pa.concat_tables([pa.table(columns, schema=schema), failed.table()])


def _least_cosine(frames: np.ndarray) -> float | None:
    """The smallest cosine of neighbours; None of a single frame."""
    units = unit(frames)
    return float((units[1:] * units[:-1]).sum(axis=1).min()) if len(units) > 1 else None
