"""classify_frames: how likely a clip's frames are of a class, by any image classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.schemas.tables import SCORE_AT, clip_table
from clipmill.stages.frame_stage import scores_at
from clipmill.stages.picture_stage import Labels, PictureStage
from clipmill.stages.protocol import ModelCheck, Stage, Transform, Workspace
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.classifiers import ImageClassifier
    from clipmill.stages.models.generation import ModelPlacement

CLASSES = clip_table(
    ("class_score", pa.float32()),
    ("class_score_reason", pa.string()),
    # In time order.
    ("class_frames", pa.list_(SCORE_AT)),
)
_OVER_FRAMES: dict[str, Callable[[list[float]], Any]] = {
    "max": np.max,
    "mean": np.mean,
    "min": np.min,
}


class ClassifyFrames(PictureStage):
    """The probability of a class, by any image classifier of transformers, from a clip's frames.

    For NSFW, watermarks, technical quality, drawings and the like. Each classifier gets a label of
    its own in the recipe, which is the name of its column in clips; two classifiers' scores are on
    different scales. Frames are prepared by the model's own image processor, and its outputs become
    probabilities as in transformers' own pipeline.
    """

    name: ClassVar[str] = "classify_frames"
    writes: ClassVar[pa.Schema] = CLASSES
    score: ClassVar[str | None] = "class_score"

    model: ModelReference = Field(
        description="hub id or folder of an image classifier of transformers, e.g. "
        "Falconsai/nsfw_image_detection"
    )
    label: Labels = Field(
        min_length=1,
        description="class whose probability is the score, by its name or number in the model's "
        "id2label; of several, the probabilities are added, or, where classes don't exclude each "
        "other, the largest counts",
    )
    over_frames: Literal["max", "mean", "min"] = Field(
        "max",
        description="how the frames' probabilities become the clip's: max finds the worst frame "
        "where the class is unwanted, min where it is wanted",
    )
    activation: Literal["auto", "softmax", "sigmoid", "none"] = Field(
        "auto",
        description="what is applied to the model's outputs; auto goes by its configuration: "
        "sigmoid if its problem_type is multi_label_classification or it has a single class, none "
        "for regression, otherwise softmax",
    )

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        def run() -> str:
            from clipmill.stages.models.checks.pictured import check_classifier

            return check_classifier(self.model, f"{label}.model", self.label, self.activation)

        yield ModelCheck("model", run, (self.label, self.activation), ("torch", "transformers"))

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        def load(folder: Path, setting: str, place: ModelPlacement) -> ImageClassifier:
            from clipmill.stages.models.classifiers import ImageClassifier

            return ImageClassifier(
                folder, setting, place, self.label, self.activation, batch=self.batch_images
            )

        with self.batches(self.model, load) as batches:
            yield self.transform_by(batches, self._columns)

    def _columns(self, frames: Sequence[dict[str, Any]], found: list[float]) -> dict[str, Any]:
        if not np.isfinite(found).all():
            return {"class_score_reason": f"{self.model} gave a score that is not finite"}
        return {
            "class_score": float(_OVER_FRAMES[self.over_frames](found)),
            "class_frames": scores_at(frames, found),
        }
