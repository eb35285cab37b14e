"""What a worker is doing: noted by its threads, read from another thread or process.

A worker with several calls at a time has a place for each thread that works. What it reports is the
place that has made no progress for longest: as long as all go on, that changes all the time.

A process that is stopped, or stuck inside a library, can't answer. So the note is also kept in
memory that others can read through /proc, if the system supports it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clipmill.stages.media.isolation import progress

Doing = Literal["reads its input", "opens its models", "at", "commits"]
_MOST_NOTE_BYTES = 1 << 20

STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk",
    "T": "stopped",
    "t": "stopped by a debugger",
    "Z": "dead",
    "X": "dead",
}
"""The system's state of a process, in words."""
STOPPED = ("T", "t")


@dataclass(frozen=True)
class Place:
    """What a worker is working on; `keys` are the rows of its batch."""

    step: str
    shard: str
    doing: Doing
    keys: tuple[str, ...] = ()

    def describe(self) -> str:
        if not self.keys:
            return f"{self.doing} (shard {self.shard})"
        more = f" and {len(self.keys) - 1} more" if len(self.keys) > 1 else ""
        return f"{self.doing} {self.keys[0]}{more} (shard {self.shard})"


@dataclass
class _Spot:
    """Where one thread is; `moved` increases with its progress."""

    place: Place
    thread: int
    moved: int


class Activity:
    """A worker's note of what it is doing, and a count that increases with its progress."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By Python's id of the thread; the one that moved longest ago comes first.
        self._spots: dict[int, _Spot] = {}
        self._helpers: dict[int, int] = {}
        self._count = 0
        self._all_moved = 0
        self._noted: Place | None = None
        self.note: int | None = None
        """The number of the open file that holds the note; None if there is none."""
        if hasattr(os, "memfd_create"):
            with contextlib.suppress(OSError):
                self.note = os.memfd_create("clipmill-activity", os.MFD_CLOEXEC)
        progress.listen(self.beat)

    @property
    def place(self) -> Place | None:
        """The place without progress for longest; None if there is nothing to do now."""
        return self.state()[0]

    @property
    def moves(self) -> int:
        """Changes when there is progress at that place."""
        return self.state()[2]

    @property
    def thread(self) -> int | None:
        """The system's id of the thread that works there; Ray's workers use one of a pool."""
        return self.state()[1]

    def at(self, step: str, shard: str, doing: Doing, keys: tuple[str, ...] = ()) -> None:
        """Notes where the calling thread is."""
        with self._lock:
            self._count += 1
            own = threading.get_ident()
            self._spots.pop(own, None)
            place = Place(step, shard, doing, keys)
            self._spots[own] = _Spot(place, threading.get_native_id(), self._count)
            self._note_stillest()

    def rest(self) -> None:
        """Notes that the calling thread has nothing to do now."""
        with self._lock:
            self._count += 1
            self._spots.pop(threading.get_ident(), None)
            self._note_stillest()

    @contextlib.contextmanager
    def working_for(self, other: int) -> Iterator[None]:
        """The calling thread's progress is that of the thread `other`, which waits for it."""
        own = threading.get_ident()
        with self._lock:
            self._helpers[own] = other
            if (spot := self._spots.get(other)) is not None:
                spot.thread = threading.get_native_id()
        try:
            yield
        finally:
            with self._lock:
                self._helpers.pop(own, None)

    def beat(self, decoded_frames: int | None = None, *, thread: int | None = None) -> None:
        """Notes progress: of the calling thread or of `thread`; of all if it is a library's."""
        own = threading.get_ident() if thread is None else thread
        with self._lock:
            self._count += 1
            own = self._helpers.get(own, own)
            spot = self._spots.pop(own, None)
            if spot is None:
                self._all_moved = self._count
            else:
                spot.moved = self._count
                self._spots[own] = spot
                self._note_stillest()

    def close(self) -> None:
        progress.listen(None)
        if self.note is not None:
            os.close(self.note)
            self.note = None

    def state(self) -> tuple[Place | None, int | None, int]:
        """That place, its thread, its moves, at one moment."""
        with self._lock:
            spot = next(iter(self._spots.values()), None)
            if spot is None:
                return None, None, self._count
            return spot.place, spot.thread, max(spot.moved, self._all_moved)

    def _note_stillest(self) -> None:
        place = next((spot.place for spot in self._spots.values()), None)
        if place is self._noted:
            return
        self._noted = place
        if self.note is not None:
            # The end of a longer note may follow; the line feed marks where this one ends.
            # Not by `asdict`, which takes longer than all else: this happens for every row.
            text = json.dumps(place and place.__dict__) + "\n"
            with contextlib.suppress(OSError):
                os.pwrite(self.note, text.encode(), 0)


@dataclass(frozen=True)
class Process:
    """A worker's process, distinguished by its start time from a later one with the same id."""

    pid: int
    began: int
    note: int | None = None
    thread: int | None = None
    """The thread that does the work."""

    @classmethod
    def own(cls, activity: Activity, thread: int | None = None) -> Process:
        thread = activity.thread if thread is None else thread
        return cls(os.getpid(), _began(os.getpid()), activity.note, thread)


@dataclass(frozen=True)
class Beat:
    """A worker's heartbeat: its pool, its node, how many shards it has done.

    `moves` increases with its progress; `state` is the system's letter for the thread that works.
    """

    pool: int
    node: str
    done: int
    host: str = ""
    process: Process | None = None
    moves: int = 0
    place: Place | None = None
    state: str | None = None

    @classmethod
    def of(cls, activity: Activity, pool: int, node: str, done: int) -> Beat:
        """The current process."""
        place, thread, moves = activity.state()
        process = Process.own(activity, thread)
        host = socket.gethostname()
        return cls(pool, node, done, host, process, moves, place, state_of(process))


@dataclass(frozen=True)
class ProcessFinding:
    """The system's description of a process; None if it has none."""

    is_gone: bool
    state: str | None = None
    place: Place | None = None


def look_at(process: Process) -> ProcessFinding:
    """Examines the process; call this on its own machine."""
    state = state_of(process)
    if not _is_there(process) or state in ("Z", "X"):
        return ProcessFinding(is_gone=True)
    if process.note is None:
        return ProcessFinding(False, state)
    try:
        with open(f"/proc/{process.pid}/fd/{process.note}", "rb") as file:
            line = file.read(_MOST_NOTE_BYTES).partition(b"\n")[0]
        told = json.loads(line)
        place = Place(**told) if told else None
    except (OSError, ValueError, TypeError):
        return ProcessFinding(False, state)
    return ProcessFinding(False, state, place and replace(place, keys=tuple(place.keys)))


def end(process: Process) -> None:
    """Kills the process on its own machine, whatever it is doing; does nothing if it has ended."""
    if _is_there(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _is_there(process: Process) -> bool:
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    return _began(process.pid) == process.began


def state_of(process: Process) -> str | None:
    """The system's letter for its state; None if it has ended or the system doesn't say."""
    words = _stat(process.pid, f"/task/{process.thread}") if process.thread else []
    words = words or _stat(process.pid)
    return words[0] if words else None


def _began(pid: int) -> int:
    """When it started, in clock ticks of the system; 0 if unknown."""
    words = _stat(pid)
    return int(words[19]) if words else 0


def _stat(pid: int, task: str = "") -> list[str]:
    try:
        text = Path(f"/proc/{pid}{task}/stat").read_text("utf-8", "replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
