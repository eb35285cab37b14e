"""Finds the damaged file behind a DuckDB error, which does not always name it."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.schemas.command_line import shell_word
from clipmill.schemas.damage import DamagedFile, damaged, reading, reason_of
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.folders import LOGS, MEDIA, QUARANTINE

_SEARCH_SECONDS = 20.0
_READING = ("Failed to read file", "in Parquet file", "too small to be a Parquet file")
_NO_TABLES = frozenset((MEDIA, QUARANTINE, LOGS))


@contextlib.contextmanager
def damage_named(dataset: Path) -> Iterator[None]:
    """Raises DuckDB errors that are caused by a damaged file of the dataset as DamagedFile."""
    try:
        yield
    except Exception as error:
        if (found := damage_behind(error, dataset)) is not None:
            raise found from error
        raise


def damage_behind(error: BaseException | None, dataset: Path) -> ClipmillError | None:
    """The DamagedFile error if a damaged file caused an error; otherwise None.

    Mistakes in what a user typed are not blamed on files: a file is to blame only if it can't be
    read, or if DuckDB reports that it could not read it.
    """
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, DamagedFile):
            return None  # already reported
        if isinstance(error, duckdb.Error | pa.ArrowException) or (
            isinstance(error, OSError) and error.errno is None
        ):
            return _blamed(error, dataset.absolute())
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def _blamed(error: Exception, dataset: Path) -> ClipmillError | None:
    said = str(error).partition("\n\nStack Trace")[0]
    for match in re.finditer(rf"{re.escape(str(dataset))}/([^\n]*?\.parquet)", said):
        path = dataset / match[1]
        if not path.exists():
            continue
        reason = why_damaged(path)
        if reason is None and any(word in said for word in _READING):
            # Arrow accepts text that is not UTF-8, for example.
            reason = said[match.end() :].strip("\"': ").partition("\n")[0] or said
        if reason is not None:
            return damaged(path, reason)
    if type(error) is duckdb.Error or isinstance(error, duckdb.SerializationException):
        # DuckDB passes on errors about footers and page headers without naming the file.
        return _searched(dataset, reason_of(error))
    return None


def why_damaged(path: Path) -> str | None:
    """What is wrong with a Parquet file; None if it can be read to its end."""
    try:
        with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group)
    except DamagedFile as error:
        return error.reason
    except OSError:
        return None
    return None


def _searched(dataset: Path, reason: str) -> ClipmillError | None:
    """The first damaged file; footers are checked first, which is fast."""
    until = time.monotonic() + _SEARCH_SECONDS
    for look in (_why_footer, why_damaged):
        for path in _table_files(dataset):
            if time.monotonic() > until:
                return DamagedFile(
                    f"a file of {dataset} is damaged ({reason}); `clipmill verify "
                    f"{shell_word(dataset)}` says which one"
                )
            if (found := look(path)) is not None:
                return damaged(path, found)
    return None


def _why_footer(path: Path) -> str | None:
    try:
        with reading(path):
            pq.read_metadata(path)
    except DamagedFile as error:
        return error.reason
    except OSError:
        return None
    return None


def _table_files(dataset: Path) -> Iterator[Path]:
    for place in sorted(dataset.iterdir()):
        if place.name not in _NO_TABLES and not place.name.startswith(".") and place.is_dir():
            yield from sorted(place.glob("[!.]*.parquet"))
            yield from sorted(place.glob("*/[!.]*.parquet"))
