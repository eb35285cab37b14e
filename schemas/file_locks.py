"""Locks on files, which the kernel releases when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from clipmill.schemas.damage import what_is_there


def try_lock(file: IO[str] | int) -> bool:
    """Takes a file's lock until the file is closed; False if someone else has it.

    Raises another OSError where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(file: IO[str] | int) -> None:
    """Takes a file's lock as soon as nobody else has it."""
    fcntl.flock(file, fcntl.LOCK_EX)


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock of a file, for example because there is no file."""
    try:
        if what_is_there(path):
            return True  # nobody can lock it, and opening a named pipe would block
        with open(path, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # it does not exist, or there are no locks here
    return True


def is_still_at(path: Path, file: IO[str] | int) -> bool:
    """Whether an open file is the one at `path`: a lock on a deleted file keeps nobody out."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(file if isinstance(file, int) else file.fileno()))
