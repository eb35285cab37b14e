"""A database on disk for tables that a command makes of the catalog while it works.

Choosing clips makes tables with a row per clip. In memory they would take some hundred bytes per
clip; in a file DuckDB compresses them as it writes, and keeps in memory what its limit allows.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import weakref
from functools import cache
from pathlib import Path

import duckdb

from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.scratch import ScratchFolder
from clipmill.schemas.sql_text import literal

WORK = "work"
"""The database's name in SQL."""
_opened = itertools.count()


class WorkDatabase:
    """Attached when it is first needed; removed when it is closed, or nothing refers to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_attached = False
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        if self._is_attached:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            place = literal(str(self.folder / "tables.duckdb"))
            connection.execute(f"ATTACH {place} AS {WORK}")
        except (OSError, duckdb.IOException) as error:
            raise ClipmillError(
                f"cannot write temporary tables to {self.folder}: {error}; set TMPDIR to a folder "
                "with more space"
            ) from error
        self._is_attached = True

    def remove(self) -> None:
        """Removes the file; its connection is closed."""
        self._remove()


def new_places() -> tuple[Path, WorkDatabase]:
    """Where a catalog spills, into a folder that DuckDB creates and removes; and its database."""
    own = f"{os.getpid()}-{next(_opened)}"
    return _folder().path / own, WorkDatabase(_folder().path / f"{WORK}-{own}")


@cache
def _folder() -> ScratchFolder:
    """Exists until the process ends: a relation may be read long after its catalog was dropped."""
    folder = ScratchFolder("sql")
    atexit.register(folder.remove)
    return folder
