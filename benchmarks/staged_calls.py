"""Calls a stage as the runner does, and takes the time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from clipmill.stages.protocol import Stage, Workspace


@contextlib.contextmanager
def in_calls(stage: Stage) -> Iterator[Callable[[pa.Table], pa.Table]]:
    """The stage as the runner calls it: batch by batch, several at a time."""
    with (
        stage.open(Workspace(Path(), Path())) as transform,
        ThreadPoolExecutor(stage.calls_at_once) as pool,
    ):

        def run(table: pa.Table) -> pa.Table:
            size = stage.rows_at_once
            batches = [table.slice(start, size) for start in range(0, table.num_rows, size)]
            if stage.calls_at_once == 1:
                return pa.concat_tables([transform(batch) for batch in batches])
            return pa.concat_tables(list(pool.map(transform, batches)))

        yield run


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
