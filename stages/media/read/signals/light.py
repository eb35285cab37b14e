"""Light and colours of single pictures: FFmpeg's signalstats, blackframe and photosensitivity."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

BLACK_BELOW = 18.63
"""blackframe's level of 32 in limited range; white begins as far below the other end."""
CLIPPED_LEVELS = 2
"""As many levels at each end of the range count as without detail."""

_LOW_SHARE, _HIGH_SHARE = 0.10, 0.90
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
# Red minus green, and yellow minus blue.
_OPPONENTS = np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
_DEGREES = 360
# Less chroma than this gives no hue.
_GREY = 2.0
_GRID = 8
# FFmpeg's filter compares the weighted sum of 30 pictures with this.
FLASH_PICTURES = 30
FLASH_LIMIT = _GRID * _GRID * 4 * 256 * FLASH_PICTURES / 128


@dataclass(frozen=True)
class Levels:
    """How a picture's luma is distributed: percentiles, and shares at the ends of the range."""

    low: float
    high: float
    shadows_clipped: float
    highlights_clipped: float


def levels(luma: np.ndarray) -> Levels:
    histogram = cv2.calcHist([luma], [0], None, [256], [0, 256]).ravel()
    total = np.cumsum(histogram)
    low, high = np.searchsorted(total, (_LOW_SHARE * luma.size, _HIGH_SHARE * luma.size))
    return Levels(
        float(low),
        float(high),
        float(total[CLIPPED_LEVELS]) / luma.size,
        1 - float(total[255 - CLIPPED_LEVELS - 1]) / luma.size,
    )


def black_share(luma: np.ndarray, mean: float) -> float:
    """The share of pixels that are black to blackframe; the mean saves counting in most."""
    # With 98% of the pixels below 19, the mean is at most 23.4.
    return _share(luma, None, int(BLACK_BELOW)) if mean < 24 else 0.0


def white_share(luma: np.ndarray, mean: float) -> float:
    """The share of pixels that would be black to blackframe in the negative."""
    return _share(luma, 255 - int(BLACK_BELOW), None) if mean > 231 else 0.0


def _share(luma: np.ndarray, low: int | None, high: int | None) -> float:
    inside = cv2.inRange(luma, 0 if low is None else low, 255 if high is None else high)
    return cv2.countNonZero(inside) / luma.size


@dataclass(frozen=True)
class Colors:
    """Chroma's mean distance from grey, and the median hue in degrees; None of a grey picture."""

    saturation: float
    hue: float | None


def colors(blue: np.ndarray, red: np.ndarray) -> Colors:
    """From the chroma planes, with signalstats' angles: 0 to 359."""
    distances, angles = _polar()
    # A quarter of the pixels tells as much.
    place = np.left_shift(blue[::2, ::2], 8, dtype=np.uint16) | red[::2, ::2]
    saturation = float(distances[place].mean())
    if saturation < _GREY:
        return Colors(saturation, None)
    counts = np.bincount(angles[place].ravel(), minlength=_DEGREES)
    return Colors(saturation, float(np.searchsorted(np.cumsum(counts), place.size / 2, "right")))


@functools.cache
def _polar() -> tuple[np.ndarray, np.ndarray]:
    """Distance and angle of each pair of chroma values, by both as one number."""
    values = np.arange(256) - 128.0
    blue, red = values[:, None], values[None, :]
    angles = np.floor(np.degrees(np.arctan2(blue, red)) + 180) % _DEGREES
    return np.hypot(blue, red).astype(np.float32).ravel(), angles.astype(np.uint16).ravel()


def luminance(rgb: np.ndarray) -> float:
    """The mean of BT.709's sum of red, green and blue, 0 to 255."""
    return float(np.dot(cv2.mean(rgb)[:3], _LUMINANCE))


def colorfulness(rgb: np.ndarray) -> float:
    """Hasler and Süsstrunk's M3."""
    opponents = cv2.transform(rgb.astype(np.float32), _OPPONENTS)
    means, deviations = cv2.meanStdDev(opponents)
    return float(np.linalg.norm(deviations) + 0.3 * np.linalg.norm(means))


def flash_grid(rgb: np.ndarray) -> np.ndarray:
    """Mean colours of 8 × 8 equal cells, which photosensitivity compares."""
    return cv2.resize(rgb, (_GRID, _GRID), interpolation=cv2.INTER_AREA)


def flash(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The mean difference of two grids, in levels, and the sum of all of them, as a share of what
    FFmpeg's filter tolerates within 30 pictures."""
    total = cv2.norm(one, other, cv2.NORM_L1)
    return total / one.size, total / FLASH_LIMIT
