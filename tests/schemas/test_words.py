"""Messages use the singular for one thing, and name what was probably meant."""

from __future__ import annotations

import pytest

from clipmill.schemas.words import (
    counted,
    did_you_mean,
    near_or_known,
    plain_hours,
    plain_size,
    plain_time,
)


@pytest.mark.parametrize(
    ("number", "word", "said"),
    [(1, "clip", "1 clip"), (0, "clip", "0 clips"), (2114, "failed row", "2,114 failed rows")],
)
def test_one_thing_is_singular(number: int, word: str, said: str):
    assert counted(number, word) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.42, "0.4 s"),
        (14, "14 s"),
        (119, "119 s"),
        (360, "6 min"),
        (9000, "2.5 hours"),
        (4_725_000, "1,312.5 hours"),
    ],
)
def test_duration_has_a_suitable_unit(seconds: float, said: str):
    assert plain_time(seconds) == plain_hours(seconds / 3600) == said


@pytest.mark.parametrize(
    ("size", "said"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e15, "2500.0 TB")]
)
def test_bytes_are_said_in_a_unit_that_fits(size: float, said: str):
    assert plain_size(size) == said


def test_a_close_word_is_named_first():
    known = ["similarity", "aesthetic", "motion"]
    assert did_you_mean("asthetic", known) == "did you mean aesthetic? "
    assert did_you_mean("asthetic", known, shown=repr) == "did you mean 'aesthetic'? "
    assert did_you_mean("xyz", known) == did_you_mean("xyz", []) == ""
    assert near_or_known("moton", known) == (
        "did you mean motion? known: similarity, aesthetic, motion"
    )
    assert near_or_known("xyz", []) == "there are none"
