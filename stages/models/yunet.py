"""YuNet, a face detector of 75,000 weights (Wu, Peng and Yu, 2023), as OpenCV Zoo publishes it.

The network looks at 640 × 640 pixels, and says for each point of three grids whether it is within
a face, and where that face's sides are. What OpenCV's FaceDetectorYN computes from it is computed
here as well.
"""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.models.boxes import NO_BOXES
from clipmill.stages.models.onnx_sessions import OnnxModel

_SIZE = 640
_STRIDES = (8, 16, 32)
_OVERLAP = 0.3


class FaceDetector:
    """The loaded model; several threads may use it."""

    def __init__(self, path: Path, *, least_confidence: float, setting: str) -> None:
        self._model = OnnxModel(path, threads=1, setting=setting)
        self._least_confidence = least_confidence
        wanted = {f"{kind}_{stride}" for kind in ("cls", "obj", "bbox") for stride in _STRIDES}
        shapes = list(self._model.inputs.values())
        if shapes != [[1, 3, _SIZE, _SIZE]] or not wanted <= set(self._model.outputs):
            raise ClipmillError(
                f"{setting}: {path} is not YuNet, release 2023mar: its input should be of shape "
                f"(1, 3, {_SIZE}, {_SIZE}), and is {self._model.inputs}"
            )
        (self._input,) = self._model.inputs
        self._outputs = sorted(wanted)
        self._own = threading.local()

    def faces(self, image: np.ndarray) -> np.ndarray:
        """Boxes of faces in an RGB picture, the most certain first."""
        height, width = image.shape[:2]
        factor = _SIZE / max(height, width)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        values = self._model.run({self._input: self._framed(image, size)}, self._outputs)
        found = dict(zip(self._outputs, (value[0] for value in values), strict=True))
        corners, confidences = [], []
        for stride in _STRIDES:
            sure = _between_0_and_1(found[f"cls_{stride}"]) * _between_0_and_1(
                found[f"obj_{stride}"]
            )
            confidence = np.sqrt(sure[:, 0])
            points = np.flatnonzero(confidence >= self._least_confidence)
            row, column = np.divmod(points, _SIZE // stride)
            across, down, wide, high = found[f"bbox_{stride}"][points].T * 1.0
            middle = np.stack([column + across, row + down], axis=1)
            half = np.exp(np.stack([wide, high], axis=1)) / 2
            corners.append(np.hstack([middle - half, middle + half]) * stride)
            confidences.append(confidence[points])
        return _chosen(np.concatenate(corners) / np.tile(size, 2), np.concatenate(confidences))

    def _framed(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The network's input: the picture in the upper left corner, BGR, black beside it.

        Each thread fills the same array again: a new one costs more than the rest.
        """
        width, height = size
        method = cv2.INTER_LINEAR if 2 * width > image.shape[1] else cv2.INTER_AREA
        fitted = cv2.resize(image, size, interpolation=method)
        pixels: np.ndarray | None = getattr(self._own, "pixels", None)
        if pixels is None:
            pixels = self._own.pixels = np.zeros((1, 3, _SIZE, _SIZE), np.float32)
        pixels[:, :, height:] = 0
        pixels[:, :, :, width:] = 0
        for number in range(3):
            pixels[0, number, :height, :width] = fitted[:, :, 2 - number]
        return pixels


def _between_0_and_1(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 1)


def _chosen(corners: np.ndarray, confidences: np.ndarray) -> np.ndarray:
    """Without boxes that overlap a more certain one."""
    if not len(corners):
        return NO_BOXES
    order = np.argsort(-confidences, kind="stable")
    boxes, kept = np.column_stack([corners, confidences])[order].astype(np.float32), []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.arange(len(boxes))
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        high = np.minimum(boxes[best, 2:4], boxes[left, 2:4])
        common = (high - low).clip(0).prod(axis=1)
        left = left[common <= _OVERLAP * (areas[best] + areas[left] - common)]
    return boxes[kept]
