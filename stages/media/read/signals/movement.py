"""How much pictures differ from earlier ones: FFmpeg's vmafmotion, siti (TI) and freezedetect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

LUMA_SHARE, CHROMA_SHARE = 219 / 255, 224 / 255
"""Levels of limited range, in which nearly all files are stored, per level of full range."""
FROZEN = 0.001
"""freezedetect's default: up to this difference a picture repeats an earlier one."""
STILL = 0.05
STILL_PART_SECONDS = 60.0
"""FineVideo's tolerance, and the length of the parts of a video that it looks at."""

# VMAF's Gaussian of 5 pixels.
_KERNEL = np.array([0.054488685, 0.244201342, 0.402619947, 0.244201342, 0.054488685])


class Planes(NamedTuple):
    """A picture's luma, and its chroma at half the size: 8 bits, full range."""

    luma: np.ndarray
    blue: np.ndarray
    red: np.ndarray


def blurred(luma: np.ndarray) -> np.ndarray:
    """Luma as VMAF compares it."""
    return cv2.sepFilter2D(luma, cv2.CV_32F, _KERNEL, _KERNEL, borderType=cv2.BORDER_REFLECT_101)


def vmaf_motion(one: np.ndarray, other: np.ndarray) -> float:
    """The mean difference of two blurred pictures, in levels of limited range as in FFmpeg."""
    return cv2.norm(one, other, cv2.NORM_L1) / one.size * LUMA_SHARE


def temporal_information(
    one: np.ndarray, other: np.ndarray, mean_one: float, mean_other: float
) -> float:
    """The standard deviation of the difference of two pictures with these means."""
    square = cv2.norm(one, other, cv2.NORM_L2SQR) / one.size
    return math.sqrt(max(0.0, square - (mean_one - mean_other) ** 2))


def difference(one: Planes, other: Planes, enough: float) -> float:
    """The mean difference of all samples, 0 to 1, as freezedetect computes it for 4:2:0.

    If luma alone gives more than `enough`, only that.
    """
    scale = 256 * (one.luma.size + one.blue.size + one.red.size)
    luma = cv2.norm(one.luma, other.luma, cv2.NORM_L1) * LUMA_SHARE / scale
    if luma > enough:
        return luma
    chroma = cv2.norm(one.blue, other.blue, cv2.NORM_L1)
    chroma += cv2.norm(one.red, other.red, cv2.NORM_L1)
    return luma + chroma * CHROMA_SHARE / scale


@dataclass
class Freezes:
    """Compares pictures with the last one that differed from its own reference."""

    tolerance: float
    reference: Planes | None = None

    def add(self, planes: Planes) -> float | None:
        """The difference from the reference; a picture beyond the tolerance is the next one.

        Of such a picture it may be that of luma alone, which is less.
        """
        if self.reference is None:
            self.reference = planes
            return None
        found = difference(planes, self.reference, self.tolerance)
        if found > self.tolerance:
            self.reference = planes
        return found
