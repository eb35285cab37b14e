"""What a worker is doing: noted by the worker, read from another thread or process.

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
from dataclasses import asdict, dataclass, replace
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


class Activity:
    """A worker's note of what it is doing, and a count that increases with its progress."""

    def __init__(self) -> None:
        self.place: Place | None = None
        self.moves = 0
        self.thread: int | None = None
        """The system's id of the thread that does the work; Ray's workers use one of a pool."""
        self.note: int | None = None
        """The number of the open file that holds the note; None if there is none."""
        if hasattr(os, "memfd_create"):
            with contextlib.suppress(OSError):
                self.note = os.memfd_create("clipmill-activity", os.MFD_CLOEXEC)
        progress.listen(self.beat)

    def at(self, step: str, shard: str, doing: Doing, keys: tuple[str, ...] = ()) -> None:
        self._set(Place(step, shard, doing, keys))

    def rest(self) -> None:
        """Notes that there is nothing to do now."""
        self._set(None)

    def beat(self, decoded_frames: int | None = None) -> None:
        self.moves += 1

    def close(self) -> None:
        progress.listen(None)
        if self.note is not None:
            os.close(self.note)
            self.note = None

    def _set(self, place: Place | None) -> None:
        self.place = place
        self.thread = threading.get_native_id()
        self.moves += 1
        if self.note is not None:
            # The end of a longer note may follow; the line feed marks where this one ends.
            text = json.dumps(place and asdict(place)) + "\n"
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
    def own(cls, activity: Activity) -> Process:
        return cls(os.getpid(), _began(os.getpid()), activity.note, activity.thread)


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
        process = Process.own(activity)
        return cls(
            pool,
            node,
            done,
            socket.gethostname(),
            process,
            activity.moves,
            activity.place,
            state_of(process),
        )


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
