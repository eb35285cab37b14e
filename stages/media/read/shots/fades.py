"""Finds fades to and from black or white, by how far each picture is from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.media.read.shots.spans import Span

Floats = NDArray[np.float64]

# Shorter ones are cuts, longer ones slow changes of light.
_LEAST_PICTURES = 3
_LEAST_SECONDS, _MOST_SECONDS = 0.08, 2.5
# Of the way, what one picture may take at most, or it is a cut.
_MOST_PER_PICTURE = 0.6
# The fade ends where the change falls below this share of its largest.
_ENDS = 0.2
_SMOOTH = 3
_NOISE = 0.05


@dataclass(frozen=True)
class _Measure:
    """How far each picture is from a faded one; at most `faded` is one, `shown` is a picture."""

    distance: Floats
    faded: float
    shown: float
    is_flat: bool = True
    """Whether a faded picture shows nothing at all."""

    def reversed(self) -> _Measure:
        return replace(self, distance=self.distance[::-1])


def fades(statistics: Mapping[str, Sequence[float]], seconds: Floats) -> list[Span]:
    """The fades of a video, each from the first picture that changes to the last one.

    What is black or white beside a fade is part of it.
    """
    count = len(seconds)
    if not count:
        return []
    found: list[Span] = []
    is_flat = np.zeros(count, bool)
    for measure in _measures(statistics):
        found += _to_level(measure, seconds)
        # Backwards, a fade-in is a fade-out.
        found += [
            Span("fade", count - 1 - span.last, count - 1 - span.first)
            for span in _to_level(measure.reversed(), -seconds[::-1])
        ]
        if measure.is_flat:
            is_flat |= measure.distance <= measure.faded
    return _joined([_widened(span, is_flat) for span in found], is_flat)


def _measures(statistics: Mapping[str, Sequence[float]]) -> list[_Measure]:
    mean, deviation, peak, middle_mean, middle_deviation = (
        np.array(statistics[f"tiny_{name}"])
        for name in ("brightness", "contrast", "peak", "middle_brightness", "middle_contrast")
    )
    # White is bright and flat, within bars that stay black; other bright pictures are far from it.
    from_white = middle_deviation + np.maximum(150.0 - middle_mean, 0)
    return [
        _Measure(np.hypot(mean, deviation), 7.0, 11.0, is_flat=False),
        _Measure(peak, 14.0, 28.0),  # also of text on black
        _Measure(from_white, 3.0, 14.0),
    ]


def _to_level(measure: _Measure, seconds: Floats) -> list[Span]:
    distance = measure.distance
    is_faded = distance <= measure.faded
    spans = []
    for arrival in np.flatnonzero(is_faded[1:] & ~is_faded[:-1]) + 1:
        first = _begin(distance, seconds, int(arrival))
        last = _settled(distance, seconds, int(arrival))
        fade = distance[first : last + 1]
        steps = -np.diff(fade)
        if (
            len(steps) >= _LEAST_PICTURES
            and seconds[last] - seconds[first] >= _LEAST_SECONDS
            and fade[0] >= measure.shown
            and steps.max() <= _MOST_PER_PICTURE * (fade[0] - fade[-1])
        ):
            spans.append(Span("fade", first, last))
    return spans


def _begin(distance: Floats, seconds: Floats, arrival: int) -> int:
    """The picture from which on the distance falls until `arrival`."""
    fastest = 0.0
    first = at = arrival
    while at > 0 and seconds[arrival] - seconds[at - 1] <= _MOST_SECONDS:
        at -= 1
        back, ahead = max(0, at - _SMOOTH + 1), min(arrival, at + 1)
        rate = (distance[back] - distance[ahead]) / (ahead - back)
        fastest = max(fastest, rate)
        if rate < max(_ENDS * fastest, _NOISE) and first - at >= _SMOOTH - 1:
            break
        if distance[at] > distance[first] + _NOISE:
            first = at
    return first


def _settled(distance: Floats, seconds: Floats, arrival: int) -> int:
    """The picture from which on nothing changes any more."""
    at = arrival
    while (
        at + 1 < len(distance)
        and distance[at] - distance[at + 1] > 2 * _NOISE
        and seconds[at + 1] - seconds[arrival] <= _MOST_SECONDS
    ):
        at += 1
    return at


def _widened(span: Span, is_flat: NDArray[np.bool_]) -> Span:
    """The span with the flat pictures beside it."""
    first, last = span.first, span.last
    while first > 0 and is_flat[first - 1]:
        first -= 1
    while last + 1 < len(is_flat) and is_flat[last + 1]:
        last += 1
    return replace(span, first=first, last=last)


def _joined(spans: list[Span], is_flat: NDArray[np.bool_]) -> list[Span]:
    """One span for what overlaps: several measures see the same, or black is between two.

    A picture that is fully shown, between a fade-in and a fade-out, does not join them.
    """
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.first, -span.last)):
        before = kept[-1] if kept else None
        if before is None or span.first > before.last + 1:
            kept.append(span)
            continue
        shared = min(before.last, span.last) - span.first + 1
        shorter = min(before.last - before.first, span.last - span.first) + 1
        if shared > shorter / 2 or is_flat[span.first] or is_flat[before.last]:
            kept[-1] = replace(before, last=max(before.last, span.last))
        else:
            shown = (span.first + before.last) // 2
            kept[-1] = replace(before, last=shown - 1)
            kept.append(replace(span, first=shown + 1))
    return kept
