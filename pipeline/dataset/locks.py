"""The dataset's lock: one command at a time writes to a dataset; reading needs none."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from clipmill.pipeline.dataset.commit_fence import check_lock_file, shut_out_others
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.file_locks import is_still_at, try_lock
from clipmill.schemas.folders import COMMITS, LOCK, SCRATCH
from clipmill.schemas.storage import writing_to

POLL_SECONDS = 0.3
_TRIES = 5
_TRY_AGAIN_SECONDS = 0.04
_NOTE_SECONDS = 1.0


class Hold:
    """The held lock: its file names the holder and, once it has one, its run.

    `former_was_killed`: the previous holder did not clear the file.
    """

    def __init__(self, file: IO[str], command: str) -> None:
        self._file = file
        self._noted = 0.0
        self.former_was_killed = os.fstat(file.fileno()).st_size > 0
        self._said = {
            "command": command,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._say()

    def begin(self, run_id: str) -> None:
        """Lets only the workers of this run commit from now on."""
        self._say(run_id=run_id)

    def moved(self) -> None:
        """Records that progress was made now, for `status`; the file's modification time is the
        record."""
        if time.monotonic() - self._noted >= _NOTE_SECONDS:
            self._noted = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self._file.fileno())

    def _say(self, **more: str) -> None:
        data = json.dumps({**self._said, **more}).encode()
        # Bypasses Python's buffer, which would retry a failed write, and fail again, on closing.
        os.pwrite(self._file.fileno(), data, 0)
        os.ftruncate(self._file.fileno(), len(data))


@contextlib.contextmanager
def dataset_lock(dataset: Path, command: str = "run", *, wait: bool = False) -> Iterator[Hold]:
    """Holds the lock; the kernel releases it when its holder dies in any way.

    Raises ClipmillError that names the holder, unless `wait` is set.
    """
    with _taken(dataset, wait) as file:
        with writing_to(dataset):
            hold = Hold(file, command)
            shut_out_others(dataset)
        try:
            yield hold
        finally:
            with contextlib.suppress(OSError):  # the next holder must not see our entry
                file.truncate(0)


def wait_until_free(dataset: Path) -> None:
    """Returns when nobody holds the lock; at once if there is none."""
    if (dataset / LOCK).exists():
        with _taken(dataset, wait=True):
            pass


@contextlib.contextmanager
def _taken(dataset: Path, wait: bool) -> Iterator[IO[str]]:
    path = dataset / LOCK
    said = False
    tries_left = _TRIES
    while True:
        try:
            check_lock_file(path)
            with writing_to(dataset):
                file = open(path, "r+", opener=_opened, encoding="utf-8")  # noqa: SIM115 (closed below, in every turn)
        except OSError as error:
            raise ClipmillError(f"cannot write to {dataset}: {error.strerror}") from error
        with file:
            try:
                is_ours = try_lock(file)
            except OSError as error:
                raise ClipmillError(
                    f"{path} cannot be locked ({error.strerror}): the file system must support "
                    "flock, because two runs would corrupt each other's work"
                ) from error
            if is_ours:
                # A run that failed at once may have deleted its new dataset, including the lock.
                if is_still_at(path, file):
                    yield file
                    return
                continue
            tries_left -= 1
            if tries_left > 0:
                # Checking whether the lock is held also takes it for a moment.
                time.sleep(_TRY_AGAIN_SECONDS)
                continue
            holder = _holder(file)
            if not wait:
                raise ClipmillError(
                    f"another command is using {dataset}{holder}; wait until it is done "
                    "(--wait does), or stop it"
                )
            if not said:
                print(
                    f"Another command is using {dataset}{holder}; waiting until it is done.",
                    file=sys.stderr,
                )
                said = True
            time.sleep(POLL_SECONDS)


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)


def _holder(file: IO[str]) -> str:
    """The holder of the lock, for a message; empty if it has not recorded itself yet."""
    file.seek(0)
    try:
        found = json.loads(file.read())
        since = datetime.fromisoformat(found["since"])
        return (
            f": `clipmill {found['command']}`, process {found['pid']} on {found['host']}, "
            f"since {since:%Y-%m-%d %H:%M:%S} UTC"
        )
    except (ValueError, KeyError, TypeError):
        return ""


def remove_if_empty(dataset: Path) -> None:
    """Removes an empty dataset folder: a mistyped source should leave none behind."""
    for name in (COMMITS, LOCK):
        (dataset / name).unlink(missing_ok=True)
    for folder in (dataset / SCRATCH, dataset):
        with contextlib.suppress(OSError):
            folder.rmdir()
