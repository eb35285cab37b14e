"""Reads delimited and Parquet lists in pieces: most rows as columns of text, the others one by one.

The rows are those that `ListFile.read` gives. A line that is no record by itself goes to the
reader of records, which may take further lines; all lines that it leaves are split at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.ingest.delimited_columns import split_lines
from clipmill.pipeline.ingest.list_cursor import LineCursor
from clipmill.pipeline.ingest.list_records import Ahead, Dialect, Records
from clipmill.pipeline.ingest.list_text import list_suffix
from clipmill.pipeline.ingest.source_lists import (
    LOCATOR_COLUMNS,
    ListFile,
    ListRow,
    Reading,
    find_column,
    holds_bytes,
    rows_of_batch,
    text_of_locator,
)
from clipmill.schemas.errors import UsageError

_PARQUET_ROWS = 16_384
_LEAST_PLAIN, _MOST_PLAIN = 1e-4, 1e15
"""Between these, DuckDB writes numbers as Python does."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a list. `others` are those that are not among the columns' rows.

    A row's place is `start` followed by its number; `column`, one of the `names`, has the locators.
    """

    start: str
    column: str
    names: tuple[str, ...]
    numbers: np.ndarray
    columns: dict[str, pa.StringArray]
    others: list[tuple[int, ListRow]]

    def row(self, at: int) -> ListRow:
        """One of the rows of the columns."""
        cells: dict[str, Any] = {name: texts[at].as_py() for name, texts in self.columns.items()}
        locator = text_of_locator(cells.pop(self.column))
        return ListRow(f"{self.start}{self.numbers[at]}", locator, cells)


def pieces(file: ListFile, reading: Reading) -> Iterator[Piece] | None:
    """All rows of a list; None if its form has no columns of text, and nothing is read then."""
    candidates = LOCATOR_COLUMNS
    suffix = list_suffix(file.path)
    if suffix in (".csv", ".tsv"):
        return _delimited(file, candidates, reading)
    if suffix == ".parquet" and file.names is None:
        return _parquet(file, candidates, reading)
    return None


# Lines


def _delimited(file: ListFile, candidates: Sequence[str], reading: Reading) -> Iterator[Piece]:
    lines = file.lines()
    cursor = LineCursor(lines)
    ahead = Ahead(cursor)
    names, dialect, text = file.header(ahead, candidates, reading)
    assert reading.column is not None
    records = Records(ahead, dialect, names, names.index(reading.column), reading.counts, text)
    yield from _Lines(file, cursor, ahead, dialect, names, records, reading).pieces()
    reading.lines = lines.lines


class _Lines:
    def __init__(
        self,
        file: ListFile,
        cursor: LineCursor,
        ahead: Ahead,
        dialect: Dialect,
        names: list[str],
        records: Records,
        reading: Reading,
    ) -> None:
        assert reading.column is not None
        self._start = f"{file.path}:"
        self._column = reading.column
        self._cursor = cursor
        self._ahead = ahead
        self._dialect = dialect
        self._names = names
        self._at = names.index(reading.column)
        self._all_records = records
        self._records = iter(records)
        self._counts = reading.counts
        # One byte, and no space to be skipped before a quote.
        self._splits = dialect.delimiter.isascii() and not dialect.spaced

    def pieces(self) -> Iterator[Piece]:
        while True:
            others = self._inspected()
            if others:
                yield self._piece(np.array([], np.int64), [], others)
            if not self._cursor.more():
                return
            yield self._block()

    def _piece(
        self, numbers: np.ndarray, cells: list[pa.StringArray], others: list[tuple[int, ListRow]]
    ) -> Piece:
        return Piece(
            self._start,
            self._column,
            tuple(self._names),
            numbers,
            dict(zip(self._names, cells, strict=True)) if cells else {},
            others,
        )

    def _row(self, number: int, cells: list[str] | None, problem: str | None) -> ListRow:
        place = f"{self._start}{number}"
        if cells is None:
            return ListRow(place, None, problem=problem)
        row = dict(zip(self._names, cells, strict=True))
        return ListRow(place, row.pop(self._column).strip() or None, row)

    def _inspected(self) -> list[tuple[int, ListRow]]:
        """The next rows, until no line is left that was inspected and can't be put back."""
        found = []
        while len(self._ahead) and not self._put_back():
            record = next(self._records, None)
            if record is None:
                break
            found.append((record[0], self._row(*record)))
        return found

    def _put_back(self) -> bool:
        if not self._cursor.back(len(self._ahead)):
            return False
        self._ahead.drop(len(self._ahead))
        return True

    def _block(self) -> Piece:
        """The rows that begin in the cursor's block, from its place on."""
        cursor = self._cursor
        block, first, start = cursor.block, cursor.first, cursor.at
        width = len(self._names)
        data, is_sound = cursor.sound_text()
        split = split_lines(
            data,
            self._dialect.delimiter if self._splits else "\n",
            width,
            quoted=self._dialect.quoted,
        )
        is_plain = split.is_plain & is_sound
        if not self._splits:
            is_plain[:] = False
        odd = np.flatnonzero(~is_plain)
        is_taken = np.zeros(len(is_plain), bool)
        others: list[tuple[int, ListRow]] = []
        at = start
        while at < len(is_plain):
            following = int(np.searchsorted(odd, at))
            end = int(odd[following]) if following < len(odd) else len(is_plain)
            is_taken[at:end] = True
            cursor.at = end
            if end == len(is_plain):
                break
            record = next(self._records, None)
            if record is not None:
                others.append((record[0], self._row(*record)))
            others += self._inspected()
            if record is None or cursor.block is not block:
                break
            at = cursor.at
        lines = np.flatnonzero(is_taken)
        cells = split.columns(is_taken[split.is_plain])
        return self._checked(first + lines, cells, split.has_quotes[lines], others)

    def _checked(
        self,
        numbers: np.ndarray,
        cells: list[pa.StringArray],
        has_quotes: np.ndarray,
        others: list[tuple[int, ListRow]],
    ) -> Piece:
        """The piece without the rows that may be blank, or the header again."""
        if len(numbers):
            names = pc.utf8_trim_whitespace(cells[self._at])
            doubtful = pc.or_(pc.equal(names, ""), pc.equal(names, self._column))
            is_doubtful = doubtful.to_numpy(zero_copy_only=False)
            for at in np.flatnonzero(is_doubtful).tolist():
                row = [texts[at].as_py() for texts in cells]
                for record in self._all_records.of_cells(
                    int(numbers[at]), row, quoted=bool(has_quotes[at])
                ):
                    others.append((record[0], self._row(*record)))
            if is_doubtful.any():
                is_good = pa.array(~is_doubtful)
                cells = [texts.filter(is_good) for texts in cells]
                numbers = numbers[~is_doubtful]
        self._counts.rows += len(numbers)
        self._counts.row_lines += len(numbers)
        return self._piece(numbers, cells, others)


# Parquet


def _parquet(file: ListFile, candidates: Sequence[str], reading: Reading) -> Iterator[Piece] | None:
    try:
        schema = pq.read_schema(file.path)
    except (pa.ArrowException, OSError):
        return None  # the reader of rows says what is wrong
    kinds = [each.type for each in schema if not holds_bytes(each.type)]
    chosen = find_column(schema.names, file.column, candidates)
    if chosen is None or holds_bytes(schema.field(chosen).type):
        return None
    if not all(_is_simple(kind) for kind in kinds):
        return None
    return _parquet_pieces(file, candidates, reading)


def _is_simple(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_float32(kind)
        or pa.types.is_float64(kind)
        or pa.types.is_null(kind)
    )


def _parquet_pieces(file: ListFile, candidates: Sequence[str], reading: Reading) -> Iterator[Piece]:
    start = f"{file.path}:row "
    number = 0
    with pq.ParquetFile(file.path) as opened, duckdb.connect(":memory:") as connection:
        connection.execute("SET threads = 1")
        schema = opened.schema_arrow
        chosen = reading.column = file.choose(schema.names, candidates)
        wanted = [each.name for each in schema if each.name == chosen or not holds_bytes(each.type)]
        try:
            for batch in opened.iter_batches(_PARQUET_ROWS, columns=wanted):
                numbers = np.arange(number + 1, number + 1 + batch.num_rows)
                found = _texts(batch, connection)
                columns, is_plain = found or ({}, np.zeros(batch.num_rows, bool))
                others = []
                if not is_plain.all():
                    odd = np.flatnonzero(~is_plain)
                    rows = rows_of_batch(batch.take(pa.array(odd)))
                    for at, (row, problem) in zip(numbers[odd].tolist(), rows, strict=True):
                        locator = text_of_locator(row.pop(chosen, None))
                        others.append((at, ListRow(f"{start}{at}", locator, row, problem)))
                    picked = pa.array(is_plain)
                    columns = {name: texts.filter(picked) for name, texts in columns.items()}
                reading.counts.rows += batch.num_rows
                number += batch.num_rows
                yield Piece(start, chosen, tuple(wanted), numbers[is_plain], columns, others)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"cannot read {file.path} after row {number}: {error}") from error


def _texts(
    batch: pa.RecordBatch, connection: duckdb.DuckDBPyConnection
) -> tuple[dict[str, pa.StringArray], np.ndarray] | None:
    """The columns as Python writes their values, and which rows are so; None if text is invalid."""
    is_plain = np.ones(batch.num_rows, bool)
    texts: dict[str, pa.StringArray] = {}
    numbers: dict[str, pa.Array] = {}
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_floating(values.type):
            numbers[name] = pc.if_else(pc.is_nan(values), None, values).cast(pa.float64())
        else:
            try:
                values.validate(full=True)  # Parquet writers don't validate text
            except pa.ArrowInvalid:
                return None
            texts[name] = values.cast(pa.string())
    if numbers:
        table = pa.table(list(numbers.values()), [f"c{at}" for at in range(len(numbers))])
        connection.register("numbers", table)
        written = connection.sql(
            f"SELECT {', '.join(f'c{at}::VARCHAR' for at in range(len(numbers)))} FROM numbers"
        ).to_arrow_table()
        connection.unregister("numbers")
        for (name, values), column in zip(numbers.items(), written.columns, strict=True):
            texts[name] = column.combine_chunks().cast(pa.string())
            size = np.abs(values.fill_null(0).to_numpy(zero_copy_only=False))
            is_plain &= (size == 0) | ((size >= _LEAST_PLAIN) & (size < _MOST_PLAIN))
    return {name: texts[name] for name in batch.schema.names}, is_plain
