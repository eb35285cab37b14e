"""Detects workers that make no progress: names them, then kills them.

A killed worker counts as crashed by its row, which the crash journal gives up in the end.
Independent of Ray: the engine passes on the workers' reports, and knows how to examine a process.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipmill.pipeline.engine.activity import STATES, STOPPED, Beat, Place, ProcessFinding
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.words import plain_time

STALL_SECONDS = 600.0
SILENT_SECONDS = 12.0
"""A worker silent for this long may be dead or stopped; its place counts as free."""

_LOOK_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 10.0
_LONGEST_STEP_SECONDS = 5.0


@dataclass(frozen=True)
class Seen:
    """State of a worker; `still_seconds` is how long it has made no progress."""

    beat: Beat
    place: Place | None
    still_seconds: float
    state: str | None
    is_standing: bool
    is_silent: bool

    @property
    def step(self) -> str:
        return self.place.step if self.place is not None else ""

    @property
    def pid(self) -> int:
        return self.beat.process.pid if self.beat.process is not None else 0

    def describe(self) -> str:
        """E.g. `worker 4321 on host7: stopped (T), no progress for 60 s, at v-1 (shard 000003)`."""
        said = []
        if self.is_standing or self.is_silent:
            if self.state is not None:
                said.append(f"{STATES.get(self.state, 'in state')} ({self.state})")
            said.append(f"no progress for {plain_time(self.still_seconds)}")
        said.append(self.place.describe() if self.place else "not processing a row")
        return f"worker {self.pid} on {self.beat.host}: {', '.join(said)}"


@dataclass(frozen=True)
class Lookout:
    """How long a worker may make no progress (0: forever), and who is informed.

    `show` repeatedly gets what all workers are doing. `say` gets a message about one that hangs,
    with `worker_pid`, `node` and `state`, and the `step`, `shard` and `key` that it is working on.
    """

    stall_seconds: float = STALL_SECONDS
    show: Callable[[Sequence[Seen]], None] = lambda seen: None
    say: Callable[[str, Mapping[str, Any]], None] = lambda message, about: None


@dataclass
class _Known:
    beat: Beat
    moved: float
    heard: float
    looked: float | None = None
    finding: ProcessFinding | None = None
    named: bool = False
    ended: float | None = None


@dataclass
class Standstills:
    """The workers of a run. Time counts only while their reports could arrive.

    `look` and `end` act on a beat's process, on its node, and may take long or raise; without
    `end` a worker that hangs is named but not killed. `blame` notes the rows of a place.
    """

    lookout: Lookout
    look: Callable[[Beat], ProcessFinding]
    end: Callable[[Beat], None] | None = None
    blame: Callable[[Place], None] = lambda place: None
    _known: dict[str, _Known] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _clock: float = 0.0
    _last: float | None = None

    def heard(self, beats: Mapping[str, Beat], now: float) -> None:
        """The latest report of each worker that reported since; `now` is monotonic."""
        with self._lock:
            # This process may have been stopped for hours while its workers were running.
            step = 0.0 if self._last is None else min(now - self._last, _LONGEST_STEP_SECONDS)
            self._clock, self._last = self._clock + step, now
            for worker, beat in beats.items():
                known = self._known.get(worker)
                if known is None:
                    self._known[worker] = _Known(beat, self._clock, self._clock)
                    continue
                if beat.moves != known.beat.moves:
                    known.moved, known.named, known.finding = self._clock, False, None
                known.beat, known.heard = beat, self._clock

    def seen(self) -> list[Seen]:
        """Every worker that is working, or silent."""
        with self._lock:
            return [
                self._seen(known)
                for known in self._known.values()
                if known.beat.place is not None or self._is_silent(known)
            ]

    def go_on(self, stopping: threading.Event) -> None:
        """Monitors the workers until told to stop; runs in a separate thread."""
        while not stopping.wait(_LOOK_SECONDS):
            # the disk is full, say: try again later
            with contextlib.suppress(OSError, ClipmillError):
                self.check()

    def check(self) -> None:
        """Checks workers that may hang, and acts if it is time."""
        with self._lock:
            suspects = [
                (worker, known) for worker, known in self._known.items() if self._is_suspect(known)
            ]
        for worker, known in suspects:
            self._check(worker, known)
        self.lookout.show(self.seen())

    def _is_suspect(self, known: _Known) -> bool:
        if not self._is_silent(known) and not self._is_standing(known):
            return False
        return known.looked is None or self._clock - known.looked >= min(
            _LOOK_AGAIN_SECONDS, max(self.lookout.stall_seconds / 4, _LOOK_SECONDS)
        )

    def _is_silent(self, known: _Known) -> bool:
        return self._clock - known.heard > SILENT_SECONDS

    def _is_standing(self, known: _Known) -> bool:
        # An idle worker only reports that it is alive.
        return (
            bool(self.lookout.stall_seconds)
            and (known.beat.place is not None or self._is_silent(known))
            and (self._clock - known.moved >= self.lookout.stall_seconds)
        )

    def _check(self, worker: str, known: _Known) -> None:
        known.looked = self._clock
        try:
            finding = self.look(known.beat)
        except Exception:  # noqa: BLE001  (a node that does not answer: its process may well work)
            return
        with self._lock:
            if finding.is_gone:
                self._known.pop(worker, None)
                return
            known.finding = finding
            seen = self._seen(known)
        if seen.is_standing and not known.named:
            known.named = True
            self._say(
                f"{seen.step or 'a stage'} makes no progress: {seen.describe()}"
                f"{self._what_next(seen)}",
                seen,
            )
        elif (
            seen.is_standing
            and known.ended is None
            and (seen.still_seconds >= 2 * self.lookout.stall_seconds)
        ):
            self._end(known, seen)

    def _what_next(self, seen: Seen) -> str:
        if self.end is None:
            return ""
        if not _may_end(seen):
            return "; it is not processing a row, so it is left alone"
        return (
            f"; it will be killed after another {plain_time(self.lookout.stall_seconds)} "
            "without progress (stall_seconds)"
        )

    def _end(self, known: _Known, seen: Seen) -> None:
        if self.end is None or not _may_end(seen):
            return
        what = ""
        if seen.place is not None and seen.place.keys:
            self.blame(seen.place)
            what = "; a row at which this happens twice is a crash"
        known.ended = self._clock
        with contextlib.suppress(Exception):  # its node may be lost, and the worker with it
            self.end(known.beat)
        self._say(f"{seen.step or 'a stage'}: killed {seen.describe()}{what}", seen)

    def _say(self, message: str, seen: Seen) -> None:
        place = seen.place
        about = {"worker_pid": seen.pid, "node": seen.beat.host, "state": seen.state}
        if place is not None:
            about |= {
                "step": place.step,
                "shard": place.shard,
                "key": place.keys[0] if place.keys else None,
            }
        self.lookout.say(message, about)

    def _seen(self, known: _Known) -> Seen:
        place, state = known.beat.place, known.beat.state
        silent = self._is_silent(known)
        if known.finding is not None:
            # Newer than the last report of a silent worker.
            place, state = known.finding.place or place, (known.finding.state if silent else state)
        return Seen(
            known.beat, place, self._clock - known.moved, state, self._is_standing(known), silent
        )


def _may_end(seen: Seen) -> bool:
    """Models may take long to load, and a commit may wait for a disk: no row is at fault."""
    return seen.state in STOPPED or (seen.place is not None and bool(seen.place.keys))
