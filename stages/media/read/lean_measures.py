"""Measures the pictures of a lean scan, which has no BGR images."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from clipmill.stages.media.read.picture import Picture

NUMBER = "frame_number"
SECONDS = "seconds"
# How a difference grows with the number of frames between: more slowly, because pictures differ
# by no more than all that moves.
GROWTH = 0.7


class LeanMeasures:
    """Observes the luma of one video; the measures are those of `Measures`.

    Luma comes from the decoder's planes here, not from a BGR image, so the numbers are close to
    its, not equal. `score` is the mean absolute difference of the last picture's tiny image from
    the one before, in levels of 0 to 255. Between pictures that are several frames apart, both it
    and `motion` are the estimated mean of the differences from frame to frame. `statistics` tells
    which pictures were seen.
    """

    def __init__(self) -> None:
        self.statistics: dict[str, list[float]] = {NUMBER: [], SECONDS: []}
        self.motion: list[float | None] = []
        self.sharpness: list[float] = []
        self.brightness: list[float] = []
        self.score = 0.0
        self._luma: np.ndarray | None = None
        self._tiny: np.ndarray | None = None
        self._number = 0

    def interrupt(self) -> None:
        self._luma = self._tiny = None

    def add(self, picture: Picture) -> None:
        luma, tiny = picture.luma, picture.tiny
        if self._luma is None or self._tiny is None:
            self.motion.append(None)
            self.score = 0.0
        else:
            frames = float((picture.number - self._number) ** GROWTH)
            self.motion.append(cv2.norm(luma, self._luma, cv2.NORM_L1) / luma.size / frames)
            self.score = cv2.norm(tiny, self._tiny, cv2.NORM_L1) / tiny.size / frames
        self.brightness.append(cv2.mean(luma)[0])
        laplacian = cv2.Laplacian(luma, cv2.CV_16S)
        square = cv2.norm(laplacian, cv2.NORM_L2SQR) / luma.size
        self.sharpness.append(square - cv2.mean(laplacian)[0] ** 2)
        self.statistics[NUMBER].append(float(picture.number))
        self.statistics[SECONDS].append(picture.seconds)
        self._luma, self._tiny, self._number = luma, tiny, picture.number

    def finish(self) -> dict[str, Any]:
        return {
            "statistics": self.statistics,
            "motion": self.motion,
            "sharpness": self.sharpness,
            "brightness": self.brightness,
        }
