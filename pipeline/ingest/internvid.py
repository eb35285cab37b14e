"""Reads InternVid's published metadata, JSON lines or Parquet, a few rows at a time.

A published row is one clip: `YoutubeID`, `Start_timestamp`, `End_timestamp`, `Caption`,
`Aesthetic_Score` and `UMT_Score`, which some conversions to Parquet call `UMT-SIM`. The largest
file has 234 million rows in 45 GB, so nothing here holds more than a few blocks of it.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.pipeline.ingest.internvid_sql import (
    CAPTION,
    END,
    NEEDED,
    SCORE,
    START,
    YOUTUBE_ID,
    connect,
    json_rows,
    parquet_rows,
)
from clipmill.pipeline.ingest.line_blocks import LineBlock, ReportBytes, line_blocks
from clipmill.pipeline.ingest.ordered_threads import in_threads
from clipmill.pipeline.ingest.plain_lines import PlainLines, plain_lines
from clipmill.pipeline.ingest.text_columns import are_video_ids, interleaved, seconds_in
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.sql_text import escaped_for_glob, literal

_OTHER_NAMES_OF_SCORE = frozenset(("umt-sim", "umt_sim", "umtsim"))
_SAMPLE_ROWS = 1000
_FORMS_OF = 100
_BATCH_ROWS = 100_000
_MEMORY = "512MB"
_TEXTS = pa.list_(pa.string())
ROWS = pa.schema(
    [
        ("file", pa.int32()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("caption", pa.string()),
        ("keys", _TEXTS),
        ("values", _TEXTS),
        ("problem", pa.string()),
    ]
)
"""Rows of files by their numbers, counted from 1; `problem` is null if the row is good.

`values` are the other published columns as text, `keys` their names: null for the usual ones of
the file, in their usual order.
"""


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

    @property
    def usual_keys(self) -> tuple[str, ...]:
        """What most rows have besides the id and the caption, under the names that are stored."""
        names = self.others if self.plain is None else self.plain.keys
        known = (self.columns[YOUTUBE_ID], self.columns.get(CAPTION))
        return tuple(SCORE if name == self.score else name for name in names if name not in known)


def open_published(path: Path) -> PublishedFile:
    """Checks a file's beginning; UsageError if it is not InternVid's."""
    path = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100  a link keeps its own name
    try:
        with open(path, "rb") as file:
            head = file.read(4)
        return _parquet(path) if head == b"PAR1" else _json_lines(path)
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder; name the files to import") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _parquet(path: Path) -> PublishedFile:
    place = literal(escaped_for_glob(str(path)))
    try:
        with duckdb.connect(":memory:") as connection:
            query = f"DESCRIBE SELECT * FROM read_parquet({place})"
            found = connection.execute(query).fetchall()
    except duckdb.Error as error:
        raise UsageError(f"{path} is not a readable Parquet file: {error}") from error
    names = [name for name, kind, *_ in found if kind != "BLOB"]
    columns, score = _choose(path, names)
    others = [name for name in names if name not in (columns[YOUTUBE_ID], columns.get(CAPTION))]
    return PublishedFile(path, True, columns, score, tuple(others))


def _json_lines(path: Path) -> PublishedFile:
    names: dict[str, None] = {}
    rows = 0
    block = next(line_blocks(path), None)
    sample = block.lines().slice(0, _SAMPLE_ROWS).to_pylist() if block is not None else []
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
    return PublishedFile(path, False, columns, score, plain=_usual_form(sample, columns))


def _usual_form(sample: Sequence[str], columns: dict[str, str]) -> PlainLines | None:
    """How most of the first lines that can be split are written; None if none of them can."""
    forms: dict[str, PlainLines] = {}
    counts: Counter[str] = Counter()
    for line in sample[:_FORMS_OF]:
        plain = plain_lines(line)
        if plain is not None and set(columns.values()) <= set(plain.keys):
            forms[repr(plain)] = plain
            counts[repr(plain)] += 1
    return forms[counts.most_common(1)[0][0]] if counts else None


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
    """The rows of some files."""

    def __init__(self, files: Sequence[PublishedFile], report: ReportBytes | None = None) -> None:
        self._files = files
        self._report = report

    def tables(self) -> Generator[pa.Table, None, None]:
        """The rows as tables of `ROWS`, file by file and block by block."""
        for number, file in enumerate(self._files):
            yield from _parquet_tables(number, file) if file.is_parquet else self._lines(number)

    def _lines(self, number: int) -> Iterator[pa.Table]:
        file = self._files[number]
        read = _JsonBlocks(number, file)
        with in_threads(read.rows, line_blocks(file.path, self._report)) as tables:
            yield from tables

    def with_extra(self, table: pa.Table) -> pa.Table:
        """A table of `ROWS` with the map `extra` instead of keys and values."""
        keys, values = (table[name].combine_chunks() for name in ("keys", "values"))
        usual = [file.usual_keys for file in self._files]
        names = pa.array([name for one in usual for name in one], pa.string())
        firsts = np.cumsum([0, *map(len, usual)])
        lengths = _lengths(values)
        # Where the names of each row begin, among the usual ones of all files and then its own.
        begins = firsts[table["file"].combine_chunks().to_numpy()]
        if keys.null_count < len(keys):
            own = pc.is_valid(keys).to_numpy(zero_copy_only=False)
            begins = np.where(own, firsts[-1] + np.cumsum(_lengths(keys)) - lengths, begins)
        starts = np.cumsum(lengths) - lengths
        at = np.repeat(begins - starts, lengths) + np.arange(lengths.sum())
        names = pa.concat_arrays([names, keys.flatten()]).take(pa.array(at))
        starts = np.append(starts, lengths.sum()).astype(np.int32)
        is_missing = np.append(pc.is_null(values).to_numpy(zero_copy_only=False), False)
        offsets = pa.array(starts, mask=is_missing) if values.null_count else pa.array(starts)
        extra = pa.MapArray.from_arrays(offsets, names, values.flatten())
        return table.drop_columns(["keys", "values"]).append_column("extra", extra)


def _lengths(lists: pa.ListArray) -> np.ndarray:
    found = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.asarray(found, np.int64)


def _parquet_tables(number: int, file: PublishedFile) -> Iterator[pa.Table]:
    place = literal(escaped_for_glob(str(file.path)))
    query = parquet_rows(place, file.columns, file.score, file.others)
    try:
        with connect({"memory_limit": _MEMORY, "autoload_known_extensions": False}) as connection:
            for batch in connection.sql(query).to_arrow_reader(_BATCH_ROWS):
                yield _as_rows(number, pa.Table.from_batches([batch]))
    except duckdb.Error as error:
        said = str(error).partition("\n")[0]
        raise ClipmillError(f"the rows of {file.path} could not be read: {said}") from error


def _as_rows(number: int, found: pa.Table) -> pa.Table:
    """What a query found as `ROWS`."""
    found = found.append_column("file", pa.repeat(pa.scalar(number, pa.int32()), found.num_rows))
    return found.select(ROWS.names).cast(ROWS)


class _JsonBlocks:
    """Reads blocks of one file, in several threads at once."""

    def __init__(self, number: int, file: PublishedFile) -> None:
        self._number = number
        self._file = file
        self._local = threading.local()

    def rows(self, block: LineBlock) -> pa.Table:
        """The rows of a block as `ROWS`; those of odd lines come last."""
        lines = block.lines()
        if self._file.plain is None:
            return self._parsed(block, lines, np.ones(len(lines), bool))
        is_plain, values = self._file.plain.read(lines)
        is_good, plain = self._plain(block, is_plain, values)
        is_plain[np.flatnonzero(is_plain)[~is_good]] = False
        if is_plain.all():
            return plain
        return pa.concat_tables([plain, self._parsed(block, lines, ~is_plain)])

    def _plain(
        self, block: LineBlock, is_plain: np.ndarray, values: dict[str, pa.Array]
    ) -> tuple[np.ndarray, pa.Table]:
        """Which of the plain lines are good rows in the usual form, and these rows."""
        file = self._file
        ids, start, end = (values[file.columns[name]] for name in (YOUTUBE_ID, START, END))
        first, last = seconds_in(start), seconds_in(end)
        # Comparisons with what is not a number are false.
        is_good = are_video_ids(ids) & (first >= 0) & (last > first)
        rows = np.flatnonzero(is_plain) + block.first
        if not is_good.all():
            picked = pa.array(is_good)
            values = {key: value.filter(picked) for key, value in values.items()}
            ids = values[file.columns[YOUTUBE_ID]]
            first, last, rows = first[is_good], last[is_good], rows[is_good]
        caption = file.columns.get(CAPTION)
        known = (file.columns[YOUTUBE_ID], caption)
        assert file.plain is not None
        columns = [
            pa.repeat(pa.scalar(self._number, pa.int32()), len(rows)),
            pa.array(rows),
            ids,
            pa.array(first),
            pa.array(last),
            pa.nulls(len(rows), pa.string()) if caption is None else _stripped(values[caption]),
            pa.nulls(len(rows), _TEXTS),
            interleaved([values[key] for key in file.plain.keys if key not in known], len(rows)),
            pa.nulls(len(rows), pa.string()),
        ]
        return is_good, pa.Table.from_arrays(columns, schema=ROWS)

    def _parsed(self, block: LineBlock, lines: pa.StringArray, picked: np.ndarray) -> pa.Table:
        """The rows of some lines, parsed as JSON."""
        numbers = pa.array(np.flatnonzero(picked) + block.first, pa.int64())
        connection = self._connection()
        connection.register(
            "lines", pa.table({"row": numbers, "line": lines.filter(pa.array(picked))})
        )
        query = json_rows("lines", self._file.columns, self._file.score)
        try:
            found = connection.sql(query).to_arrow_table()
        except duckdb.Error as error:
            said = str(error).partition("\n")[0]
            raise ClipmillError(
                f"the rows of {self._file.path} could not be read: {said}"
            ) from error
        finally:
            connection.unregister("lines")
        return _as_rows(self._number, found)

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """This thread's own."""
        if not hasattr(self._local, "connection"):
            self._local.connection = connect({"threads": 1, "autoload_known_extensions": False})
        connection: duckdb.DuckDBPyConnection = self._local.connection
        return connection


def _stripped(texts: pa.Array) -> pa.Array:
    """Texts without control characters, without spaces at their ends; null if nothing is left."""
    padded = pc.or_(pc.starts_with(texts, " "), pc.ends_with(texts, " "))
    if not pc.any(padded).as_py():
        return texts
    texts = pc.utf8_trim(texts, " ")
    return pc.if_else(pc.equal(texts, ""), None, texts)
