"""Reads lists of sources: CSV, TSV, TXT, JSON lines and Parquet, row by row."""

from __future__ import annotations

import codecs
import csv
import difflib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from schemas.errors import UsageError

LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet")
URL_COLUMNS = ("url", "path", "video", "video_url", "video_path", "file", "filename", "link", "uri")
QUERY_COLUMNS = ("query", "search", "term", "text", "label")
_PARQUET_ROWS = 4096


@dataclass(frozen=True, slots=True)
class ListRow:
    """One row of a list: `locator` is its URL, path or search term, null where it gives none.

    `place` is `<file>:<line>`; `problem` says why the row as such can't be read.
    """

    place: str
    locator: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_list(
    path: Path, column: str | None, candidates: Sequence[str] = URL_COLUMNS
) -> Iterator[ListRow]:
    """The rows of a list file; `column` holds the locator, else the first of `candidates`.

    Raises UsageError, before the first row, where the file can't be read or lacks the column.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".txt": _txt, ".jsonl": _json_lines,
               ".ndjson": _json_lines, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: a list of sources is one of {', '.join(LIST_SUFFIXES)}")
    try:
        yield from reader(path, column, candidates)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _txt(path: Path, column: str | None, _: Sequence[str]) -> Iterator[ListRow]:
    if column is not None:
        raise UsageError(f"{path}: a .txt list has one entry a line and no column {column!r}")
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            text = clean(line).strip()
            if text and not text.startswith("#"):
                yield ListRow(f"{path}:{number}", text)


def _csv(path: Path, column: str | None, candidates: Sequence[str]) -> Iterator[ListRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _open_text(path, newline="") as file:
        head = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=_delimiter(path, head))
        try:
            header = [clean(name).strip() for name in next(reader, [])]
            chosen = _choose(path, header, column, candidates)
            if len(set(header)) != len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise UsageError(f"{path}: the column {twice!r} is there twice")
            for cells in reader:
                place = f"{path}:{reader.line_num}"
                if not any(cell.strip() for cell in cells):
                    continue  # an empty line
                if len(cells) > len(header):
                    yield ListRow(place, None, problem=f"{len(cells)} cells under a header of "
                                  f"{len(header)}; is there a comma without quotes around it?")
                    continue
                row = {name: clean(cell) for name, cell in zip(header, cells, strict=False)}
                yield ListRow(place, row.pop(chosen, "").strip() or None, row)
        except csv.Error as error:
            raise UsageError(f"{path}:{reader.line_num}: not readable as CSV: {error}") from error


def _delimiter(path: Path, head: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    # A comma unless the header has none: some programs write semicolons or tabs.
    return max(",;\t", key=head.count) if "," not in head else ","


def _json_lines(path: Path, column: str | None, candidates: Sequence[str]) -> Iterator[ListRow]:
    chosen = None
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield ListRow(place, None, problem=f"not valid JSON: {error}")
                continue
            if isinstance(value, str):
                yield ListRow(place, clean(value).strip() or None)
            elif isinstance(value, dict):
                row = {clean(name): item for name, item in value.items()}
                chosen = chosen or _choose(path, list(row), column, candidates)
                yield ListRow(place, _text(row.pop(chosen, None)), row)
            else:
                yield ListRow(place, None, problem="neither an object nor a string")


def _parquet(path: Path, column: str | None, candidates: Sequence[str]) -> Iterator[ListRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path} is not a Parquet file: {error}") from error
    with file:
        chosen = _choose(path, file.schema_arrow.names, column, candidates)
        number = 0
        for batch in file.iter_batches(_PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield ListRow(f"{path}:row {number}", _text(row.pop(chosen)), row)


def _choose(
    path: Path, present: Sequence[str], column: str | None, candidates: Sequence[str]
) -> str:
    """The column that holds the locator, by its exact name or by any case of a usual one."""
    if column is not None:
        if column in present:
            return column
        near = difflib.get_close_matches(column, present, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"{path} has no column {column!r}; {hint}its columns: "
                         f"{', '.join(present) or 'none'}")
    by_lower = {name.lower(): name for name in reversed(present)}
    for candidate in candidates:
        if candidate in by_lower:
            return by_lower[candidate]
    raise UsageError(f"{path}: none of the columns {', '.join(candidates)} is there; name the one "
                     f"to take (`url_column`). Its columns: {', '.join(present) or 'none'}")


def _open_text(path: Path, newline: str | None = None) -> TextIO:
    return open(path, encoding=_encoding(path), errors="replace", newline=newline)


def _encoding(path: Path) -> str:
    """UTF-8 with or without a mark, UTF-16 by its mark, else what Windows programs write."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        file.seek(0)
        try:
            while chunk := file.read(1 << 20):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8-sig"


def _text(value: Any) -> str | None:
    return None if value is None else clean(str(value)).strip() or None


def clean(text: str) -> str:
    """The text with what no table can hold (half of a surrogate pair) replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
