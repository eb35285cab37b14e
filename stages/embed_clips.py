"""embed_clips: image embeddings of evenly spread frames of each clip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from clipmill.schemas.tables import clip_table
from clipmill.stages.models.embedders import IMAGE_CALLS_AT_ONCE, EmbedderStage
from clipmill.stages.models.frame_rows import SIMILARITY, embedded_frames
from clipmill.stages.models.vectors import STORED
from clipmill.stages.protocol import FramePick, ModelCheck, Stage, Transform, Uniform, Workspace

EMBEDDINGS = clip_table(
    # k frames of d numbers each, L2-normalised, in time order.
    ("embeddings", STORED),
    ("embedding_seconds", pa.list_(pa.float64())),
)


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
            return embedded_frames(self, batch, embedder, self.model)

        yield transform
