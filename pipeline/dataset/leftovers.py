"""Removes what killed runs left behind; only for the holder of the dataset's lock."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from clipmill.schemas import folders
from clipmill.schemas.file_locks import try_lock

# An incomplete file that we wrote: `.000003~1f2e3d4c.tmp`.
_HALF_A_FILE = re.compile(r"\..*~[0-9a-f]{8}\.tmp\Z")
_HALF_A_NOTE = re.compile(r"[0-9a-f]{20}\.[0-9a-f]{8}\.tmp\Z")
_HALF_A_CLAIM = re.compile(r"\.[0-9a-f]{20}\.[0-9a-f]{8}\Z")
_OF_NO_RUN = frozenset(
    (
        folders.MEDIA,
        folders.LOGS,
        folders.QUARANTINE,
        folders.SUBSETS,
        folders.AUDITS,
        folders.INDEX,
        folders.SCRATCH,
    )
)


def remove_leftovers_of_runs(dataset: Path) -> None:
    """Removes incomplete files and work folders, wherever a run writes.

    Unfinished downloads stay, because the run resumes them. What can't be removed also stays, and
    `verify` reports it.
    """
    for name in _listed(dataset):
        folder = dataset / name
        if name in _OF_NO_RUN or not folder.is_dir():
            continue
        _remove(folder, _HALF_A_FILE)
        if name not in (folders.RUNS, folders.RETRIES, folders.REMOVED, folders.JOURNAL):
            for inner in _listed(folder):  # one folder per fingerprint; for sources, their lists
                if (folder / inner).is_dir():
                    _remove(folder / inner, _HALF_A_FILE)
    for name in (folders.CHOICES, folders.FITS):
        _remove(dataset / name, _HALF_A_FILE)
    for name in _listed(dataset / folders.SCRATCH):
        shutil.rmtree(dataset / folders.SCRATCH / name, ignore_errors=True)
    _remove(dataset / folders.MEDIA_FOUND, _HALF_A_NOTE)
    for rules in _listed(dataset / folders.MEDIA_CLAIMS):
        _remove(dataset / folders.MEDIA_CLAIMS / rules, _HALF_A_CLAIM)


def remove_unfinished_downloads(dataset: Path) -> None:
    """Empties the downloads' work folder; for a run that has no downloads left to do."""
    work = dataset / folders.MEDIA_WORK
    for name in _listed(work):
        with contextlib.ExitStack() as stack:
            is_ours = True
            with contextlib.suppress(OSError):  # no lock on it, or no locks on this file system
                lock = stack.enter_context(open(work / name / folders.LOCK, "r+", encoding="utf-8"))
                is_ours = try_lock(lock)
            if is_ours:
                shutil.rmtree(work / name, ignore_errors=True)


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
