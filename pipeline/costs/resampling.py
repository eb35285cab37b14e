"""Ranges by bootstrap: everything is computed again for resampled groups of shards.

A replicate draws the measured groups anew, and, as what is still to be done varies by itself, also
as many groups as that would fill. One draw holds for all steps, so that steps which depend on the
same videos vary together. The first replicate is the estimate itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipmill.pipeline.costs.rates import Values

REPLICATES = 400
COVERAGE = 0.9
_MOST_GROUPS = 1_000_000
_LEAST_FOR_LINE = 4


@dataclass(frozen=True)
class Range:
    """An estimate with its 90% interval; no interval if too little was measured."""

    value: float
    low: float | None
    high: float | None

    def as_json(self) -> dict[str, float | None]:
        return {name: _rounded(getattr(self, name)) for name in ("value", "low", "high")}


@dataclass
class Resampling:
    """The weights of groups in each replicate; `left` is the work to do, relative to that done."""

    groups: Sequence[str]
    left: float

    def __post_init__(self) -> None:
        n = max(1, len(self.groups))
        random = np.random.default_rng(0)
        even = np.full(n, 1 / n)
        drawn = random.multinomial(n, even, REPLICATES) / n
        more = int(np.clip(round(n * self.left), 1, _MOST_GROUPS))
        to_come = random.multinomial(more, even, REPLICATES) / more
        weights = np.clip(drawn + to_come - 1 / n, 0, None)
        self._weights = np.vstack([even, weights]) * n
        self._at = {group: number for number, group in enumerate(self.groups)}

    def constant(self, value: float) -> Values:
        return np.full(REPLICATES + 1, float(value))

    def unknown(self) -> Values:
        return self.constant(float("nan"))

    def per_row_and_shard(
        self, groups: Sequence[str], amounts: Values, rows: Values, shards: Values
    ) -> tuple[Values, Values]:
        """What each row takes, and what each shard takes beside: a line through the groups.

        Small shards are dearer per row than large ones, because a part of the work is done once
        per batch. How much is known as far as shards differ in size, so it is reduced towards 0 by
        its own uncertainty; whatever it is, the line explains the measured total.
        """
        weights = self._weights[:, [self._at[group] for group in groups]]
        by_shard = _slope(weights, amounts, rows, shards)
        left = (weights @ amounts) - by_shard * (weights @ shards)
        with np.errstate(invalid="ignore", divide="ignore"):
            by_row: Any = left / (weights @ rows)
        whole = by_row[0] if np.isfinite(by_row[0]) else float("nan")
        return np.asarray(np.where(np.isfinite(by_row), by_row, whole)), by_shard

    def ratio(self, groups: Sequence[str], above: Values, below: Values) -> Values:
        """Total `above` per total `below`, both given by group; unknown if there is nothing."""
        weights = self._weights[:, [self._at[group] for group in groups]]
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Any = (weights @ above) / (weights @ below)
        all_groups = found[0] if np.isfinite(found[0]) else float("nan")
        return np.asarray(np.where(np.isfinite(found), found, all_groups))


def _slope(weights: Values, amounts: Values, rows: Values, shards: Values) -> Values:
    """What each shard takes in each replicate, by least squares; larger shards vary more."""
    nothing = np.zeros(len(weights))
    some = (rows > 0) & np.isfinite(amounts)
    if some.sum() < _LEAST_FOR_LINE:
        return nothing
    w, y, x, c = weights[:, some], amounts[some], rows[some], shards[some]
    cc, cx, xx = w @ (c * c / x), w @ c, w @ x
    spread = cc * xx - cx * cx
    if spread[0] <= 1e-9 * cc[0] * xx[0]:
        return nothing  # all are of one size
    with np.errstate(invalid="ignore", divide="ignore"):
        slope: Any = ((w @ (c * y / x)) * xx - (w @ y) * cx) / spread
        most: Any = np.nan_to_num((w @ y) / cx)  # all of it
    at = slope[0]
    by_row = (y.sum() - at * c.sum()) / x.sum()
    variance = float(((y - at * c - by_row * x) ** 2 / x).sum()) / (len(y) - 2)
    # The first replicate's weights are all 1, as are those of this sum.
    squared_error = variance * xx[0] / spread[0]
    trust = at * at / (at * at + squared_error) if at else 0.0
    return np.asarray(np.clip(np.where(np.isfinite(slope), trust * slope, 0.0), 0.0, most))


def range_of(values: Values, *, known: bool = True) -> Range | None:
    """The estimate in all replicates as a range; None if it is unknown."""
    value = float(values[0])
    if not np.isfinite(value):
        return None
    if not known:
        return Range(value, None, None)
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(values[1:], [tail, 100 - tail])
    return Range(value, min(float(low), value), max(float(high), value))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
