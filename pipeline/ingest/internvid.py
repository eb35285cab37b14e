"""Reads InternVid's published metadata, JSON lines or Parquet, as one relation in DuckDB.

A published row is one clip: `YoutubeID`, `Start_timestamp`, `End_timestamp`, `Caption`,
`Aesthetic_Score` and `UMT_Score`, which some conversions to Parquet call `UMT-SIM`. The largest
file has 234 million rows in 45 GB, so nothing here holds more than a few blocks of it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from clipmill.pipeline.ingest.plain_lines import PlainLines, plain_lines
from clipmill.schemas.errors import UsageError
from clipmill.schemas.sql_text import escaped_for_glob, literal, quoted

YOUTUBE_ID, START, END, CAPTION = NEEDED = (
    "YoutubeID",
    "Start_timestamp",
    "End_timestamp",
    "Caption",
)
SCORE = "UMT_Score"
_OTHER_NAMES_OF_SCORE = frozenset(("umt-sim", "umt_sim", "umtsim"))

ReportBytes = Callable[[int], None]
"""Called with how many further bytes of the files have been read."""

_BLOCK_BYTES = 8 << 20
_LONGEST_LINE_BYTES = 256 << 20
_SAMPLE_ROWS = 1000
_LINES = pa.schema([("row", pa.int64()), ("line", pa.string())])
# Quotes a number that is the value of a key, so that its digits stay as published. A quote inside
# a string follows a backslash, so no caption can match.
_NUMBER = r"""'([^\\]":\s*)(-?[0-9][0-9.eE+-]*)(\s*[,}])', '\1"\2"\3', 'g'"""
_TIME = (
    r"""'^(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?$'"""
    ", ['hours', 'minutes', 'seconds', 'fraction']"
)
# The same times as from `seconds_of`: whole seconds and the fraction are added as doubles.
_MACROS = (
    # Most texts have no space at an end, and `trim` is slow.
    r"CREATE TEMP MACRO stripped(t) AS CASE WHEN regexp_matches(t, '^[ \t\r\n]|[ \t\r\n]\z|^\z') "
    r"THEN nullif(trim(t, E' \t\r\n'), '') ELSE t END",
    # TRY_CAST even for matched parts: DuckDB may cast values that CASE does not select.
    "CREATE TEMP MACRO clock_seconds(r, t) AS CASE WHEN r.seconds <> '' THEN "
    "coalesce(TRY_CAST(r.hours AS DOUBLE), 0) * 3600 + TRY_CAST(r.minutes AS DOUBLE) * 60 "
    "+ TRY_CAST(r.seconds AS DOUBLE) + concat('0.', r.fraction, '0')::DOUBLE "
    "ELSE TRY_CAST(t AS DOUBLE) END",
    # The usual form first, which is read without a regular expression's groups.
    r"CREATE TEMP MACRO seconds_of(t) AS CASE WHEN regexp_full_match(t, '\d\d:\d\d:\d\d\.\d{3}') "
    "THEN TRY_CAST(left(t, 2) AS DOUBLE) * 3600 + TRY_CAST(substr(t, 4, 2) AS DOUBLE) * 60 "
    "+ TRY_CAST(substr(t, 7, 2) AS DOUBLE) + TRY_CAST(concat('0.', substr(t, 10), '0') AS DOUBLE) "
    f"ELSE clock_seconds(regexp_extract(t, {_TIME}), t) END",
    "CREATE TEMP MACRO said(entries) AS map_from_entries(list_filter(entries, lambda e: "
    "e.value IS NOT NULL AND e.value <> '' AND lower(e.value) <> 'nan'))",
)


@dataclass(frozen=True)
class PublishedFile:
    """One file, with its names for the needed columns and for the similarity (null if missing)."""

    path: Path
    is_parquet: bool
    columns: dict[str, str]
    score: str | None
    others: tuple[str, ...] = ()
    plain: PlainLines | None = None

    def place(self, row: int) -> str:
        """A row's place, for messages."""
        return f"{self.path}:row {row}" if self.is_parquet else f"{self.path}:{row}"


def open_published(connection: duckdb.DuckDBPyConnection, path: Path) -> PublishedFile:
    """Checks a file's beginning; UsageError if it is not InternVid's."""
    path = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100  a link keeps its own name
    try:
        with open(path, "rb") as file:
            head = file.read(4)
        if head == b"PAR1":
            return _parquet(connection, path)
        return _json_lines(path)
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder; name the files to import") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _parquet(connection: duckdb.DuckDBPyConnection, path: Path) -> PublishedFile:
    place = literal(escaped_for_glob(str(path)))
    try:
        found = connection.execute(f"DESCRIBE SELECT * FROM read_parquet({place})").fetchall()
    except duckdb.Error as error:
        raise UsageError(f"{path} is not a readable Parquet file: {error}") from error
    names = [name for name, kind, *_ in found if kind != "BLOB"]
    columns, score = _choose(path, names)
    others = [name for name in names if name not in (columns[YOUTUBE_ID], columns.get(CAPTION))]
    return PublishedFile(path, True, columns, score, tuple(others))


def _json_lines(path: Path) -> PublishedFile:
    names: dict[str, None] = {}
    rows = 0
    with contextlib.closing(_Lines(path, None).batches()) as lines:
        batch = next(lines, None)
    sample = batch["line"].slice(0, _SAMPLE_ROWS).to_pylist() if batch is not None else []
    for number, line in enumerate(sample):
        if number == 0 and line.startswith("["):
            raise UsageError(
                f"{path} is one JSON array; InternVid's files are JSON lines (convert "
                "it with `jq -c '.[]'`)"
            )
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            rows += 1
            names.update(dict.fromkeys(value))
    if not rows:
        raise UsageError(
            f"{path} is not InternVid's metadata: none of its first lines is a JSON "
            "object, and it is not a Parquet file"
        )
    columns, score = _choose(path, list(names))
    plain = plain_lines(sample[0]) if sample else None
    if plain is not None and set(plain.values) != names.keys():
        plain = None
    return PublishedFile(path, False, columns, score, plain=plain)


def _choose(path: Path, names: Sequence[str]) -> tuple[dict[str, str], str | None]:
    """The file's names for the needed columns, in any case, and for the similarity."""
    by_lower = {name.lower(): name for name in reversed(names)}
    columns = {name: by_lower[name.lower()] for name in NEEDED if name.lower() in by_lower}
    missing = [name for name in (YOUTUBE_ID, START, END) if name not in columns]
    if missing:
        raise UsageError(
            f"{path} is not InternVid's metadata: it has no column "
            f"{', '.join(missing)}. Its columns: {', '.join(names) or 'none'}. Other "
            "lists go to the --sources of a run"
        )
    if SCORE.lower() in by_lower:
        return columns, by_lower[SCORE.lower()]
    return columns, next((name for name in names if name.lower() in _OTHER_NAMES_OF_SCORE), None)


class PublishedRows:
    """The rows of some files as a relation, `sql`, which can be read again after each `rewind`.

    Its columns: `file` and `row` (from 1), `id`, `start_seconds`, `end_seconds`, `caption`,
    `extra` (the other published columns as text) and `problem`, null if the row is good.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        files: Sequence[PublishedFile],
        report: ReportBytes | None = None,
    ) -> None:
        self._connection = connection
        self._files = files
        self._report = report
        self._error: UsageError | None = None
        for macro in _MACROS:
            connection.execute(macro)
        read = " UNION ALL ".join(self._relation(number) for number in range(len(files)))
        self.sql = (
            f"SELECT *, {_PROBLEM} AS problem FROM (SELECT *, seconds_of(start_text) AS "
            f"start_seconds, seconds_of(end_text) AS end_seconds FROM ({read}))"
        )

    def rewind(self) -> None:
        """Prepares the relation for reading from its beginning."""
        for number, file in enumerate(self._files):
            if not file.is_parquet:
                batches = self._watched(_Lines(file.path, self._report))
                reader = pa.RecordBatchReader.from_batches(_LINES, batches)
                self._connection.register(f"lines_{number}", reader)

    def check(self) -> None:
        """Raises the error from reading a file, of which DuckDB gives only a hint."""
        if self._error is not None:
            raise self._error

    def _watched(self, lines: _Lines) -> Iterator[pa.RecordBatch]:
        try:
            yield from lines.batches()
        except UsageError as error:
            self._error = error
            raise

    def _relation(self, number: int) -> str:
        file = self._files[number]
        if file.is_parquet:
            return _parquet_relation(number, file)
        names = file.columns
        picked = {name: f"m[{literal(column)}]" for name, column in names.items()}
        others = ", ".join(map(literal, (names[YOUTUBE_ID], names.get(CAPTION, CAPTION))))
        kept = f"list_filter(map_entries(m), lambda e: e.key NOT IN ({others}))"
        if file.score not in (None, SCORE):
            kept = (
                f"list_transform({kept}, lambda e: {{'key': CASE WHEN e.key = "
                f"{literal(file.score)} THEN '{SCORE}' ELSE e.key END, 'value': e.value}})"
            )
        lines = f"FROM lines_{number} WHERE regexp_matches(line, '[^ \\t\\r\\n]')"
        extra, readable = f"TRY(said({kept}))", "m IS NOT NULL"
        if file.plain is None:
            read = f'SELECT "row", {_parsed("line")} {lines}'
        else:
            # Only the other lines are parsed: an expression of null costs nothing.
            read = (
                f'SELECT "row", p, is_plain, {_parsed("if(is_plain, NULL, line)")} FROM '
                f"(SELECT *, {file.plain.is_plain} AS is_plain FROM (SELECT "
                f'"row", line, string_split(line, \'"\') AS p {lines}))'
            )
            picked = {
                name: f"CASE WHEN is_plain THEN {file.plain.values[column]} ELSE {picked[name]} END"
                for name, column in names.items()
            }
            said = {
                SCORE if column == file.score else column: value
                for column, value in file.plain.values.items()
                if column not in (names[YOUTUBE_ID], names.get(CAPTION))
            }
            keys, values = ", ".join(map(literal, said)), ", ".join(said.values())
            extra = f"CASE WHEN is_plain THEN MAP([{keys}], [{values}]) ELSE {extra} END"
            readable = "is_plain OR m IS NOT NULL"
        return _columns(number, '"row"', readable, picked, extra, f"({read})")


def _parsed(line: str) -> str:
    return f"TRY(regexp_replace({line}, {_NUMBER})::JSON::MAP(VARCHAR, VARCHAR)) AS m"


def _parquet_relation(number: int, file: PublishedFile) -> str:
    picked = {name: f"CAST({quoted(column)} AS VARCHAR)" for name, column in file.columns.items()}
    entries = ", ".join(
        f"{{'key': {literal(SCORE if name == file.score else name)}, "
        f"'value': CAST({quoted(name)} AS VARCHAR)}}"
        for name in file.others
    )
    place = literal(escaped_for_glob(str(file.path)))
    return _columns(
        number,
        "file_row_number + 1",
        "true",
        picked,
        f"said([{entries}])",
        f"read_parquet({place}, file_row_number = true)",
    )


def _columns(
    number: int, row: str, readable: str, picked: dict[str, str], extra: str, source: str
) -> str:
    return (
        f'SELECT {number} AS file, {row} AS "row", {readable} AS readable, '
        f"stripped({picked[YOUTUBE_ID]}) AS id, stripped({picked[START]}) AS start_text, "
        f"stripped({picked[END]}) AS end_text, "
        f"stripped({picked.get(CAPTION, 'NULL::VARCHAR')}) AS caption, {extra} AS extra "
        f"FROM {source}"
    )


_UNREADABLE_TIME = "'{} {} is neither seconds nor HH:MM:SS.mmm'"
_PROBLEM = f"""CASE
    WHEN NOT readable THEN 'not valid JSON, or not an object with distinct keys'
    WHEN id IS NULL THEN 'no {YOUTUBE_ID} in this row'
    WHEN NOT regexp_full_match(id, '[A-Za-z0-9_-]{{11}}')
        THEN format('{YOUTUBE_ID} {{}} is not 11 letters, digits, _ or -', left(id, 100))
    WHEN start_text IS NULL THEN 'no {START} in this row'
    WHEN end_text IS NULL THEN 'no {END} in this row'
    WHEN start_seconds IS NULL OR NOT isfinite(start_seconds)
        THEN format({_UNREADABLE_TIME}, '{START}', left(start_text, 100))
    WHEN end_seconds IS NULL OR NOT isfinite(end_seconds)
        THEN format({_UNREADABLE_TIME}, '{END}', left(end_text, 100))
    WHEN start_seconds < 0 OR end_seconds <= start_seconds
        THEN format('the span from {{}} to {{}} is empty or negative', start_text, end_text)
    END"""


class _Lines:
    """The lines of a file, plain or gzipped, in blocks; invalid UTF-8 is repaired."""

    def __init__(self, path: Path, report: ReportBytes | None) -> None:
        self._path = path
        self._report = report

    def batches(self) -> Generator[pa.RecordBatch, None, None]:
        first = 1
        for block in self._blocks():
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
            offsets = np.concatenate(([0], ends)).astype(np.int32)
            lines = pa.Array.from_buffers(
                pa.string(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(block)]
            )
            rows = pa.array(np.arange(first, first + len(ends), dtype=np.int64))
            first += len(ends)
            yield pa.record_batch([rows, lines], schema=_LINES)

    def _blocks(self) -> Iterator[bytes]:
        """Blocks of the file that end at line ends."""
        rest = b""
        try:
            with open(self._path, "rb") as raw, self._unpacked(raw) as file:
                read_before = 0
                while data := file.read(_BLOCK_BYTES):
                    if self._report is not None:
                        self._report(raw.tell() - read_before)
                        read_before = raw.tell()
                    data = rest + data
                    cut = data.rfind(b"\n") + 1
                    rest = data[cut:]
                    if cut:
                        yield _as_utf8(data[:cut])
                    elif len(rest) > _LONGEST_LINE_BYTES:
                        raise UsageError(
                            f"{self._path} has a line of over "
                            f"{_LONGEST_LINE_BYTES >> 20} MiB; expected JSON lines"
                        )
                if rest:
                    yield _as_utf8(rest + b"\n")
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"cannot read {self._path}: {error}") from error

    @staticmethod
    def _unpacked(raw: io.BufferedReader) -> io.BufferedIOBase:
        is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"
        return gzip.GzipFile(fileobj=raw) if is_gzip else raw


def _as_utf8(block: bytes) -> bytes:
    block = block.removeprefix(b"\xef\xbb\xbf")
    if block.isascii():
        return block
    try:
        block.decode()
    except UnicodeDecodeError:
        return block.decode("utf-8", "replace").encode()
    return block
