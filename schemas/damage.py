"""Reports files of a dataset that can't be read as one error, with the next step.

All code that reads a file written by Clipmill does so inside `reading(path)`, or with `read_json`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.folders import AUDITS, REMOVED, RETRIES, RUNS, SOURCES, SUBSETS, is_dataset

_MAX_REASON_CHARACTERS = 160
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# The system's errors for a path without a readable file. Other errors are not damage.
_OF_THE_FILE = frozenset((errno.EIO, errno.EISDIR, errno.ENXIO, errno.ELOOP, errno.EBADMSG))


class DamagedFile(ClipmillError):
    """A file of a dataset is damaged or not of the expected kind."""

    reason = ""
    where = ""
    """The file's path in its dataset."""


def damaged(path: Path, reason: str) -> DamagedFile:
    """The error for a file of a dataset: which one, why, and how to fix it."""
    dataset = dataset_of(path)
    if dataset is None:
        error = DamagedFile(f"{path} is damaged ({reason})")
    else:
        where = path.absolute().relative_to(dataset).as_posix()
        error = DamagedFile(f"{where} is damaged ({reason}); {_next_step(dataset, where)}")
        error.where = where
    error.reason = reason
    return error


def dataset_of(path: Path) -> Path | None:
    """The dataset that contains a file: the nearest folder above that looks like one."""
    return next((folder for folder in path.absolute().parents if is_dataset(folder)), None)


def _next_step(dataset: Path, where: str) -> str:
    with contextlib.suppress(ValueError, OSError):
        dataset = dataset.relative_to(Path.cwd())
    shown = shell_word(dataset)
    sets_aside = f"`clipmill verify {shown} --repair` sets it aside"
    first, _, rest = where.partition("/")
    if first == SUBSETS:
        name = rest.partition("/")[0]
        return f"delete {dataset / first / name} and freeze the subset again by its recipe"
    if first == AUDITS:
        return f"delete {dataset / where} and draw the audit again; its labels are lost"
    if first == REMOVED:
        return "fix the file by hand, or delete it and remove those videos again"
    if first == RUNS:
        return (
            f"{sets_aside}, and a run with the same recipe and --dataset {shown} writes one again"
        )
    if first == RETRIES:
        return f"{sets_aside}, and `clipmill retry {shown}` requests it again"
    if first == SOURCES:
        return (
            f"{sets_aside} with everything made from it, and a run with its recipe and "
            f"--dataset {shown} adds it again"
        )
    return f"{sets_aside}, and `clipmill run --dataset {shown}` makes it again"


def what_is_there(path: Path) -> str | None:
    """What is at a path instead of a file, in words; None if it is a file or does not exist.

    Check this before opening a file: opening a named pipe would block for ever.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "a dangling link" if path.is_symlink() else None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link to itself"
        raise
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "not a file")


def check_is_file(path: Path) -> None:
    """Raises DamagedFile if something other than a file is at `path`."""
    if there := what_is_there(path):
        raise damaged(path, f"it is {there}")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns any problem with a file's content into DamagedFile.

    For code that only reads and parses that file. Errors because it is missing or not permitted
    are passed on.
    """
    check_is_file(path)
    try:
        yield
    except (MemoryError, pa.ArrowCancelled):  # says nothing about the file
        raise
    except (
        pa.ArrowException,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise damaged(path, reason_of(error)) from error
    except OSError as error:
        # An error without an errno is Arrow's, for bytes that it can't parse.
        if error.errno is not None and error.errno not in _OF_THE_FILE:
            raise
        raise damaged(path, reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """What is wrong with a file, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON: {error}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    # Arrow's message begins with the file, which ours already names.
    if said.startswith("Could not open") and "': " in said:
        said = said.partition("': ")[2]
    said = (said.splitlines() or [""])[0].rstrip(".") or type(error).__name__
    return said if len(said) <= _MAX_REASON_CHARACTERS else f"{said[:_MAX_REASON_CHARACTERS]}…"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; raises DamagedFile if there is none."""
    with reading(path):
        value = json.loads(path.read_text("utf-8"))
        if not isinstance(value, dict):
            raise TypeError(f"expected an object, found {type(value).__name__}")
        return value
