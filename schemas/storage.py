"""Distinguishes write errors of the whole dataset from errors of single rows."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from clipmill.schemas.errors import ClipmillError

_NEXT_STEP = {
    errno.ENOSPC: "free some space and run again; what is there is kept",
    errno.EDQUOT: "free some space and run again; what is there is kept",
    errno.EROFS: "make it writable and run again; what is there is kept",
    errno.EFBIG: "allow larger files there (`ulimit -f`, the file system's limit) and run "
    "again; what is there is kept",
}
_NOT_ALLOWED = {
    errno.EACCES: "run again as the owner of the dataset; what is there is kept",
    errno.EPERM: "run again as the owner of the dataset; what is there is kept",
}


class StorageError(ClipmillError):
    """The dataset can no longer be written."""

    leaves_threads = True


def full_storage(error: BaseException | None, place: Path | None) -> ClipmillError | None:
    """The error to raise if a full or read-only disk caused this one; otherwise None.

    `place` is named if the error names no file. A stage may have wrapped the error, so its causes
    are checked as well.
    """
    seen = 0
    while error is not None and seen < 20:
        number = getattr(error, "errno", None)
        if number in _NEXT_STEP:
            return _cannot_write(error, number, place, _NEXT_STEP[number])
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


@contextlib.contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Reports any write error in a dataset in one message with the next step.

    For code that only reads and writes the dataset: here a permission error also concerns the
    folder.
    """
    try:
        yield
    except OSError as error:
        known = {**_NEXT_STEP, **_NOT_ALLOWED}
        if error.errno in known:
            raise _cannot_write(error, error.errno, place, known[error.errno]) from error
        raise


def _cannot_write(
    error: BaseException, number: int, place: Path | None, next_step: str
) -> ClipmillError:
    # For a copy, the second one is the destination.
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if isinstance(name, str | os.PathLike) and Path(name).is_absolute():
        place = Path(name).parent
    where = "cannot write" if place is None else f"cannot write to {place}"
    return StorageError(f"{where}: {os.strerror(number)}; {next_step}")
