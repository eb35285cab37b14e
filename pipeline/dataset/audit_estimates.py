"""Estimates precision and recall from labels of a stratified sample, with 95% intervals.

Each stratum of N clips was sampled at random, so the share of yes among its labelled clips
estimates the share among all of them, and N times that share the number of clips that belong.
Precision is the sum of these numbers over the kept clips, divided by how many are kept; recall is
that sum, divided by the same sum over all clips.

Intervals: Wilson's for the share in each stratum, with the correction for a finite population, so
that a stratum labelled as a whole is exact, and with Student's quantile for labels minus strata,
which a few labels per stratum need. Intervals of sums and of the ratio follow from these by MOVER
(Zou and Donner 2008; Donner and Zou 2012), which also holds where all labels of a stratum agree.

At a threshold that divides a stratum, each part is a stratum of its own: how many clips it has is
known, and those drawn from it are a random sample of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

Z = 1.959963984540054
"""The normal distribution's quantile for intervals of 95%."""


@dataclass(frozen=True)
class Part:
    """Clips of one stratum on one side of a threshold; how many are labelled, and how many yes."""

    clips: int
    labelled: int = 0
    yes: int = 0


@dataclass(frozen=True)
class Cell:
    """One stratum, divided by a threshold."""

    kept: Part
    left_out: Part


@dataclass(frozen=True)
class Estimate:
    """A share with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """What a threshold is worth; None for what the labels can't tell yet."""

    precision: Estimate | None
    recall: Estimate | None
    clips: int
    """How many clips it keeps."""


@dataclass(frozen=True)
class _Total:
    """An estimated number of clips, and how far its limits are from it."""

    value: float
    below: float
    above: float


def quantile(degrees: int) -> float:
    """Student's two-sided 95% quantile, by its expansion around the normal one."""
    n = max(2, degrees)
    return (
        Z
        + (Z**3 + Z) / (4 * n)
        + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * n**2)
        + (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / (384 * n**3)
    )


def wilson(yes: int, labelled: int, clips: int, z: float = Z) -> tuple[float, float]:
    """Limits of the share of yes among `clips`, of which some were drawn and labelled."""
    if labelled >= clips:
        return yes / labelled, yes / labelled
    share = yes / labelled
    n = labelled * (clips - 1) / (clips - labelled)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if yes == 0 else (share + z * z / (2 * n) - spread) / (1 + z * z / n)
    high = 1.0 if yes == labelled else (share + z * z / (2 * n) + spread) / (1 + z * z / n)
    return low, high


def quality(cells: Sequence[Cell]) -> Quality:
    """Precision and recall of the threshold that divides the strata into these cells.

    None without any label on the side, or the sides, that they are about.
    """
    kept = sum(cell.kept.clips for cell in cells)
    parts = [part for cell in cells for part in (cell.kept, cell.left_out)]
    labelled = sum(part.labelled for part in parts)
    has_kept = any(cell.kept.labelled for cell in cells)
    has_left_out = any(cell.left_out.labelled for cell in cells) or all(
        not cell.left_out.clips for cell in cells
    )
    if not labelled:
        return Quality(None, None, kept)
    share = sum(part.yes for part in parts) / labelled
    belong = _total([(cell, cell.kept) for cell in cells], share)
    missed = _total([(cell, cell.left_out) for cell in cells], share)
    precision = None
    if has_kept:
        precision = Estimate(
            belong.value / kept,
            max(0.0, belong.value - belong.below) / kept,
            min(1.0, (belong.value + belong.above) / kept),
        )
    recall = _recall(belong, missed) if has_kept and has_left_out else None
    return Quality(precision, recall, kept)


def consistent(found: Sequence[Quality], audited: int) -> list[Quality]:
    """Estimates at thresholds from the loosest on, of which each keeps all that the next one keeps.

    So recall can only fall, which estimates from different parts of the sample need not do: beyond
    the audited threshold, each is at most (or at least) the one before it. Limits hold for all
    that must be higher or lower.
    """
    places = [place for place, one in enumerate(found) if one.recall is not None]
    if audited not in places:
        return list(found)
    recalls = [one.recall for one in found if one.recall is not None]
    values = [one.value for one in recalls]
    middle = places.index(audited)
    for place in range(middle + 1, len(values)):
        values[place] = min(values[place], values[place - 1])
    for place in range(middle - 1, -1, -1):
        values[place] = max(values[place], values[place + 1])
    highs = list(accumulate((one.high for one in recalls), min))
    lows = list(accumulate((one.low for one in reversed(recalls)), max))[::-1]
    made = list(found)
    for place, value, low, high in zip(places, values, lows, highs, strict=True):
        made[place] = replace(
            found[place], recall=Estimate(value, min(low, value), max(high, value))
        )
    return made


def _total(parts: Sequence[tuple[Cell, Part]], guess: float) -> _Total:
    """How many clips of these parts belong.

    A part without labels may hold any number; the best guess is the share in its stratum, or else
    in the whole sample.
    """
    sampled = [part.labelled - 1 for _, part in parts if part.labelled]
    z = quantile(sum(sampled))
    value, below, above = 0.0, 0.0, 0.0
    for cell, part in parts:
        if not part.clips:
            continue
        if part.labelled:
            share = part.yes / part.labelled
            low, high = wilson(part.yes, part.labelled, part.clips, z)
        else:
            both = (cell.kept, cell.left_out)
            labelled = sum(one.labelled for one in both)
            share = sum(one.yes for one in both) / labelled if labelled else guess
            low, high = 0.0, 1.0
        value += part.clips * share
        below += (part.clips * (share - low)) ** 2
        above += (part.clips * (high - share)) ** 2
    return _Total(value, math.sqrt(below), math.sqrt(above))


def _recall(belong: _Total, missed: _Total) -> Estimate | None:
    """belong / (belong + missed); None if no clip seems to belong anywhere.

    Its limits are where the interval of `odds * missed - belong` ends at zero, for the odds
    belong : missed.
    """
    if not belong.value and not missed.value:
        return None
    low = _odds(belong, missed, -1, missed.above, belong.below)
    high = _odds(belong, missed, 1, missed.below, belong.above)
    return Estimate(belong.value / (belong.value + missed.value), _share(low), _share(high))


def _odds(
    belong: _Total, missed: _Total, side: int, of_missed: float, of_belong: float
) -> float | None:
    """The odds at which (odds * missed - belong)² = (odds * of_missed)² + of_belong²."""
    a = missed.value**2 - of_missed**2
    b = -2 * missed.value * belong.value
    c = belong.value**2 - of_belong**2
    limit = None if side > 0 else 0.0
    if not missed.value and not of_missed:
        return None  # none is missed, for certain
    if abs(a) < 1e-12 * max(1.0, missed.value**2):
        found = [-c / b] if b else []
    else:
        inside = b * b - 4 * a * c
        root = math.sqrt(max(0.0, inside))
        found = [(-b - root) / (2 * a), (-b + root) / (2 * a)] if inside >= -1e-9 else []
    # Only on the right side of the estimate: squaring has added a root on the other one.
    right = [
        odds for odds in found if odds >= 0 and side * (odds * missed.value - belong.value) >= -1e-9
    ]
    if not right:
        return limit
    return min(right) if side > 0 else max(right)


def _share(odds: float | None) -> float:
    """The share for odds; None stands for infinite ones."""
    return 1.0 if odds is None else max(0.0, odds / (1 + odds))
