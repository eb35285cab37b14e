"""Repeats what failed for a passing reason, after pauses that double."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")
Passing = TypeVar("Passing", bound=Exception)


@dataclass(frozen=True)
class Backoff:
    """How often and how long a passing problem is waited out.

    With `spread` each pause is up to that share longer or shorter, so that many workers don't come
    back at the same moment.
    """

    retries: int
    first_seconds: float
    longest_seconds: float
    spread: float = 0.0

    def pause_seconds(self, failures: int) -> float:
        """The pause after so many failures in a row, the first of which is 0."""
        spread = random.uniform(1 - self.spread, 1 + self.spread)
        return min(self.first_seconds * 2.0**failures * spread, self.longest_seconds)


def retried(
    attempt: Callable[[], Result],
    backoff: Backoff,
    passing: type[Passing],
    *,
    may_pass: Callable[[Passing], bool] = lambda error: True,
    sleep: Callable[[float], object] = time.sleep,
    pause_of: Callable[[Passing, float, bool], float] = lambda error, seconds, is_last: seconds,
) -> Result:
    """The result of `attempt`, which is repeated while it raises a `passing` exception.

    Raises the last one, or one that may not pass. `pause_of` gets each, the pause that is due and
    whether it was the last attempt, and returns the pause to make; it may raise instead.
    """
    failures = 0
    while True:
        try:
            return attempt()
        except passing as error:
            if not may_pass(error):
                raise
            is_last = failures == backoff.retries
            pause = pause_of(error, backoff.pause_seconds(failures), is_last)
            if is_last:
                raise
        failures += 1
        sleep(pause)
