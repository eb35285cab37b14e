"""Which frames are kept, tested with pictures that cost nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.stages.media.read.frame_selector import HELD, TAKE_SCORE, FrameKeeper
from clipmill.stages.media.read.picture import Picture

SIZE = (8, 8)


def kept_seconds(times: list[float], begins: set[int] = frozenset(), per_second: float = 2.0):
    image = np.zeros((8, 8, 3), np.uint8)
    with FrameKeeper(per_second, 90) as keeper:
        for number, seconds in enumerate(times):
            picture = Picture(number, seconds, 0, 0.0, image, lambda size: image, image.nbytes)
            score = TAKE_SCORE if number in begins else 0.0
            keeper.add(picture, SIZE, score, number == 0)
        return [frame["seconds"] for frame in keeper.finish(SIZE)]


@pytest.mark.parametrize("seconds", [1.0, 1.9, 2.5, 3.9, 5.0, 8.0])
def test_take_has_eight_to_sixteen_evenly_spread_frames(seconds):
    kept = kept_seconds([i / 24 for i in range(round(seconds * 24))])

    assert 8 <= len(kept) <= HELD + 1
    gaps = np.diff(kept)
    assert gaps.max() - gaps.min() < 0.3 * gaps.max()


def test_long_take_keeps_the_minimum_rate():
    kept = kept_seconds([i / 25 for i in range(60 * 25)])

    assert 120 <= len(kept) <= 130


def test_cut_starts_a_new_take_with_its_first_frame():
    kept = kept_seconds([i / 24 for i in range(20 * 24)], begins={240, 288})

    assert 10.0 in kept
    assert sum(10 <= t < 12 for t in kept) >= 8


@settings(max_examples=60)
@given(
    steps=st.lists(st.sampled_from([0.02, 1 / 24, 0.1, 0.4]), min_size=30, max_size=400),
    begins=st.sets(st.integers(0, 400), max_size=8),
    rate=st.sampled_from([1.0, 2.0, 3.0, 8.0]),
)
def test_no_gap_is_longer_than_the_rate_allows(steps, begins, rate):
    """With uneven frame distances, a gap may be one source frame longer."""
    times = np.cumsum(steps).tolist()

    kept = kept_seconds(times, begins, rate)

    assert kept[0] == times[0]
    gaps = np.diff([*kept, times[-1]])
    assert gaps.max() <= 1 / rate + max(steps) + 1e-9
    if len(set(steps)) == 1 and steps[0] <= 1 / rate:
        assert gaps.max() <= 1 / rate + 1e-9
