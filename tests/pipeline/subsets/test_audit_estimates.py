"""Precision and recall from a stratified sample: unbiased, with intervals that hold."""

from __future__ import annotations

import numpy as np
import pytest

from clipmill.pipeline.dataset.audit_estimates import (
    Cell,
    Estimate,
    Part,
    Quality,
    consistent,
    quality,
    wilson,
)
from clipmill.pipeline.subsets.shares import equal

SHARES = (0.2, 0.3, 0.5)


def test_wilson_is_as_published():
    """Newcombe 1998: 81 of 263, and 0 of 20; a population without end."""
    assert wilson(81, 263, 10**12) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20, 10**12) == pytest.approx((0, 0.1611), abs=1e-4)


def test_whole_population_is_exact():
    cells = [Cell(Part(3, 3, 2), Part(0)), Cell(Part(0), Part(5, 5, 2))]
    found = quality(cells)
    assert found.precision == Estimate(2 / 3, 2 / 3, 2 / 3)
    assert found.recall == Estimate(0.5, pytest.approx(0.5), pytest.approx(0.5))
    all_found = quality([Cell(Part(3, 3, 2), Part(0)), Cell(Part(0), Part(5, 5, 0))])
    assert all_found.recall == Estimate(1, 1, 1)


@pytest.mark.parametrize(
    "cells",
    [
        [Cell(Part(30), Part(0)), Cell(Part(0), Part(50))],  # nothing is labelled
        [Cell(Part(30), Part(0)), Cell(Part(0), Part(50, 5, 2))],  # only what is left out
    ],
)
def test_nothing_is_said_without_labels_of_kept_clips(cells):
    assert quality(cells) == Quality(None, None, 30)


def test_only_no_gives_precision_and_no_recall():
    found = quality([Cell(Part(30, 6, 0), Part(0)), Cell(Part(0), Part(50, 6, 0))])
    assert found.precision is not None
    assert (found.precision.value, found.precision.low) == (0, 0)
    assert found.precision.high > 0.3
    assert found.recall is None


def test_recall_falls_from_threshold_to_threshold():
    """Of thresholds from the loosest on, each keeps what the next one keeps."""
    made = [(0.9, 0.5, 1.0), (1.0, 0.6, 1.0), (0.7, 0.5, 0.8), (0.8, 0.4, 0.9)]
    found = consistent([Quality(None, Estimate(*one), 0) for one in made], 2)
    recalls = [one.recall for one in found if one.recall is not None]
    assert [one.value for one in recalls] == [1.0, 1.0, 0.7, 0.7]
    assert [one.low for one in recalls] == [0.6, 0.6, 0.5, 0.4]
    assert [one.high for one in recalls] == [1.0, 1.0, 0.8, 0.8]


@pytest.mark.parametrize(
    ("clips", "steepness", "middle", "threshold"),
    [(2000, 3, 5, 4.5), (2000, 8, 5, 5.0), (2000, 1, 5, 5.0), (300, 3, 5, 6.0), (5000, 3, 7, 6.0)],
)
@pytest.mark.parametrize("drawn", [30, 100])
def test_intervals_hold_and_estimates_are_unbiased(clips, steepness, middle, threshold, drawn):
    """Simulated: at least 90% of the 95% intervals hold the truth, at two thresholds."""
    rng = np.random.default_rng(7)
    score = rng.normal(5, 1, clips)
    belongs = rng.random(clips) < 1 / (1 + np.exp(-steepness * (score - middle)))
    strata = strata_of(score, threshold, drawn)
    at = (threshold, threshold + 0.4)
    found: dict[tuple[str, float], list[Estimate]] = {}
    for _ in range(300):
        sample = [(ids, rng.choice(ids, number, replace=False)) for ids, number in strata]
        for limit in at:
            made = quality([cell(score, belongs, limit, *one) for one in sample])
            for name, estimate in (("precision", made.precision), ("recall", made.recall)):
                if estimate is not None:
                    found.setdefault((name, limit), []).append(estimate)
    for (name, limit), estimates in found.items():
        kept = score >= limit
        truth = (kept & belongs).sum() / (kept if name == "precision" else belongs).sum()
        holds = [one.low - 1e-9 <= truth <= one.high + 1e-9 for one in estimates]
        assert np.mean(holds) >= 0.9, (name, limit)
        if name == "precision" and limit == threshold:
            values = [one.value for one in estimates]
            error = 4 * np.std(values) / len(values) ** 0.5
            assert np.mean(values) == pytest.approx(truth, abs=error + 1e-9)


def strata_of(score: np.ndarray, threshold: float, drawn: int) -> list[tuple[np.ndarray, int]]:
    """Clips by stratum, with how many to draw, as audits do."""
    kept, found = score >= threshold, []
    sides = [np.flatnonzero(kept), np.flatnonzero(~kept)]
    for ids, share in zip(sides, equal(np.array([len(s) for s in sides]), drawn), strict=True):
        by_distance = ids[np.argsort(abs(score[ids] - threshold))]
        ends = np.ceil(np.cumsum(SHARES)[:-1] * len(ids)).astype(int)
        parts = np.split(by_distance, ends)
        numbers = equal(np.array([len(part) for part in parts]), int(share))
        found += list(zip(parts, numbers.tolist(), strict=True))
    return found


def cell(
    score: np.ndarray, belongs: np.ndarray, limit: float, ids: np.ndarray, drawn: np.ndarray
) -> Cell:
    parts = []
    for side in (True, False):
        here = drawn[(score[drawn] >= limit) == side]
        clips = int(((score[ids] >= limit) == side).sum())
        parts.append(Part(clips, len(here), int(belongs[here].sum())))
    return Cell(*parts)
