"""Finds pictures that look like a mix of an earlier and a later one, as amid a dissolve."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HALVES = {"250ms": 0.25, "500ms": 0.5, "1000ms": 1.0}
"""How far before and after the two pictures lie, seconds."""
LONGEST = max(HALVES.values())
SPREAD = 1.6
"""Thumbnails are stored this many halves before and after."""
PER_SPREAD = 13
# A picture at about that time must be there: by which share of the half it may be off.
_OFF = 0.34
# Grey levels by which the outer pictures must differ, and the share of it that may be left.
_LEAST_APART = 6.0
_MOST_LEFT = 0.32
_MOST_SPLIT = 0.25
# Amid a wipe, at least this share of the pixels is of either picture.
_LEAST_SHARE = 0.15


def names(length: str) -> tuple[str, str, str]:
    """The statistics of one half, mean absolute differences of luma in grey levels.

    `apart`: of the outer pictures; `left`: of the picture from their mix; `split`: of each pixel
    from the more similar one of theirs, or `apart` if nearly all are from one of them.
    """
    return f"tiny_apart_{length}", f"tiny_left_{length}", f"tiny_split_{length}"


@dataclass(frozen=True)
class Outer:
    """Indexes of the outer pictures for some pictures, and whether they are there."""

    before: NDArray[np.intp]
    after: NDArray[np.intp]
    is_there: NDArray[np.bool_]


def outer(
    seconds: Floats, middles: NDArray[np.intp], half: float, takes: NDArray[np.intp]
) -> Outer:
    """`takes` numbers the uninterrupted sequences of pictures."""
    at = seconds[middles]
    before, after = nearest(seconds, at - half), nearest(seconds, at + half)
    off = half * _OFF
    is_there = (
        (np.abs(seconds[before] - (at - half)) <= off)
        & (np.abs(seconds[after] - (at + half)) <= off)
        & (takes[before] == takes[after])
    )
    return Outer(before, after, is_there)


def nearest(seconds: Floats, times: Floats) -> NDArray[np.intp]:
    """The pictures nearest to these times."""
    right = np.clip(np.searchsorted(seconds, times), 0, len(seconds) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(times - seconds[left] < seconds[right] - times, left, right)


def measure(
    luma: np.ndarray, seconds: Floats, middles: NDArray[np.intp], found: Outer
) -> tuple[Floats, Floats, Floats]:
    """`apart`, `left` and `split` of the pictures; 0 where an outer picture is missing."""
    apart, left, split = np.zeros((3, len(middles)))
    rows = np.flatnonzero(found.is_there)
    if not len(rows):
        return apart, left, split
    a, b, m = found.before[rows], found.after[rows], middles[rows]
    weight = ((seconds[m] - seconds[a]) / (seconds[b] - seconds[a])).astype(np.float32)
    flat = luma.reshape(len(luma), -1)
    first, second, middle = flat[a], flat[b], flat[m]
    apart[rows] = cv2.absdiff(first, second).mean(1)
    mix = first + weight[:, None] * (second.astype(np.float32) - first)
    mix -= middle
    left[rows] = np.abs(mix, out=mix).mean(1)
    from_first, from_second = cv2.absdiff(first, middle), cv2.absdiff(second, middle)
    share = (from_second < from_first).mean(1)
    is_split = np.minimum(share, 1 - share) >= _LEAST_SHARE
    nearer = cv2.min(from_first, from_second).mean(1)
    split[rows] = np.where(is_split, nearer, apart[rows])
    return apart, left, split


def peaks(
    seconds: Floats, apart: Floats, left: Floats, split: Floats, half: float
) -> NDArray[np.intp]:
    """Where pictures look like a mix most, compared with those up to half a `half` away."""
    unlike = np.minimum(left, split)
    score = apart - 2 * unlike
    reach = half / 2
    is_mix = (left <= _MOST_LEFT * apart) | (split <= _MOST_SPLIT * apart)
    found = np.flatnonzero((apart >= _LEAST_APART) & is_mix)
    if not len(found):
        return found
    low = np.searchsorted(seconds, seconds[found] - reach)[:, None]
    high = np.searchsorted(seconds, seconds[found] + reach, "right")[:, None]
    near = low + np.arange((high - low).max())
    others = np.where(near < high, score[np.minimum(near, len(score) - 1)], -np.inf)
    own = score[found, None]
    is_peak = np.where(near < found[:, None], own > others, own >= others).all(1)
    kept: NDArray[np.intp] = found[is_peak]
    return kept


def spread(seconds: Floats, middle: int, half: float) -> NDArray[np.intp]:
    """The pictures whose thumbnails are stored for one that may be amid a dissolve."""
    times = seconds[middle] + np.linspace(-SPREAD * half, SPREAD * half, PER_SPREAD)
    return nearest(seconds, times)
