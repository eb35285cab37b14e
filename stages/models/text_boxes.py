"""Finds lines of text in pictures, by PP-OCR's detectors.

The network marks the pixels inside of a line, shrunk (differentiable binarization, arXiv
1911.08947). Each connected part that is marked becomes the smallest rectangle around it, grown
again: by as much as PaddleOCR and RapidOCR do for reading, and by less for the measured area, since
their boxes cover a third more than the lines from ascenders to descenders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.models.onnx_sessions import OnnxModel

_BATCH_ON_GPU = 16
# The network halves its input five times.
_STEP = 32
_AREA_FROM = 1.5
_MARKED_FROM = 0.3
_GROWN_BY = 1.0
_GROWN_FOR_READING = 1.6
_SMALLEST_MARK = 3.0
_MOST_MARKS = 1000
# The network takes whole subjects and pictures for text: of 98 frames, one per film, 24 had a box
# higher than this share of the picture's shorter side, and one of these was a title.
_HIGHEST = 0.35
# It takes people on plain ground for single letters; a line that is turned is longer than these.
_PERSON = (1.2, 3.5)
_LEAST_SCORE_OF_PERSON = 0.75
# Grey levels: a picture with less deviation has nothing that could be read.
_FLAT = 1.0


@dataclass(frozen=True)
class TextBox:
    """One line of text: its corners (4, 2) in pixels of the picture, clockwise from the upper
    left, those with the margin that recognisers expect, and how sure the detector is."""

    corners: np.ndarray
    wide: np.ndarray
    score: float

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The upright rectangle around it: left, top, right, bottom."""
        (left, top), (right, bottom) = self.corners.min(axis=0), self.corners.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


class TextDetector:
    """A loaded detector, for RGB pictures of any size.

    Each is scaled so that its short side has `short_side` pixels; `least_score` is the mean mark
    within a box. Pictures of the same size are run together, up to `batch` of them; by default one
    on a CPU, where more take longer.
    """

    def __init__(
        self,
        model: OnnxModel,
        *,
        setting: str,
        short_side: int,
        least_score: float,
        batch: int | None = None,
    ) -> None:
        self._model = model
        self._input = picture_input(model, setting, None)
        self._short_side = short_side
        self._least_score = least_score
        self._batch = batch or (_BATCH_ON_GPU if model.is_on_gpu else 1)

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[TextBox]]:
        """The boxes of each picture, from top to bottom and from left to right."""
        found: list[list[TextBox]] = [[] for _ in images]
        for together in self._groups(images):
            size = network_size(images[together[0]], self._short_side)
            prepared = np.empty((len(together), 3, *size), np.float32)
            for number, planes in zip(together, prepared, strict=True):
                network_input(images[number], planes)
            (marks,) = self._model.run({self._input: prepared})
            beat()
            for number, mark in zip(together, marks[:, 0], strict=True):
                found[number] = boxes_of(mark, images[number].shape[:2], self._least_score)
        return found

    def _groups(self, images: Sequence[np.ndarray]) -> Iterator[list[int]]:
        by_size: dict[tuple[int, int], list[int]] = {}
        for number, image in enumerate(images):
            if not is_flat(image):
                by_size.setdefault(network_size(image, self._short_side), []).append(number)
        for numbers in by_size.values():
            for begin in range(0, len(numbers), self._batch):
                yield numbers[begin : begin + self._batch]


def picture_input(model: OnnxModel, setting: str, height: int | None) -> str:
    """The name of a model's only input, which takes pictures of any width, and of this height or
    any; ClipmillError if it has none."""
    name: str
    name, shape = next(iter(model.inputs.items()))
    fits = len(shape) == 4 and shape[1] == 3 and not isinstance(shape[3], int)
    if len(model.inputs) != 1 or not fits or (isinstance(shape[2], int) and shape[2] != height):
        raise ClipmillError(
            f"{setting}: this is another kind of model: its input {name} has the shape "
            f"{list(shape)}, not [any, 3, {height or 'any'}, any]"
        )
    return name


def is_flat(image: np.ndarray) -> bool:
    """Whether a picture is of one colour, up to noise."""
    _, deviation = cv2.meanStdDev(np.ascontiguousarray(image[::4, ::4]))
    return float(deviation.max()) < _FLAT


def network_size(image: np.ndarray, short_side: int) -> tuple[int, int]:
    """Height and width for the network: multiples of 32, near the picture's proportions."""
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    return _multiple(height * scale), _multiple(width * scale)


def _multiple(length: float) -> int:
    return max(_STEP, round(length / _STEP) * _STEP)


def network_input(image: np.ndarray, planes: np.ndarray) -> None:
    """Writes a picture, scaled, as values of -1 to 1 in the order blue, green, red."""
    height, width = planes.shape[1:]
    shrinks = image.shape[0] > height * _AREA_FROM
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    scaled = cv2.resize(image, (width, height), interpolation=method)
    for channel, plane in enumerate(reversed(planes)):
        np.multiply(scaled[:, :, channel], np.float32(1 / 127.5), out=plane)
    np.subtract(planes, 1, out=planes)


def boxes_of(mark: np.ndarray, shape: Sequence[int], least_score: float) -> list[TextBox]:
    """The boxes that a network's answer (height, width) marks in a picture of this shape."""
    marked = (mark > _MARKED_FROM).astype(np.uint8)
    if not marked.any():
        return []
    reaching = cv2.dilate(marked, np.ones((2, 2), np.uint8))
    outlines, _ = cv2.findContours(reaching, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([shape[1] / mark.shape[1], shape[0] / mark.shape[0]], np.float32)
    most = np.array([shape[1], shape[0]], np.float32)
    found = []
    for outline in outlines[:_MOST_MARKS]:
        centre, (width, height), angle = cv2.minAreaRect(outline)
        if min(width, height) < _SMALLEST_MARK:
            continue
        score = _mean_inside(mark, cv2.boxPoints((centre, (width, height), angle)))
        # Marks reach one pixel too far to the right and below, as the indexes of pixels, which are
        # their upper left corners, need.
        measured, wide = (
            cv2.boxPoints((centre, _grown(width, height, by), angle)) * scale
            for by in (_GROWN_BY, _GROWN_FOR_READING)
        )
        wide = _clockwise(wide)
        across, down = (float(np.linalg.norm(wide[at] - wide[0])) for at in (1, 3))
        is_person = _PERSON[0] * across < down < _PERSON[1] * across
        if score < (max(least_score, _LEAST_SCORE_OF_PERSON) if is_person else least_score):
            continue
        if min(across, down) > _HIGHEST * min(shape[:2]):
            continue
        corners = _clockwise(np.clip(measured, 0, most))
        found.append(TextBox(corners, np.clip(wide, 0, most), score))
    return sorted(found, key=lambda box: (box.bounds[1], box.bounds[0]))


def _grown(width: float, height: float, by: float) -> tuple[float, float]:
    """A mark's size with as much on each side as the annotations were shrunk for training."""
    margin = width * height * by / (2 * (width + height))
    return width + 2 * margin, height + 2 * margin


def _mean_inside(mark: np.ndarray, corners: np.ndarray) -> float:
    height, width = mark.shape
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, (width - 1, height - 1)).astype(int)
    inside = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(inside, [(corners - (left, top)).astype(np.int32)], 1)
    return float(cv2.mean(mark[top : bottom + 1, left : right + 1], inside)[0])


def _clockwise(corners: np.ndarray) -> np.ndarray:
    """The same corners, from the upper left one on: of the two left ones, the higher."""
    first, second, third, last = corners[np.argsort(corners[:, 0], kind="stable")]
    upper_left, lower_left = (first, second) if first[1] <= second[1] else (second, first)
    upper_right, lower_right = (third, last) if third[1] <= last[1] else (last, third)
    return np.stack([upper_left, upper_right, lower_right, lower_left])


def covered(boxes: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Which pixels of a picture have their centres in any of the boxes, given by corners."""
    height, width = shape
    found = np.zeros((height, width), bool)
    for corners in boxes:
        left, top = np.floor(corners.min(axis=0)).astype(int).clip(0, (width, height))
        right, bottom = np.ceil(corners.max(axis=0)).astype(int).clip(0, (width, height))
        if left >= right or top >= bottom:
            continue
        x = np.arange(left, right, dtype=np.float32)[None, :] + 0.5
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5
        inside = np.ones((bottom - top, right - left), bool)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            # On the right of each edge, as they go clockwise.
            inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) >= 0
        found[top:bottom, left:right] |= inside
    return found
