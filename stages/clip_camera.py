"""A clip's camera motion in numbers and words, from the pairs of pictures that a scan compared."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

MOVES = ("pan", "tilt", "zoom", "roll")

CAMERA_SIGNALS = pa.schema(
    [
        *((f"camera_{name}", pa.float32()) for name in MOVES),
        ("camera_shake", pa.float32()),
        ("camera_motion", pa.string()),
        ("subject_motion", pa.float32()),
    ]
)

CAMERA_UNITS = {
    "camera_pan": "mean turn to the right, % of the width per second",
    "camera_tilt": "mean turn upwards, % of the height per second",
    "camera_zoom": "mean growth of what is seen, % per second",
    "camera_roll": "mean turn clockwise, degrees per second",
    "camera_shake": "median distance from the smoothed path, % of the longer side",
    "subject_motion": "mean speed relative to the camera's, % of the longer side per second",
}
"""What the numbers among them are, with their units."""

Pair = Mapping[str, Any]
"""A struct of the column `camera` of SCANS."""

# A movement is named from these means on: % of the frame per second, and degrees per second.
_NAMED = {"pan": 3.0, "tilt": 3.0, "zoom": 1.5, "roll": 2.0}
_WORDS = {
    "pan": ("pan left", "pan right"),
    "tilt": ("tilt down", "tilt up"),
    "zoom": ("zoom out", "zoom in"),
    "roll": ("roll counterclockwise", "roll clockwise"),
}
_MIXED = 2.0  # times as much there and back is a movement, too
_HANDHELD = 0.2  # shake from which on a camera is handheld, % of the longer side

_LEAST_MEASURED = 0.5  # share of the clip's pairs, by time
_SMOOTHING_SECONDS = 1.25
_LEAST_POINTS = 4  # in such a window, to tell shake from movement
_ROUNDING_SECONDS = 1e-6

_SHORT = "it has too few pictures to compare"
_UNSEEN = "its pictures don't show how the camera moves"


def camera_signals(
    pairs: Sequence[Pair] | None, start_seconds: float, end_seconds: float, size: tuple[int, int]
) -> Iterator[tuple[str, float | str | None, str]]:
    """Each signal of a clip of this width and height: name, value or None, why it is None."""
    inside = _inside(pairs or (), start_seconds, end_seconds)
    runs = list(_runs(inside))
    steps = [step for run in runs for step in run]
    total = sum(step.stands_for_seconds for step in steps)
    if not inside or total < _LEAST_MEASURED * sum(map(_length, inside)):
        reason = _UNSEEN if inside else _SHORT
        yield from ((name, None, reason) for name in CAMERA_SIGNALS.names)
        return
    means = {
        name: sum(step.pair[name] * step.stands_for_seconds for step in steps) / total
        for name in (*MOVES, "subject")
    }
    shake, ways = _around(runs, size)
    yield from ((f"camera_{name}", means[name], _UNSEEN) for name in MOVES)
    yield "camera_shake", shake, _SHORT
    yield "camera_motion", _words(means, ways, shake), _UNSEEN
    yield "subject_motion", means["subject"], _UNSEEN


class _Step(NamedTuple):
    """A pair that shows the motion, and the time that it stands for."""

    pair: Pair
    stands_for_seconds: float


def _inside(pairs: Sequence[Pair], start_seconds: float, end_seconds: float) -> Sequence[Pair]:
    first = bisect.bisect_left(
        pairs, start_seconds - _ROUNDING_SECONDS, key=lambda pair: pair["start_seconds"]
    )
    last = bisect.bisect_left(
        pairs, end_seconds - _ROUNDING_SECONDS, key=lambda pair: pair["end_seconds"]
    )
    return pairs[first : max(first, last)]


def _length(pair: Pair) -> float:
    return float(pair["end_seconds"] - pair["start_seconds"])


def _runs(pairs: Sequence[Pair]) -> Iterator[list[_Step]]:
    """Successive pairs that show the motion. One after a pair that doesn't stands for both."""
    run: list[_Step] = []
    before = 0.0
    for pair, after in itertools.zip_longest(pairs, pairs[1:]):
        if pair["pan"] is None:
            before = _length(pair)
        else:
            run.append(_Step(pair, before + _length(pair)))
            before = 0.0
        is_last = after is None or after["start_seconds"] > pair["end_seconds"] + _ROUNDING_SECONDS
        if run and (is_last or pair["pan"] is None or after["pan"] is None):
            yield run
            run = []
        if is_last:
            before = 0.0


def _around(
    runs: Sequence[Sequence[_Step]], size: tuple[int, int]
) -> tuple[float | None, dict[str, float]]:
    """How far the camera strays from its smoothed path, and how fast it follows that, without sign.

    The path is smoothed by straight lines through 1.25 s of it. The first is a median in % of
    the longer side; None if no run is long enough.
    """
    longer = max(size)
    scales = {"pan": size[0] / longer, "tilt": size[1] / longer}
    strays: list[float] = []
    ways = dict.fromkeys(MOVES, 0.0)
    for run in runs:
        times = [run[0].pair["start_seconds"], *(step.pair["end_seconds"] for step in run)]
        paths = {
            name: list(
                itertools.accumulate(
                    (step.pair[name] * _length(step.pair) for step in run), initial=0.0
                )
            )
            for name in MOVES
        }
        for i, time in enumerate(times):
            first = bisect.bisect_left(times, time - _SMOOTHING_SECONDS / 2 - _ROUNDING_SECONDS)
            last = bisect.bisect_right(times, time + _SMOOTHING_SECONDS / 2 + _ROUNDING_SECONDS)
            if last - first < _LEAST_POINTS:
                continue
            near = times[first:last]
            middle = sum(near) / len(near)
            spread = sum((one - middle) ** 2 for one in near)
            free = 1 - 1 / len(near) - (time - middle) ** 2 / spread
            stray = 0.0
            for name, path in paths.items():
                points = path[first:last]
                slope = sum((a - middle) * b for a, b in zip(near, points, strict=True)) / spread
                ways[name] += abs(slope)
                if name in scales:
                    smooth = sum(points) / len(points) + slope * (time - middle)
                    # A line through few points comes close to each: `free` makes up for it.
                    stray += (scales[name] * (path[i] - smooth)) ** 2 / free
            strays.append(math.sqrt(stray))
    if not strays:
        return None, ways
    return statistics.median(strays), {name: way / len(strays) for name, way in ways.items()}


def _words(means: Mapping[str, float], ways: Mapping[str, float], shake: float | None) -> str:
    strengths = {name: abs(means[name]) / _NAMED[name] for name in MOVES}
    named = sorted(
        (name for name in MOVES if strengths[name] >= 1), key=lambda name: -strengths[name]
    )
    words = [_WORDS[name][means[name] > 0] for name in named]
    if not words and any(ways[name] >= _MIXED * _NAMED[name] for name in MOVES):
        words.append("mixed")
    if shake is not None and shake >= _HANDHELD:
        words.append("handheld")
    return ", ".join(words) or "static"
