"""Decides who may commit to a dataset: only workers of the run that holds its lock.

The lock of a killed driver is freed at once, while its workers may live on for seconds. So a
worker starts a shard, and commits it, only while the lock still names its run:

.lock       held by the running command; names it and its run
.commits    held during one commit
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.schemas.damage import what_is_there
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.file_locks import is_free, try_lock
from clipmill.schemas.folders import COMMITS, LOCK

# A commit is a few renames: a longer one means that the process is stopped or its node is gone.
_PATIENCE_SECONDS = 40.0
_LONGEST_PAUSE_SECONDS = 0.05


class RunIsOver(ClipmillError):
    """The dataset's lock names another run, or none: this one must not write any more."""


@dataclass(frozen=True)
class Fence:
    """Lets the workers of a run commit only as long as the run lasts."""

    dataset: Path
    run_id: str

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Prevents other commits inside the context. Raises RunIsOver if the run is over."""
        with _one_at_a_time(self.dataset):
            self.check()
            yield

    def check(self) -> None:
        """Raises RunIsOver if the run is over, to avoid useless work."""
        now = holder(self.dataset).get("run_id")
        if now != self.run_id:
            whose = f"run {now}" if now else "no run"
            raise RunIsOver(
                f"run {self.run_id} is over: the lock of {self.dataset} is now held for {whose}"
            )


def shut_out_others(dataset: Path) -> None:
    """Waits for the end of a commit that an earlier run started.

    The caller holds the lock, whose file no longer names another run: no further commit can
    follow.
    """
    with _one_at_a_time(dataset):
        pass


def holder(dataset: Path) -> dict[str, Any]:
    """What the running command recorded about itself; empty if no command runs."""
    if what_is_there(dataset / LOCK):
        return {}
    try:
        value = json.loads((dataset / LOCK).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def is_held(dataset: Path) -> bool:
    """Whether some command is writing to the dataset now."""
    return not is_free(dataset / LOCK)


def goes_on(dataset: Path, run_id: str) -> bool:
    """Whether a run is active; the record of a killed run may still say so."""
    return is_held(dataset) and holder(dataset).get("run_id") == run_id


def last_moved(dataset: Path) -> float | None:
    """When the running command last made progress, as seconds since 1970; None if none runs."""
    if not is_held(dataset):
        return None
    try:
        return (dataset / LOCK).stat().st_mtime
    except OSError:
        return None


def check_lock_file(path: Path) -> None:
    """ClipmillError if a lock's path holds something other than a file."""
    if there := what_is_there(path):
        raise ClipmillError(
            f"{path} is {there}, but Clipmill needs a lock file there; delete or "
            "move it, and run the command again"
        )


@contextlib.contextmanager
def _one_at_a_time(dataset: Path) -> Iterator[None]:
    path = dataset / COMMITS
    check_lock_file(path)
    with open(path, "a", encoding="utf-8") as file:
        pause, until = 0.001, time.monotonic() + _PATIENCE_SECONDS
        while not try_lock(file):
            if time.monotonic() > until:
                raise ClipmillError(
                    f"{path} has been locked for {_PATIENCE_SECONDS:.0f} s: a process of "
                    "an earlier run hangs in the middle of a commit; kill it (or the "
                    "node that it runs on), and run again"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        yield
