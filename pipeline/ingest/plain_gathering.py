"""Collects plain rows, and gives them source by source, in the order of the sources' first rows.

Published lists mostly have the rows of a video next to one another; then they are read again as
they were stored. Else they are sorted on disk by their source's first row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from clipmill.pipeline.ingest.gathered_rows import SpooledRows
from clipmill.pipeline.ingest.plain_merging import GROUPED
from clipmill.pipeline.ingest.plain_rows import PLAIN_ROWS
from clipmill.pipeline.ingest.sorted_rows import SortedRows, Sorting
from clipmill.pipeline.ingest.text_columns import starts_of

_HEADS = pa.schema([("seq", pa.int64()), ("source_key", pa.string())])
_NOTHING = pa.table({"first": pa.array([], pa.int64())})
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 100_000


class PlainRowsInOrder:
    """Takes `PLAIN_ROWS` by `seq`, then gives them as `GROUPED`, by `first` and `seq`."""

    def __init__(self, scratch: Path) -> None:
        self.rows = 0
        self._scratch = scratch
        self._heads = SpooledRows(scratch / "heads.parquet", _HEADS)
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        self._last_key: str | None = None
        self._file: pa.NativeFile | None = None
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None

    @property
    def _path(self) -> Path:
        return self._scratch / "plain.arrows"

    def append(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        self.rows += rows.num_rows
        self._waiting.append(rows)
        self._waiting_bytes += rows.nbytes
        if self._waiting_bytes > _BATCH_BYTES:
            self._store()

    def _store(self) -> None:
        rows = pa.concat_tables([PLAIN_ROWS.empty_table(), *self._waiting]).combine_chunks()
        self._waiting, self._waiting_bytes = [], 0
        if not rows.num_rows:
            return
        heads = starts_of(rows, "source_key")
        if rows["source_key"][0].as_py() == self._last_key:
            heads = heads[1:]
        self._last_key = rows["source_key"][rows.num_rows - 1].as_py()
        self._heads.append(rows.select(_HEADS.names).take(pa.array(heads)))
        if self._writer is None:
            self._scratch.mkdir(parents=True, exist_ok=True)
            self._file = pa.OSFile(str(self._path), "wb")
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writer = pa.ipc.new_stream(self._file, PLAIN_ROWS, options=options)
        self._writer.write_table(rows)

    def close(self) -> None:
        if self._writer is not None and self._file is not None:
            self._writer.close()
            self._file.close()
            self._writer = self._file = None

    def heads(self, connection: duckdb.DuckDBPyConnection) -> str:
        """The name of a view of the first of each rows that follow one another and share a key."""
        self._store()
        self.close()
        return self._heads.relation(connection, "heads")

    def tables(self, connection: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
        """All rows; the connection has `heads`, and `firsts` with the first row of each key."""
        ((apart,),) = connection.execute(
            "SELECT count(*) FROM heads JOIN firsts USING (source_key) WHERE first <> seq"
        ).fetchall()
        if not apart:
            yield from whole_sources(self._as_stored())
            return
        query = "SELECT seq, first FROM heads JOIN firsts USING (source_key) ORDER BY seq"
        firsts = _Firsts(connection.sql(query).to_arrow_reader(_BATCH_ROWS))
        by_first = Sorting(GROUPED, _keys, _order)
        with contextlib.closing(SortedRows(self._scratch, by_first)) as sorted_rows:
            for rows in self._stored():
                first = firsts.of(rows["seq"].to_numpy())
                sorted_rows.add(rows.append_column(GROUPED.field("first"), pa.array(first)))
            firsts.close()
            self._path.unlink()
            yield from sorted_rows.tables()

    def _stored(self) -> Iterator[pa.Table]:
        with pa.OSFile(str(self._path), "rb") as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])

    def _as_stored(self) -> Iterator[pa.Table]:
        """The rows where those of each source follow one another."""
        key, last = None, 0
        for rows in self._stored():
            seq = rows["seq"].to_numpy()
            starts = starts_of(rows, "source_key")
            begins = seq[starts]
            if rows["source_key"][0].as_py() == key:
                begins[0] = last
            first = np.repeat(begins, np.diff(np.append(starts, len(seq))))
            key, last = rows["source_key"][rows.num_rows - 1].as_py(), int(first[-1])
            yield rows.append_column(GROUPED.field("first"), pa.array(first))


def whole_sources(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, those of each source in one table; sources come by `first`."""
    begun: list[pa.Table] = []
    for rows in tables:
        first = rows["first"].to_numpy()
        cut = int(np.searchsorted(first, first[-1]))
        if begun and (cut or begun[-1]["first"][0].as_py() != first[0]):
            begun.append(rows.slice(0, cut))
            yield pa.concat_tables(begun).combine_chunks()
            begun = []
        elif cut:
            yield rows.slice(0, cut)
        begun.append(rows.slice(cut))
    if begun:
        yield pa.concat_tables(begun).combine_chunks()


def side_by_side(
    plain: Iterator[pa.Table], others: Iterator[pa.Table]
) -> Iterator[tuple[pa.Table, pa.Table, int]]:
    """All rows of the next sources of both, and a number above their `first` and no other's."""
    one, other = next(plain, None), next(others, None)
    while one is not None or other is not None:
        bound = 1 + min(
            table["first"][table.num_rows - 1].as_py()
            for table in (one, other)
            if table is not None
        )
        taken, one = _cut(one, bound, plain)
        also, other = _cut(other, bound, others)
        yield taken, also, bound


def _cut(
    rows: pa.Table | None, bound: int, following: Iterator[pa.Table]
) -> tuple[pa.Table, pa.Table | None]:
    """The rows below a bound, and the others or the following ones."""
    if rows is None:
        return _NOTHING, None
    count = int(np.searchsorted(rows["first"].to_numpy(), bound))
    if count == rows.num_rows:
        return rows, next(following, None)
    return rows.slice(0, count), rows.slice(count)


class _Firsts:
    """The first rows of sources, for rows in order."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self._seq, self._first = (np.array([], np.int64) for _ in range(2))

    def close(self) -> None:
        """Reads what is left: an open result keeps its connection from others."""
        for _ in self._batches:
            pass

    def of(self, seq: np.ndarray) -> np.ndarray:
        while not len(self._seq) or self._seq[-1] < seq[-1]:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._seq, self._first = (
                np.append(there, batch[name].to_numpy())
                for there, name in ((self._seq, "seq"), (self._first, "first"))
            )
        at = np.searchsorted(self._seq, seq, "right") - 1
        found: np.ndarray = self._first[at]
        self._seq, self._first = self._seq[at[-1] :], self._first[at[-1] :]
        return found


def _keys(rows: pa.Table) -> np.ndarray:
    return np.asarray(rows["first"].to_numpy(), np.uint64)


def _order(rows: pa.Table) -> np.ndarray:
    return np.lexsort((rows["seq"].to_numpy(), rows["first"].to_numpy()))
