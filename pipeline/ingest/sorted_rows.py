"""Sorts published rows by video and time, on disk where they are many.

Rows are sorted in runs of a few hundred thousand, each of which is stored in small batches. Sorting
the batches by their first rows gives the order in which to read them again, those of all runs next
to one another: rows below the first row of the next batch are complete. So memory depends on the
size of a run and not on the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from clipmill.pipeline.ingest.internvid import ROWS
from clipmill.pipeline.ingest.text_columns import id_keys
from clipmill.schemas.errors import ClipmillError

_RUN_ROWS = 400_000
_RUN_BYTES = 96 << 20
_STEP_ROWS = 64_000
_FEWEST_ROWS = 256
_MOST_MILLISECONDS = (1 << 40) - 1


@dataclass(frozen=True)
class _Batch:
    """Rows of a run, in memory or at a place of the file; `first` is the key of the first."""

    first: int
    rows: pa.Table | None
    at: int = 0
    size: int = 0


@dataclass(frozen=True)
class Sorting:
    """What rows are sorted by: numbers that runs are sorted by, and the whole order of a few."""

    schema: pa.Schema
    keys: Callable[[pa.Table], np.ndarray]
    order: Callable[[pa.Table], np.ndarray]


class SortedRows:
    """Takes tables of rows, then gives them in order: good ones of `ROWS` unless said otherwise."""

    def __init__(self, scratch: Path, sorting: Sorting | None = None) -> None:
        self._path = scratch / "sorted"
        self._sorting = sorting or Sorting(ROWS, _keys, _order)
        self._file: BinaryIO | None = None
        self._waiting: list[pa.Table] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._runs = 0
        self._batches: list[_Batch] = []

    def add(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        self._waiting_rows += rows.num_rows
        self._waiting_bytes += rows.nbytes
        if self._waiting_rows >= _RUN_ROWS or self._waiting_bytes >= _RUN_BYTES:
            self._store()

    def tables(self) -> Iterator[pa.Table]:
        """All rows, by id, start, end, file and row if they are of `ROWS`; none is added later."""
        batches = self._batches
        for keys, rows in self._run():
            batches.append(_Batch(int(keys[0]), rows))
        batches.sort(key=lambda batch: batch.first)
        held: list[tuple[np.ndarray, pa.Table]] = []
        at = 0
        while at < len(batches) or held:
            loaded = 0
            while at < len(batches) and loaded < _STEP_ROWS:
                rows = self._load(batches[at])
                held.append((self._sorting.keys(rows), rows))
                loaded += rows.num_rows
                at += 1
            ready, held = _below(held, batches[at].first if at < len(batches) else None)
            if ready:
                rows = pa.concat_tables(ready).combine_chunks()
                yield rows.take(pa.array(self._sorting.order(rows)))
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _run(self) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """The waiting rows, sorted by their keys, in batches.

        Each run's batches are smaller than the last one's: one batch per run is held at a time,
        and the sum over all runs hardly grows.
        """
        if not self._waiting_rows:
            return
        self._runs += 1
        rows = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0
        keys = self._sorting.keys(rows)
        order = np.argsort(keys)
        rows, keys = rows.take(pa.array(order)), keys[order]
        size = max(_FEWEST_ROWS, _STEP_ROWS // self._runs)
        for at in range(0, rows.num_rows, size):
            yield keys[at:], rows.slice(at, size)

    def _store(self) -> None:
        try:
            if self._file is None:
                self._file = open(self._path, "w+b")  # noqa: SIM115  `close` closes it
            for keys, rows in self._run():
                [batch] = rows.to_batches()
                data = batch.serialize()
                place = self._file.tell()
                self._file.write(data)
                self._batches.append(_Batch(int(keys[0]), None, place, data.size))
        except OSError as error:
            raise ClipmillError(f"the rows could not be sorted: {error}") from error

    def _load(self, batch: _Batch) -> pa.Table:
        if batch.rows is not None:
            return batch.rows
        assert self._file is not None
        try:
            self._file.seek(batch.at)
            data = self._file.read(batch.size)
        except OSError as error:
            raise ClipmillError(f"the rows could not be sorted: {error}") from error
        return pa.Table.from_batches(
            [pa.ipc.read_record_batch(pa.py_buffer(data), self._sorting.schema)]
        )


def _below(
    held: list[tuple[np.ndarray, pa.Table]], bound: int | None
) -> tuple[list[pa.Table], list[tuple[np.ndarray, pa.Table]]]:
    """The rows whose keys are below a bound, and the others."""
    if bound is None:
        return [rows for _, rows in held], []
    ready, others = [], []
    for keys, rows in held:
        count = int(np.searchsorted(keys, np.uint64(bound)))
        if count:
            ready.append(rows.slice(0, count))
        if count < len(keys):
            others.append((keys[count:], rows.slice(count)))
    return ready, others


def _keys(rows: pa.Table) -> np.ndarray:
    return id_keys(rows["id"].combine_chunks())[0]


def _order(rows: pa.Table) -> np.ndarray:
    """The order of rows by id, start, end, file and row."""
    keys, last_bits = id_keys(rows["id"].combine_chunks())
    start, end, file, row = (
        rows[name].combine_chunks().to_numpy(zero_copy_only=False)
        for name in ("start_seconds", "end_seconds", "file", "row")
    )
    if len(keys) >= 1 << 21:
        return np.lexsort((row, file, end, start, last_bits, keys))
    # One number for the video and the start's milliseconds: few rows share it.
    by_key = np.argsort(keys)
    begins = np.diff(keys[by_key], prepend=keys[by_key[:1]]) != 0
    rank = np.empty(len(keys), np.uint64)
    rank[by_key] = np.cumsum(begins)
    milliseconds = np.minimum(start * 1000, _MOST_MILLISECONDS).astype(np.uint64)
    number = (rank << np.uint64(2) | last_bits) << np.uint64(40) | milliseconds
    order = np.argsort(number)
    same = np.diff(number[order]) == 0
    shared = np.append(same, False) | np.append(False, same)
    if shared.any():
        few = order[shared]
        again = np.lexsort((row[few], file[few], end[few], start[few], number[few]))
        order[shared] = few[again]
    return order
