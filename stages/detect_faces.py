"""detect_faces: how many faces a clip's frames show, where they are, and how large."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from clipmill.schemas.tables import clip_table
from clipmill.stages.frame_stage import FrameStage
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.models.boxes import Counted
from clipmill.stages.models.frame_batches import FrameBatches
from clipmill.stages.protocol import ModelCheck, Stage, Transform, Workspace
from clipmill.stages.references import DataFile

_COLUMNS = Counted("faces", "face")
FACES = clip_table(*_COLUMNS.fields)
YUNET = DataFile(
    package="clipmill.stages/data/face_detection_yunet_2023mar.onnx",
    sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
)


class DetectFaces(FrameStage):
    """faces is the number in the frame that shows most, faces_mean their mean over the frames,
    face_area the share of the picture that the largest box covers, and face_boxes all of them.

    The detector is YuNet, whose weights come with Clipmill. In kept frames (384 pixels on the short
    side) it finds faces from about 10 pixels, turned away or half hidden ones among them, and many
    drawn ones.
    """

    name: ClassVar[str] = "detect_faces"
    writes: ClassVar[pa.Schema] = FACES

    weights: DataFile = Field(YUNET, description="YuNet, release 2023mar, as an ONNX file")
    min_confidence: float = Field(
        0.6, gt=0, le=1, description="how sure the detector must be that a box is a face"
    )

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        def run() -> str:
            from clipmill.stages.models.yunet import FaceDetector

            setting = f"{label}.weights"
            path = local_file(self.weights, setting=setting)
            FaceDetector(path, least_confidence=self.min_confidence, setting=setting)
            return "YuNet"

        yield ModelCheck("weights", run, (), ("onnxruntime",))

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        from clipmill.stages.models.yunet import FaceDetector

        setting = f"{self.name}.weights"
        path = local_file(self.weights, setting=setting)
        model = FaceDetector(path, least_confidence=self.min_confidence, setting=setting)
        with FrameBatches(model.faces, list, batch=1, threads=self.threads) as batches:
            yield self.transform_by(batches, _COLUMNS.columns)
