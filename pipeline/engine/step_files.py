"""Writes the files of one step's shard, which appear together."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa

from clipmill.pipeline.dataset.commit_fence import Fence
from clipmill.pipeline.dataset.shards import ShardMetadata, ShardWriter, shard_path
from clipmill.pipeline.recipes.plan import PlannedStep


class StepFiles:
    """The files of one step's shard, which appear together: the step's own table is the marker.

    The first writer to commit a shard wins. The files of a second one (the worker of a killed run
    may survive for a while) are all dropped: tables of two writers might not match.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        step: PlannedStep,
        dataset: Path,
        shard: str,
        fence: Fence,
    ) -> None:
        self._label = step.label
        self._fence = fence
        schemas = {**step.stage.more_tables, step.label: step.stage.table_schema}
        fence.check()
        self._writers: dict[str, ShardWriter] = {}
        for table, schema in schemas.items():
            folder = step.folder(dataset, table)
            folder.mkdir(parents=True, exist_ok=True)
            # Temporary files there may belong to another active writer; those of killed ones are
            # removed at the run's end.
            writer = ShardWriter(shard_path(folder, shard), schema, clean=False)
            stack.callback(writer.discard)
            self._writers[table] = writer

    def write(self, tables: dict[str, pa.Table]) -> None:
        for name, table in tables.items():
            self._writers[name].write(table)

    @property
    def size_bytes(self) -> int:
        """The size of what was written so far."""
        return sum(writer.size_bytes for writer in self._writers.values())

    def finish(self, metadata: ShardMetadata) -> None:
        marker = self._writers[self._label]
        further = [writer for name, writer in self._writers.items() if name != self._label]
        for writer in further:
            writer.seal()
        marker.seal(metadata)
        with self._fence.held():
            if marker.path.exists():
                return
            for writer in further:
                writer.show()
            marker.show()
