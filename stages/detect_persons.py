"""detect_persons: how many persons a clip's frames show, by any object detector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
from pydantic import Field

from clipmill.schemas.tables import clip_table
from clipmill.stages.models.boxes import Counted
from clipmill.stages.picture_stage import Labels, PictureStage
from clipmill.stages.protocol import ModelCheck, Stage, Transform, Workspace
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.detectors import ObjectDetector
    from clipmill.stages.models.generation import ModelPlacement

_COLUMNS = Counted("persons", "person")
PERSONS = clip_table(*_COLUMNS.fields)


class DetectPersons(PictureStage):
    """persons is the number in the frame that shows most, persons_mean their mean over the frames,
    person_area the share of the picture that the largest box covers, and person_boxes all of them.

    By any object detector of transformers that knows the class, such as RT-DETR, D-FINE, DETR or
    YOLOS, as a hub id or a folder: no package is known that brings weights of one.
    """

    name: ClassVar[str] = "detect_persons"
    writes: ClassVar[pa.Schema] = PERSONS

    model: ModelReference = Field(
        ModelReference(hub="PekingU/rtdetr_v2_r18vd"),
        description="hub id or folder of an object detector of transformers",
    )
    label: Labels = Field(
        ("person",),
        min_length=1,
        description="class that counts, or several, by name or number in the model's id2label",
    )
    min_confidence: float = Field(
        0.5, gt=0, lt=1, description="how sure the detector must be of a box"
    )

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        def run() -> str:
            from clipmill.stages.models.checks.pictured import check_detector

            return check_detector(self.model, f"{label}.model", self.label)

        yield ModelCheck("model", run, (self.label,), ("torch", "transformers"))

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        def load(folder: Path, setting: str, place: ModelPlacement) -> ObjectDetector:
            from clipmill.stages.models.detectors import ObjectDetector

            return ObjectDetector(
                folder, setting, place, self.label, self.min_confidence, batch=self.batch_images
            )

        with self.batches(self.model, load) as batches:
            yield self.transform_by(batches, _COLUMNS.columns)
