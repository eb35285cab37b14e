"""Where a shot may end: pictures that differ from the last one more than their surroundings do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.media.read.shots.windows import MOST_FRAMES, Floats, Indexes

AROUND = 8
"""Number of steps before and after whose differences are compared with."""
# Those next to a cut may be blends of both shots.
_NEAREST = 2
_OTHERS = np.r_[-AROUND : -_NEAREST + 1, _NEAREST : AROUND + 1]
_BESIDE = AROUND * MOST_FRAMES
CONTEXT = _BESIDE + AROUND
"""Pictures on each side that decide on one."""
# Pictures further apart differ more, but less than proportionally.
GROWTH = 0.7
# What counts as no difference: noise of the encoder.
_FLOOR = {"l1": 1.0, "correlation": 0.01, "histogram": 0.01}


@dataclass(frozen=True)
class Rule:
    """How many times the median around it each difference must be."""

    l1: float
    correlation: float
    histogram: float


RULE = Rule(1.6, 1.2, 1.0)
"""The candidates that are looked at."""
STORED = Rule(1.4, 1.0, 0.8)
"""The candidates whose thumbnails are stored: more, so that the rule can change later."""


@dataclass(frozen=True)
class Differences:
    """Differences of each picture from the one before, NaN where there is none.

    `gaps` are distances in frames: 1, or more where pictures between were not decoded. `steps`
    are the frames of a step.
    """

    l1: Floats
    correlation: Floats
    histogram: Floats
    gaps: Floats
    steps: Indexes


@dataclass(frozen=True)
class Relative:
    """The differences, divided by the median of those around."""

    l1: Floats
    correlation: Floats
    histogram: Floats


def relative(differences: Differences) -> Relative:
    gaps = np.maximum(differences.gaps, 1.0)
    growth = gaps**GROWTH
    # On a line of frames, each difference stands at all frames that it spans.
    spanned = np.minimum(gaps, _BESIDE).astype(np.intp)
    places = np.cumsum(spanned) - 1 + _BESIDE
    others = places[:, None] + differences.steps[:, None] * _OTHERS
    return Relative(
        *(
            _against_median(getattr(differences, name) / growth, spanned, others, floor)
            for name, floor in _FLOOR.items()
        )
    )


def candidates(found: Relative, rule: Rule) -> NDArray[np.bool_]:
    """Which pictures may begin a shot."""
    score = np.nan_to_num(found.l1)
    return (
        (score > _shifted(score, 1))
        & (score >= _shifted(score, -1))
        & (score >= rule.l1)
        & (_widened(found.correlation) >= rule.correlation)
        & (_widened(found.histogram) >= rule.histogram)
    )


def _against_median(values: Floats, spanned: Indexes, others: Indexes, floor: float) -> Floats:
    line = np.pad(np.repeat(values, spanned), _BESIDE, constant_values=np.nan)
    sorted_ = np.sort(line[others], axis=1)  # NaN comes last
    count = np.count_nonzero(~np.isnan(sorted_), axis=1)
    rows = np.arange(len(values))
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    middle = (sorted_[rows, low] + sorted_[rows, np.minimum(high, len(_OTHERS) - 1)]) / 2
    middle = np.where(count > 0, middle, 0.0)
    # `high` is past the last value only where there is none.
    return (values + floor) / (middle + floor)


def _shifted(values: Floats, step: int) -> Floats:
    """The values `step` places later, 0 where there are none."""
    moved = np.zeros_like(values)
    if step > 0:
        moved[step:] = values[:-step]
    else:
        moved[:step] = values[-step:]
    return moved


def _widened(values: Floats) -> Floats:
    """The maximum of each value and its neighbours."""
    known = np.nan_to_num(values)
    found: Floats = np.maximum.reduce([known, _shifted(known, 1), _shifted(known, -1)])
    return found
