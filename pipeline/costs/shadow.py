"""A stand-in for a dataset, in which a dry run may do what a run does before it starts work.

It consists of links to the dataset's files, and of copies where links won't do. Sources, choices
and requests that are added there vanish with it, and the dataset itself is only read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from clipmill.schemas import folders
from clipmill.schemas.errors import ClipmillError

_WRITTEN_TO = frozenset((folders.SOURCES, folders.RUNS, folders.RETRIES, folders.REMOVED))
_LEFT_OUT = frozenset(
    (
        folders.MEDIA,
        folders.LOGS,
        folders.JOURNAL,
        folders.QUARANTINE,
        folders.SCRATCH,
        folders.LOCK,
        folders.COMMITS,
    )
)


@contextlib.contextmanager
def shadow_of(dataset: Path) -> Iterator[Path]:
    """A folder like the dataset; errors raised inside name the dataset, not the stand-in."""
    with tempfile.TemporaryDirectory(prefix="clipmill-dry-run-") as folder:
        shadow = Path(folder) / dataset.name
        shadow.mkdir()
        for entry in _entries(dataset):
            if entry.name in _WRITTEN_TO and entry.is_dir():
                # DuckDB does not follow links to single files out of the folders that it may read.
                copy = _hard_link if entry.name == folders.SOURCES else _link
                _fill(shadow / entry.name, Path(entry.path), copy)
            elif entry.name not in _LEFT_OUT:
                (shadow / entry.name).symlink_to(Path(entry.path).absolute())
        try:
            yield shadow
        except ClipmillError as error:
            text = str(error)
            if str(shadow) not in text:
                raise
            raise type(error)(text.replace(str(shadow), str(dataset))) from error


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _fill(shadow: Path, folder: Path, copy: Callable[[Path, Path], object]) -> None:
    shadow.mkdir()
    for entry in _entries(folder):
        if entry.is_dir():
            _fill(shadow / entry.name, Path(entry.path), copy)
        else:
            copy(Path(entry.path).absolute(), shadow / entry.name)


def _link(file: Path, name: Path) -> None:
    name.symlink_to(file)


def _hard_link(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, name)
