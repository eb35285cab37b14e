"""What workers know about each host, in files of a shared folder.

<folder>/<hash of the host>.json     when the host may be contacted next, and its last answer

A file is changed under an exclusive lock, so the state is shared wherever the folder is visible.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from clipmill.schemas.file_locks import wait_for_lock


@dataclass
class HostState:
    """What is known about one host. Times are seconds since 1970; 0 means never.

    `problems` counts consecutive problems of one kind, temporary ones or bot checks. `opened_at`
    is when the decision to stop contacting the host was last made, `alone_since` when it was first
    made since the host last worked. `hold_said` is the host's wording when it asked not to be
    contacted until `held_until`; `is_hold_old` if an earlier run received it.
    """

    host: str = ""
    next_at: float = 0.0
    held_until: float = 0.0
    hold_said: str = ""
    is_hold_old: bool = False
    problems: int = 0
    last_problem: str = ""
    is_bot_check: bool = False
    opened_at: float = 0.0
    open_until: float = 0.0
    alone_since: float = 0.0

    def close(self) -> None:
        """Lets the host be contacted again."""
        self.opened_at = self.open_until = self.alone_since = 0.0

    def forget(self) -> None:
        """Resets the state: the host works, or may work."""
        self.close()
        self.problems, self.is_bot_check = 0, False


class HostStates(Protocol):
    """The states of all hosts."""

    def knows(self, host: str) -> bool: ...

    def change(self, host: str) -> contextlib.AbstractContextManager[HostState]:
        """The host's state, which nobody else can change inside the context."""


class OwnStates:
    """States in memory, for one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, HostState] = {}

    def knows(self, host: str) -> bool:
        return host in self._states

    @contextlib.contextmanager
    def change(self, host: str) -> Iterator[HostState]:
        with self._lock:
            yield self._states.setdefault(host, HostState(host))


class SharedStates:
    """States in files of a folder that several workers share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def knows(self, host: str) -> bool:
        return self._path(host).exists()

    def hosts(self) -> list[str]:
        """The hosts that were not to be contacted, or may not be."""
        found = [_parse(path.read_bytes(), "") for path in self._folder.glob("*.json")]
        return [state.host for state in found if state.problems or state.held_until]

    @contextlib.contextmanager
    def change(self, host: str) -> Iterator[HostState]:
        """The host's state, exclusively locked; written back if it changed."""
        with self._lock, open(self._path(host), "r+b", 0, opener=_opened) as file:
            # Without file locks, only the threads of this process wait for each other.
            with contextlib.suppress(OSError):
                wait_for_lock(file.fileno())
            before = file.read()
            state = _parse(before, host)
            yield state
            after = json.dumps(asdict(state)).encode()
            if after != before:
                file.truncate(0)
                os.pwrite(file.fileno(), after, 0)

    def _path(self, host: str) -> Path:
        return self._folder / f"{hashlib.sha256(host.encode()).hexdigest()[:24]}.json"


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o644)


def _parse(text: bytes, host: str) -> HostState:
    """A stored state; a new one if a killed writer left an incomplete file."""
    try:
        value = json.loads(text)
        known = {field.name: value[field.name] for field in fields(HostState)}
        state = HostState(**known)
        if all(
            type(getattr(state, field.name)) in (type(field.default), int)
            for field in fields(HostState)
        ):
            return state
    except (ValueError, KeyError, TypeError):
        pass
    return HostState(host)
