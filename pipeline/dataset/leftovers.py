"""Removes what killed runs left behind; for the holder of the dataset's lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from clipmill.schemas.folders import (
    INDEX,
    JOURNAL,
    LOCK,
    LOGS,
    MEDIA,
    MEDIA_CLAIMS,
    MEDIA_FOUND,
    MEDIA_WORK,
    QUARANTINE,
    REMOVED,
    RETRIES,
    RUNS,
    SCRATCH,
    SUBSETS,
)

# Half a file of our own making: `.000003~1f2e3d4c.tmp`.
_HALF_A_FILE = re.compile(r"\..*~[0-9a-f]{8}\.tmp\Z")
_HALF_A_NOTE = re.compile(r"[0-9a-f]{20}\.[0-9a-f]{8}\.tmp\Z")
_HALF_A_CLAIM = re.compile(r"\.[0-9a-f]{20}\.[0-9a-f]{8}\Z")
_OF_NO_RUN = frozenset((MEDIA, LOGS, QUARANTINE, SUBSETS, INDEX, SCRATCH))


def remove_leftovers_of_runs(dataset: Path) -> None:
    """Half-written files and work folders, wherever a run writes.

    Unfinished downloads stay: the run resumes them. What cannot be removed stays, too, and
    `verify` reports it.
    """
    for name in _listed(dataset):
        folder = dataset / name
        if name in _OF_NO_RUN or not folder.is_dir():
            continue
        _remove(folder, _HALF_A_FILE)
        if name not in (RUNS, RETRIES, REMOVED, JOURNAL):
            for inner in _listed(folder):  # one of each fingerprint; of sources, their lists
                if (folder / inner).is_dir():
                    _remove(folder / inner, _HALF_A_FILE)
    for name in _listed(dataset / SCRATCH):
        shutil.rmtree(dataset / SCRATCH / name, ignore_errors=True)
    _remove(dataset / MEDIA_FOUND, _HALF_A_NOTE)
    for rules in _listed(dataset / MEDIA_CLAIMS):
        _remove(dataset / MEDIA_CLAIMS / rules, _HALF_A_CLAIM)


def remove_unfinished_downloads(dataset: Path) -> None:
    """The contents of the downloads' work folder; for a run that has none left to do."""
    work = dataset / MEDIA_WORK
    for name in _listed(work):
        with _not_at_work(work / name) as is_free:
            if is_free:
                shutil.rmtree(work / name, ignore_errors=True)


@contextlib.contextmanager
def _not_at_work(folder: Path) -> Iterator[bool]:
    """Whether nobody has the lock of a download; taken, so that nobody does meanwhile."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        yield True
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    except OSError:
        yield True
    finally:
        os.close(handle)


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove(folder: Path, names: re.Pattern[str]) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if names.match(entry.name):
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()
