"""Chooses which frames of a clip a stage gets: pure arithmetic on timestamps."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Middle:
    """The frame nearest to the middle of the clip."""


@dataclass(frozen=True)
class Uniform:
    """`count` frames at the middles of `count` equal parts of the clip."""

    count: int


@dataclass(frozen=True)
class Starts:
    """`count` frames at the starts of `count` equal parts of the clip."""

    count: int


@dataclass(frozen=True)
class PerSecond:
    """Frames at `rate` per second, and never fewer than `at_least`."""

    rate: float
    at_least: int = 1


FramePick = Middle | Uniform | Starts | PerSecond


def target_seconds(pick: FramePick, start_seconds: float, end_seconds: float) -> list[float]:
    """The times that a pick requests, in equal parts of `[start_seconds, end_seconds)`."""
    duration, within = end_seconds - start_seconds, 0.5
    match pick:
        case Middle():
            count = 1
        case Uniform(count=count):
            pass
        case Starts(count=count):
            within = 0.0
        case PerSecond(rate=rate, at_least=at_least):
            count = max(at_least, math.ceil(duration * rate - 1e-9))
    return [start_seconds + duration * (i + within) / count for i in range(count)]


def nearest(seconds: Sequence[float], target: float) -> int:
    """Index of the time nearest to `target` in the ascending `seconds`, the earlier on a tie."""
    after = bisect.bisect_left(seconds, target)
    if after == 0:
        return 0
    if after == len(seconds) or target - seconds[after - 1] <= seconds[after] - target:
        return after - 1
    return after


def pick_frames(
    seconds: Sequence[float], start_seconds: float, end_seconds: float, picks: Sequence[FramePick]
) -> list[int]:
    """Indexes into the ascending `seconds` of the frames that `picks` request, each once.

    Only frames inside `[start_seconds, end_seconds)` are used, so a clip never shows another
    clip's frame; if fewer frames were kept than requested, all the nearest ones are returned.
    """
    first = bisect.bisect_left(seconds, start_seconds)
    last = bisect.bisect_left(seconds, end_seconds)
    inside = seconds[first:last]
    if not inside:
        return []
    chosen = {
        first + nearest(inside, target)
        for pick in picks
        for target in target_seconds(pick, start_seconds, end_seconds)
    }
    return sorted(chosen)
