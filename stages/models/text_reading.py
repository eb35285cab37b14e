"""Reads lines of text in pictures, by PP-OCR's recognisers.

The network's answer for each step along a line is a character or a blank (connectionist temporal
classification). The characters that it knows are in the model's file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.models.onnx_sessions import OnnxModel
from clipmill.stages.models.text_boxes import picture_input

_HEIGHT = 48
# A line is padded to a multiple of this: its answer then doesn't depend on those read with it.
_WIDTHS = 160
_WIDEST = 2400
_UPRIGHT_FROM = 1.5
_SURE = 0.9


@dataclass(frozen=True)
class ReadText:
    """What a line says, and the mean probability of its characters."""

    text: str
    confidence: float


class TextReader:
    """A loaded recogniser, for lines cut out of RGB pictures.

    What is read unsurely is read again upside down, and the surer reading counts. Lines of similar
    length are run together, up to `batch` of them.
    """

    def __init__(self, model: OnnxModel, *, setting: str, batch: int = 8) -> None:
        self._model = model
        self._input = picture_input(model, setting, _HEIGHT)
        self._batch = batch
        known = model.metadata.get("character")
        if known is None:
            raise ClipmillError(
                f"{setting}: the model doesn't say which characters it knows; use a recogniser of "
                "RapidOCR, whose ONNX file has them as `character`"
            )
        self.characters = ["", *known.split("\n"), " "]

    def __call__(self, lines: Sequence[np.ndarray]) -> list[ReadText]:
        found = self._read(lines)
        unsure = [number for number, one in enumerate(found) if one.confidence < _SURE]
        turned = self._read([lines[number][::-1, ::-1] for number in unsure])
        for number, one in zip(unsure, turned, strict=True):
            if one.text and one.confidence > found[number].confidence:
                found[number] = one
        return found

    def _read(self, lines: Sequence[np.ndarray]) -> list[ReadText]:
        found = [ReadText("", 0.0)] * len(lines)
        by_width: dict[int, list[int]] = {}
        for number, line in enumerate(lines):
            by_width.setdefault(_padded_width(line), []).append(number)
        for width, numbers in by_width.items():
            for begin in range(0, len(numbers), self._batch):
                together = numbers[begin : begin + self._batch]
                prepared = np.stack([_prepared(lines[number], width) for number in together])
                (answers,) = self._model.run({self._input: prepared})
                beat()
                for number, answer in zip(together, answers, strict=True):
                    found[number] = self._decoded(answer)
        return found

    def _decoded(self, answer: np.ndarray) -> ReadText:
        """The text of an answer of shape (steps, characters)."""
        if answer.shape[1] != len(self.characters):
            raise ClipmillError(
                f"the recogniser tells {answer.shape[1]} characters apart, but names "
                f"{len(self.characters)}"
            )
        best = answer.argmax(axis=1)
        fresh = best != 0
        fresh[1:] &= best[1:] != best[:-1]
        steps = np.flatnonzero(fresh)
        if not len(steps):
            return ReadText("", 0.0)
        text = "".join(self.characters[number] for number in best[steps])
        confidence = float(answer[steps, best[steps]].mean())
        return ReadText(text.strip(), confidence)


def line_of(image: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """A line of text cut out of a picture and set upright.

    One that is higher than wide is turned as if it were read upwards.
    """
    first, second, third, last = corners
    width = max(1, round(float(max(_distance(first, second), _distance(third, last)))))
    height = max(1, round(float(max(_distance(first, last), _distance(second, third)))))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    # Corners are on the edges of pixels, whose centres are what is sampled.
    turn = cv2.getPerspectiveTransform(corners.astype(np.float32) - 0.5, target - 0.5)
    cut = cv2.warpPerspective(
        image, turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.rot90(cut, -1) if height >= _UPRIGHT_FROM * width else cut


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other))


def _width(line: np.ndarray) -> int:
    width: int = math.ceil(_HEIGHT * line.shape[1] / line.shape[0])
    return min(_WIDEST, width)


def _padded_width(line: np.ndarray) -> int:
    return math.ceil(_width(line) / _WIDTHS) * _WIDTHS


def _prepared(line: np.ndarray, width: int) -> np.ndarray:
    """The line as float32 planes of -1 to 1 in the order blue, green, red, with 0 behind it."""
    scaled = cv2.resize(np.ascontiguousarray(line), (_width(line), _HEIGHT))
    planes = np.zeros((3, _HEIGHT, width), np.float32)
    planes[:, :, : scaled.shape[1]] = cv2.dnn.blobFromImage(
        scaled, 1 / 127.5, mean=(127.5, 127.5, 127.5), swapRB=True
    )[0]
    return planes
