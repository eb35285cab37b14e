"""Ends a run whose stage only fails: if its first rows all fail alike, no other would fare better.

A row may be to blame for its own failure (a broken file, a removed video); a stage fails row after
row with one message. Shards that hold nothing but such failures are kept back while nothing speaks
for the stage, so that none of their rows is recorded as failed if the run ends. If it doesn't,
they are done at the end.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.schemas.errors import ClipmillError, ErrorKind, ServerRefused, printable
from clipmill.schemas.words import counted
from clipmill.stages.models.checks.servers import said_of_refusal

SETTING = "stop_after_alike_failures"
_LONGEST_SHAPE = 300
_LONGEST_MESSAGE = 400
# What differs between failures that are alike: what is quoted, places, and whatever has a digit.
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|“[^”]*”")
_NAMED = re.compile(r"\S*[\d/\\]\S*")
# Of rows that fetch a file: whether a site refuses to serve anyone. Else it is about one video.
_OF_FETCHING: frozenset[ErrorKind] = frozenset(("blocked",))
# Of all others, until something succeeds. A broken file, or one that kills its worker, is its own.
_AT_FIRST: frozenset[ErrorKind] = frozenset(("model", "blocked", "transient", "permanent"))
# And after that: models fail on some rows, but a server that doesn't answer fails on all.
_LATER: frozenset[ErrorKind] = frozenset(("blocked", "transient"))


class OnlyFails(ClipmillError):
    """A stage's rows all fail alike; none of them is recorded as failed."""


@dataclass(frozen=True)
class Alike:
    """What failures have in common: the kind, and the message without what names one row."""

    kind: ErrorKind
    shape: str
    message: str = field(compare=False)

    @classmethod
    def of(cls, kind: ErrorKind, message: str) -> Alike:
        shape = _NAMED.sub("#", _QUOTED.sub("#", message))
        return cls(kind, " ".join(shape.split())[:_LONGEST_SHAPE], message)

    def __str__(self) -> str:
        line = " ".join(printable(self.message).split())
        return line if len(line) <= _LONGEST_MESSAGE else f"{line[: _LONGEST_MESSAGE - 1]}…"


@dataclass
class _Fare:
    """How a step's rows fare in one process: whether any did well, and the latest alike ones."""

    is_proven: bool = False
    last: Alike | None = None
    in_a_row: int = 0


class FirstRows:
    """How the first rows of each step of one worker fare; usable from any thread.

    With a `limit` of 0 nothing is counted; unless it `keeps_back`, every shard is committed.
    """

    def __init__(self, limit: int, keeps_back: bool) -> None:
        self.limit = limit
        self.keeps_back = keeps_back
        self._lock = threading.Lock()
        self._steps: dict[str, _Fare] = {}

    def of_shard(self, step: PlannedStep, *, tried_before: bool) -> RowsOfShard:
        """For one shard; rows that were `tried_before` may well fail alike again."""
        with self._lock:
            fare = self._steps.setdefault(step.label, _Fare())
        return RowsOfShard(self, step, fare, self.limit > 0 and not tried_before, self._lock)


class RowsOfShard:
    """How the rows of one step in one shard fare."""

    def __init__(
        self, first: FirstRows, step: PlannedStep, fare: _Fare, counts: bool, lock: threading.Lock
    ) -> None:
        self._first, self._step, self._fare = first, step, fare
        self._counts, self._lock = counts, lock
        self._any_good = False
        self._alike: set[Alike] = set()

    def saw(self, table: pa.Table) -> Counter[Any]:
        """The failures that blame the stage, for the driver; OnlyFails if the limit is reached."""
        found: Counter[Any] = Counter()
        if not self._counts:
            return found
        with self._lock:
            for kind, message in _outcomes(self._step.stage.key, table):
                if kind is None:
                    self._any_good = self._fare.is_proven = True
                    self._fare.last, self._fare.in_a_row = None, 0
                elif kind in self._blaming():
                    alike = Alike.of(kind, message)
                    self._alike.add(alike)
                    found[alike] += 1
                    same = alike == self._fare.last
                    self._fare.in_a_row = self._fare.in_a_row + 1 if same else 1
                    self._fare.last = alike
                    if self._fare.in_a_row >= self._first.limit:
                        first = "last" if self._fare.is_proven else "first"
                        raise only_fails(self._step.stage_label, self._first.limit, alike, first)
        return found if self._step.label == self._step.stage_label else Counter()

    @property
    def is_kept_back(self) -> bool:
        """Whether the shard holds nothing but failures that are alike and may be the stage's."""
        if not self._counts or not self._first.keeps_back:
            return False
        with self._lock:
            return (
                not self._any_good
                and len(self._alike) == 1
                and all(alike.kind in self._blaming() for alike in self._alike)
            )

    def _blaming(self) -> frozenset[ErrorKind]:
        """The kinds of failures that may be the stage's, as far as is known."""
        if self._step.stage.key == "source_key":
            return _OF_FETCHING
        return _LATER if self._fare.is_proven else _AT_FIRST


@dataclass
class AllRows:
    """How the first rows of each stage fare over all workers; the driver's."""

    limit: int
    _alike: dict[str, Counter[Alike]] = field(default_factory=dict)
    _proven: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, label: str, counts: Mapping[Any, Any]) -> bool:
        """Counts what a worker reports; True if the run should end."""
        with self._lock:
            if counts.get("kept", 0) > 0 or counts.get("rejected", 0) > 0:
                self._proven.add(label)
            for alike, number in counts.items():
                if isinstance(alike, Alike):
                    self._alike.setdefault(label, Counter())[alike] += number
        return self.problem() is not None

    def problem(self) -> OnlyFails | None:
        """Why the run should end; None if it need not."""
        for label, alike, number in self._unproven():
            if self.limit and number >= self.limit:
                return only_fails(label, number, alike, "first")
        return None

    def lines(self) -> list[str]:
        """A line for each stage of which no row did well and all failed alike."""
        return [
            f"{label}: all {counted(number, 'row')} failed alike: {alike}"
            for label, alike, number in self._unproven()
            if number > 1
        ]

    def _unproven(self) -> Iterator[tuple[str, Alike, int]]:
        with self._lock:
            found = [
                (label, *next(iter(alike.items())))
                for label, alike in self._alike.items()
                if label not in self._proven and len(alike) == 1
            ]
        yield from found


def only_fails(label: str, number: int, alike: Alike, which: str) -> OnlyFails:
    """The error that ends a run."""
    return OnlyFails(
        f"{label}: the {which} {counted(number, 'row')} all failed alike ({alike.kind}): {alike}\n"
        "None of these rows is recorded as failed: run again once the cause is gone. If the rows "
        f"are to blame and not the stage, go on with --set {SETTING}=0"
    )


def refused(error: ServerRefused) -> ClipmillError:
    """The error that ends a run whose model's server refuses every request."""
    return ClipmillError(
        f"{said_of_refusal(error)}. No row is recorded as failed: run again to continue"
    )


def _outcomes(key: str, table: pa.Table) -> Iterator[tuple[ErrorKind | None, str]]:
    """Each key's failure, in order; None for one that did well, be it kept or rejected."""
    seen = set()
    for name, error in zip(table[key].to_pylist(), table["error"].to_pylist(), strict=True):
        if name not in seen:
            seen.add(name)
            yield (None, "") if error is None else (error["kind"], error["message"] or "")
