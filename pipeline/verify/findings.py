"""Findings of verify: one per fault, with its remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from clipmill.schemas.command_line import shell_word, start_a_run
from clipmill.schemas.folders import SOURCES


@dataclass(frozen=True)
class Remake:
    """A step's shard is to be made again, with all of its base shard that was made from it.

    The step `sources` has no fingerprint.
    """

    label: str
    fingerprint: str
    shard: str


@dataclass(frozen=True)
class SetAside:
    """Files or folders, relative to the dataset, to set aside."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class Reopen:
    """A removal that was marked as finished, but was not."""

    tombstone: str


Remedy = Remake | SetAside | Reopen


@dataclass(frozen=True)
class Finding:
    """One finding. `where` is relative to the dataset; `remedies` are what repair does.

    `at_rest` marks what is a fault only if no run is active.
    """

    check: str
    where: str
    what: str
    next_step: str
    remedies: tuple[Remedy, ...] = ()
    at_rest: bool = False


@dataclass(frozen=True)
class Repaired:
    """What a repair did: the files moved, where to, and the shards that a run must make again."""

    folder: Path | None
    moved: tuple[str, ...]
    awaited: tuple[str, ...]
    reopened: int
    left: tuple[Finding, ...]

    @property
    def needs_sources(self) -> bool:
        """Whether the recipe's sources must be read again."""
        return any(name.startswith(f"{SOURCES}/") for name in self.awaited)


@dataclass
class Verification:
    """All findings, and how much was checked; `repaired` if a repair was requested."""

    dataset: str
    faults: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    pending: int = 0
    others: list[str] = field(default_factory=list)
    is_running: bool = False
    repaired: Repaired | None = None


class Book:
    """Collects findings, with next steps in terms of the command line."""

    def __init__(self, dataset: str) -> None:
        self.report = Verification(dataset)
        self.dataset = dataset

    @property
    def repair(self) -> str:
        return f"`clipmill verify {shell_word(self.dataset)} --repair` sets it aside"

    @property
    def again(self) -> str:
        return f"`clipmill run --dataset {shell_word(self.dataset)}`"

    def fault(
        self,
        check: str,
        where: str,
        what: str,
        next_step: str,
        *remedies: Remedy,
        at_rest: bool = False,
    ) -> None:
        self.report.faults.append(Finding(check, where, what, next_step, remedies, at_rest))

    def note(
        self, check: str, where: str, what: str, next_step: str = "", *, at_rest: bool = False
    ) -> None:
        self.report.notes.append(Finding(check, where, what, next_step, (), at_rest))

    def remake(
        self,
        check: str,
        where: str,
        what: str,
        label: str,
        fingerprint: str,
        shard: str,
        *more: Remedy,
        at_rest: bool = False,
    ) -> None:
        """Adds a fault of a shard that can be made again."""
        self.fault(
            check,
            where,
            what,
            f"{self.repair} with everything made from it, then {self._makes_again(label)}",
            Remake(label, fingerprint, shard),
            *more,
            at_rest=at_rest,
        )

    def _makes_again(self, label: str) -> str:
        if label == "sources":
            return (
                "take these sources again: import them where they were imported, else "
                f"{start_a_run(self.dataset)}"
            )
        return f"{self.again} makes it again"

    def stray(self, check: str, where: str, what: str) -> None:
        """Adds a file or folder that does not belong to the dataset."""
        self.fault(check, where, what, self.repair, SetAside((where,)), at_rest=True)

    def drop_what_is_at_work(self) -> None:
        """Drops what is not a fault during a run: unfinished work is not broken."""
        self.report.faults = [f for f in self.report.faults if not f.at_rest]
        self.report.notes = [f for f in self.report.notes if not f.at_rest]


def some(keys: Iterable[str]) -> str:
    """A number and the first examples, for a message."""
    names = sorted(keys)
    shown = ", ".join(repr(name)[1:-1] for name in names[:3])
    return f"{shown}{', …' if len(names) > 3 else ''}"
