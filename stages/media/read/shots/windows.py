"""Chooses the pictures around a candidate: by frame number, so that it doesn't matter which
pictures were decoded, and by time, so that a film of 60 frames a second is as one of 30.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indexes = NDArray[np.intp]

BEFORE, AFTER = 8, 8
"""Pictures of a window before the candidate, and from it on, a step apart."""
STEP_SECONDS = 0.04
MOST_FRAMES = 4
"""A step has at most this many frames."""
# Pictures on each side that say how long a frame lasts.
_BESIDE = 8
_SHORTEST = 0.001


def steps_of(numbers: Indexes, seconds: Floats) -> Indexes:
    """The frames of a step at each picture: about 1/25 s, at least one frame."""
    if len(numbers) < 2:
        return np.ones(len(numbers), np.intp)
    lasts = np.diff(seconds) / np.maximum(np.diff(numbers), 1)
    lasts = np.concatenate([lasts[:1], lasts])
    padded = np.pad(lasts, _BESIDE, mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * _BESIDE + 1)
    frames = np.rint(STEP_SECONDS / np.maximum(np.median(around, axis=1), _SHORTEST))
    return np.clip(frames, 1, MOST_FRAMES).astype(np.intp)


def around(
    numbers: Indexes, places: Indexes, steps: Indexes, first: Indexes, last: Indexes
) -> Indexes:
    """[places, 16]: the pictures nearest to a step, two steps, … before and after each place.

    None is from the other side of its place, before `first` or after `last`; the nearest
    stand for those.
    """
    at = numbers[places][:, None]
    by = steps[:, None]
    before = _nearest(numbers, at - 1 - by * np.arange(BEFORE - 1, -1, -1))
    after = _nearest(numbers, at + by * np.arange(AFTER))
    before = np.clip(before, first[:, None], np.maximum(places - 1, 0)[:, None])
    after = np.clip(after, places[:, None], last[:, None])
    return np.concatenate([before, after], 1)


def _nearest(numbers: Indexes, wanted: Indexes) -> Indexes:
    right = np.clip(np.searchsorted(numbers, wanted), 0, len(numbers) - 1)
    left = np.maximum(right - 1, 0)
    is_left = wanted - numbers[left] < numbers[right] - wanted
    return np.where(is_left, left, right)
