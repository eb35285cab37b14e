"""Finds the header of a CSV or TSV: its line, its delimiter, its column names."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from clipmill.pipeline.ingest.list_records import DELIMITER_NAMES, Ahead, Counts, Dialect
from clipmill.schemas.errors import UsageError

_EXCEL_DELIMITER = re.compile(r'"?sep=(.)"?', re.I)
_LOOKS_LIKE_A_ROW = re.compile(r"\S+://\S+|.*\.(mp4|m4v|webm|mkv|mov|avi)", re.I)

HasColumn = Callable[[Sequence[str]], bool]
"""Whether the column that names the sources is among these."""


def read_header(
    path: Path,
    lines: Ahead,
    counts: Counts,
    given: Sequence[str] | None,
    suffix: str,
    has_column: HasColumn,
) -> tuple[list[str], Dialect, str]:
    """Reads the lines before the first row: names, dialect, and the header's own text.

    Comments, empty lines and Excel's line `sep=;` may precede the header. A comment is the header
    if the first line after it is not. With `given` names the file has no header.
    """
    order = sorted(DELIMITER_NAMES, key="\t,;|".index if suffix == ".tsv" else ",;\t|".index)
    comment: str | None = None
    for number, text, problem in lines:
        marks = _EXCEL_DELIMITER.fullmatch(text.strip()) if number == 1 else None
        if problem is not None:
            raise UsageError(f"{path}:{number}: {problem}")
        if not text.strip():
            counts.blank += 1
        elif marks is not None:
            order = [marks[1]]
            counts.header += 1
        elif text.startswith("#"):
            comment = text
            counts.comments += 1
        else:
            line = (number, text, problem)
            break
    else:
        line = None
    if given is not None:
        if line is not None:
            lines.give_back(line)
        dialect = max(
            (_dialect(line[1] if line else "", mark) for mark in order),
            key=lambda each: len(_cells(each, line[1] if line else "")) == len(given),
        )
        return _named(path, list(given)), dialect, ""
    text = line[1] if line is not None else ""
    dialect = _best(text, order, has_column)
    cells = _cells(dialect, text)
    if not has_column(cells) and comment is not None:
        said = comment.lstrip("# \t")
        other = _best(said, order, has_column)
        if has_column(_cells(other, said)):
            counts.comments -= 1
            counts.header += 1
            if line is not None:
                lines.give_back(line)
            return _named(path, _cells(other, said)), other, said
    if (
        line is not None
        and not has_column(cells)
        and any(_LOOKS_LIKE_A_ROW.fullmatch(cell.strip()) for cell in cells)
    ):
        if len(cells) > 1:
            raise UsageError(
                f"{path} has no header: its first line is a row. Name its {len(cells)} columns, "
                "with a first line such as url,caption or with `columns: [url, caption]` on the "
                "source in the recipe"
            )
        lines.give_back(line)
        return ["url"], dialect, ""
    counts.header += line is not None
    following = next((each[1] for each in lines.peek() if each[1].strip()), "")
    while len(cells) > 1 and not cells[-1].strip() and len(_cells(dialect, following)) < len(cells):
        cells.pop()
    return _named(path, cells), dialect, text


def _best(text: str, order: Sequence[str], has_column: HasColumn) -> Dialect:
    """The delimiter that gives the line the needed column, otherwise the most frequent one."""

    def rank(dialect: Dialect) -> tuple[bool, int]:
        cells = _cells(dialect, text)
        return has_column(cells), len(cells)

    return max((_dialect(text, mark) for mark in order), key=rank)


def _dialect(text: str, delimiter: str) -> Dialect:
    parts = text.split(delimiter)[1:]
    return Dialect(delimiter, True, bool(parts) and all(part.startswith(" ") for part in parts))


def _cells(dialect: Dialect, text: str) -> list[str]:
    try:
        cells = dialect.cells(text)
    except csv.Error:
        cells = text.split(dialect.delimiter)
    return [cell.strip() for cell in cells]


def _named(path: Path, cells: list[str]) -> list[str]:
    """Names for all columns; an unnamed column is named by its number."""
    names = [cell or f"column_{at}" for at, cell in enumerate(cells, 1)]
    if len(set(names)) != len(names) and any(cells):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{path}: the column {twice!r} appears twice")
    return names if any(cells) else []
