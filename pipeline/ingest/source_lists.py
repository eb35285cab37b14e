"""Reads lists of sources: CSV, TSV, TXT, JSON, JSON lines and Parquet, row by row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmill.pipeline.ingest.list_headers import read_header
from clipmill.pipeline.ingest.list_json import MOST_JSON_BYTES, lines_of_json, rows_of_json
from clipmill.pipeline.ingest.list_records import Ahead, Counts, Dialect, Records, writer_quotes
from clipmill.pipeline.ingest.list_text import TextLines, list_suffix
from clipmill.schemas.errors import UsageError
from clipmill.schemas.words import did_you_mean

LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
URL_COLUMNS = (
    "url",
    "path",
    "video",
    "video_url",
    "video_path",
    "file",
    "filename",
    "link",
    "uri",
    "contenturl",
    "file_path",
    "file_name",
    "webpage_url",
)
YOUTUBE_COLUMNS = ("youtube_id", "youtubeid", "ytid", "yt_id")
ID_COLUMNS = (*YOUTUBE_COLUMNS, "video_id", "videoid", "vid")
"""Columns of names without an address: of YouTube videos, or of files next to the list."""
LOCATOR_COLUMNS = (*URL_COLUMNS, *ID_COLUMNS)
QUERY_COLUMNS = ("query", "search", "term", "text", "label")
_PARQUET_ROWS = 4096
_HOW_TO_NAME = (
    "Name the one to use with --set url_column=…, or all of them with --set columns=url,caption,… "
    "if the first line is not a header (in a recipe, on the source). "
)


@dataclass(frozen=True, slots=True)
class ListRow:
    """One row of a list: `locator` is its URL, path or search term, null if it has none.

    `place` is `<file>:<line>`; `problem` says why the row can't be read.
    """

    place: str
    locator: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(slots=True)
class Reading:
    """Counts of one list: `lines` = header + blank + comments + row_lines.

    A file without lines (Parquet, one JSON value) has only rows. `column` contains the locators;
    it is None for a list without columns.
    """

    path: Path
    counts: Counts = field(default_factory=Counts)
    lines: int | None = None
    column: str | None = None


@dataclass(frozen=True, slots=True)
class ListFile:
    """A list, and what the recipe says about it: the locator's column, the encoding, and the
    column names if the file has no header.
    """

    path: Path
    column: str | None = None
    encoding: str | None = None
    names: tuple[str, ...] | None = None

    def read(
        self, candidates: Sequence[str] = LOCATOR_COLUMNS, reading: Reading | None = None
    ) -> Iterator[ListRow]:
        """The rows; the locator is in `column`, else in the first of `candidates`.

        Raises UsageError if the file can't be read or has no such column.
        """
        readers = {
            ".csv": self._csv,
            ".tsv": self._csv,
            ".txt": self._txt,
            ".jsonl": self._json_lines,
            ".ndjson": self._json_lines,
            ".json": self._json,
            ".parquet": self._parquet,
        }
        suffix = list_suffix(self.path)
        if suffix not in readers:
            raise UsageError(f"{self.path}: a list of sources is one of {', '.join(LIST_SUFFIXES)}")
        if self.names is not None and suffix not in (".csv", ".tsv"):
            raise UsageError(
                f"{self.path}: `columns` names the columns of a .csv or .tsv without "
                f"a header; a {suffix} list has none, or names them itself"
            )
        try:
            yield from readers[suffix](candidates, reading or Reading(self.path))
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror or error}") from error

    def _txt(self, _: Sequence[str], reading: Reading) -> Iterator[ListRow]:
        if self.column is not None:
            raise UsageError(
                f"{self.path}: a .txt list has one entry per line and no column {self.column!r}"
            )
        lines, counts = TextLines(self.path, self.encoding), reading.counts
        for number, line, problem in lines:
            text = line.strip()
            if not text:
                counts.blank += 1
            elif text.startswith("#"):
                counts.comments += 1
            else:
                counts.rows += 1
                counts.row_lines += 1
                yield ListRow(f"{self.path}:{number}", None if problem else text, {}, problem)
        reading.lines = lines.lines

    def _csv(self, candidates: Sequence[str], reading: Reading) -> Iterator[ListRow]:
        lines = self.lines()
        ahead = Ahead(lines)
        names, dialect, text = self.header(ahead, candidates, reading)
        chosen = reading.column
        assert chosen is not None
        start = f"{self.path}:"
        for number, cells, problem in Records(
            ahead, dialect, names, names.index(chosen), reading.counts, text
        ):
            if cells is None:
                yield ListRow(f"{start}{number}", None, problem=problem)
            else:
                row = dict(zip(names, cells, strict=True))
                yield ListRow(f"{start}{number}", row.pop(chosen).strip() or None, row)
        reading.lines = lines.lines

    def lines(self) -> TextLines:
        return TextLines(self.path, self.encoding)

    def header(
        self, ahead: Ahead, candidates: Sequence[str], reading: Reading
    ) -> tuple[list[str], Dialect, str]:
        """Reads a CSV or TSV up to its first row: names, dialect, the header's own text."""
        names, dialect, text = read_header(
            self.path,
            ahead,
            reading.counts,
            self.names,
            list_suffix(self.path),
            lambda names: find_column(names, self.column, candidates) is not None,
        )
        reading.column = self.choose(names, candidates)
        if dialect.delimiter == "\t" and not writer_quotes(ahead, dialect, text):
            dialect = Dialect("\t", quoted=False)
        return names, dialect, text

    # JSON

    def _json_lines(self, candidates: Sequence[str], reading: Reading) -> Iterator[ListRow]:
        lines = TextLines(self.path, self.encoding)
        yield from self._of_values(
            lines_of_json(self.path, lines, reading.counts), candidates, reading
        )
        reading.lines = lines.lines

    def _json(self, candidates: Sequence[str], reading: Reading) -> Iterator[ListRow]:
        """One JSON value with all rows in it, or JSON lines under another suffix."""
        if self.path.stat().st_size > MOST_JSON_BYTES:
            raise UsageError(
                f"{self.path} is one JSON value of over {MOST_JSON_BYTES >> 20} MiB; "
                "convert it to JSON lines: jq -c '.[]' FILE.json > FILE.jsonl"
            )
        text = TextLines(self.path, self.encoding).text()
        values = rows_of_json(self.path, text, reading.counts)
        if values is None:
            yield from self._json_lines(candidates, reading)
        else:
            yield from self._of_values(values, candidates, reading)

    def _of_values(
        self,
        values: Iterator[tuple[str, Any, str | None]],
        candidates: Sequence[str],
        reading: Reading,
    ) -> Iterator[ListRow]:
        """Objects and strings as rows."""
        found_any, first = False, None
        for place, value, problem in values:
            if problem is not None:
                yield ListRow(place, None, problem=problem)
            elif isinstance(value, str):
                found_any = True
                yield ListRow(place, clean(value).strip() or None)
            elif isinstance(value, dict):
                row = {clean(name): item for name, item in value.items()}
                chosen = reading.column
                if chosen is None or chosen not in row:
                    chosen = find_column(list(row), self.column, candidates)
                    reading.column = reading.column or chosen
                found_any = found_any or chosen is not None
                first = first or list(row)
                locator = None if chosen is None else text_of_locator(row.pop(chosen))
                yield ListRow(place, locator, row)
            else:
                yield ListRow(place, None, problem="neither an object nor a string")
        if first is not None and not found_any:
            self.choose(first, candidates)

    # Parquet

    def _parquet(self, candidates: Sequence[str], reading: Reading) -> Iterator[ListRow]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(self.path)
        except pa.ArrowInvalid as error:
            raise UsageError(f"{self.path} is not a Parquet file: {error}") from error
        with file:
            schema = file.schema_arrow
            of_bytes = [each.name for each in schema if holds_bytes(each.type)]
            if self.column is None and find_column(schema.names, None, candidates) is None:
                self._check_place(of_bytes)
            chosen = reading.column = self.choose(schema.names, candidates)
            if pa.types.is_struct(schema.field(chosen).type):
                self._check_place([name for name in of_bytes if name == chosen])
            # Bytes of videos and pictures are not metadata.
            wanted = [
                each.name for each in schema if each.name == chosen or not holds_bytes(each.type)
            ]
            number = 0
            try:
                for batch in file.iter_batches(_PARQUET_ROWS, columns=wanted):
                    for row, problem in rows_of_batch(batch):
                        if isinstance(name := row.get(chosen), bytes) and b"\0" in name:
                            self._check_place([chosen])
                        number += 1
                        reading.counts.rows += 1
                        yield ListRow(
                            f"{self.path}:row {number}",
                            text_of_locator(row.pop(chosen, None)),
                            row,
                            problem,
                        )
            except (pa.ArrowException, OSError) as error:
                raise UsageError(f"cannot read {self.path} after row {number}: {error}") from error

    def _check_place(self, of_bytes: Sequence[str]) -> None:
        if of_bytes:
            raise UsageError(
                f"{self.path}: its column {of_bytes[0]!r} holds files, not their paths or URLs; "
                "write the videos into a folder and name that, or a list of them "
                "(docs/sources.md, Videos inside other files)"
            )

    def choose(self, present: Sequence[str], candidates: Sequence[str]) -> str:
        """The column with the locators, by its exact name or, for usual names, in any case."""
        found = find_column(present, self.column, candidates)
        if found is not None:
            return found
        has = f"{', '.join(present) or 'none'}"
        if self.column is not None:
            hint = did_you_mean(self.column, present, shown=repr)
            raise UsageError(f"{self.path} has no column {self.column!r}; {hint}its columns: {has}")
        if not present:
            raise UsageError(f"{self.path} is empty")
        raise UsageError(
            f"{self.path}: none of the columns {', '.join(candidates)} exists. "
            f"{_HOW_TO_NAME if candidates == LOCATOR_COLUMNS else ''}Its columns: {has}"
        )


def find_column(
    present: Sequence[str], column: str | None, candidates: Sequence[str]
) -> str | None:
    """The exact column that was requested, else the first of `candidates` in any spelling."""
    if column is not None:
        return column if column in present else None
    by_word = {word_of(name): name for name in reversed(present)}
    return next((by_word[name] for name in candidates if name in by_word), None)


def word_of(name: str) -> str:
    """A column's name in lower case, with `_` for spaces and hyphens."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(holds_bytes(each.type) for each in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return holds_bytes(kind.value_type)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def rows_of_batch(batch: Any) -> Iterator[tuple[dict[str, Any], str | None]]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:  # Parquet writers don't validate text
        for at in range(batch.num_rows):
            try:
                yield batch.slice(at, 1).to_pylist()[0], None
            except UnicodeDecodeError as error:
                yield {}, f"not UTF-8: byte 0x{error.object[error.start]:02x} ({error.object!r})"
        return
    for row in rows:
        yield row, None


def text_of_locator(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return None if value is None else clean(str(value)).strip() or None


def clean(text: str) -> str:
    """The text with replacements for what no table can hold (half of a surrogate pair)."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
