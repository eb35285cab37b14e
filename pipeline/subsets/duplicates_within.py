"""Finds near-duplicates within groups of candidates by a step's embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipmill.pipeline.dataset.shards import base_shard, retry_number
from clipmill.pipeline.subsets.compared_clips import compared_clips, shard_marks
from clipmill.pipeline.subsets.near_within import NewClips, near_within
from clipmill.schemas.step_tables import StepTable, kept


@dataclass(frozen=True)
class DuplicatesWithin:
    """Compares clips of one group by a step's embeddings; `shards` are those to read.

    `groups` is the expression that makes the groups; clips in none are not compared.
    """

    connection: Any
    dataset: Path
    step: StepTable
    shards: Sequence[str]
    groups: str
    min_cosine: float
    scratch: Path

    def gone(self, candidates: str) -> np.ndarray:
        """Ranks to remove of the rows of a query for `rank`, `clip_id` and `grp`."""
        if self.step.folder is None:
            return np.empty(0, np.int64)
        # Two sources may have led to one video, and so to its clips in two shards: the first
        # counts.
        self.connection.execute(
            "CREATE OR REPLACE TABLE work.grouped AS SELECT rank, clip_id, "
            "CAST(grp AS VARCHAR) AS grp, _base, _retry FROM "
            f"({candidates}) JOIN (SELECT clip_id, min(_base) AS _base, "
            f"arg_min(_retry, _base) AS _retry FROM ({kept(self.step, ['clip_id'])}) "
            "GROUP BY clip_id) USING (clip_id) WHERE grp IS NOT NULL"
        )
        fingerprint = Path(self.step.folder).name
        with compared_clips(
            self.dataset, self.step.step, fingerprint, self.groups, self.min_cosine, self.scratch
        ) as compared:
            return near_within(
                self.connection,
                compared,
                NewClips(self._rows, self._marks),
                min_cosine=self.min_cosine,
                scratch=self.scratch,
            )

    def _fresh_shards(self) -> list[str]:
        """The shards with clips that were not compared."""
        rows = self.connection.execute("SELECT DISTINCT _base FROM work.fresh").fetchall()
        bases = {base for (base,) in rows}
        return [shard for shard in self.shards if int(base_shard(shard)) in bases]

    def _marks(self) -> dict[str, list[int]]:
        assert self.step.folder is not None
        return shard_marks(Path(self.step.folder), self._fresh_shards())

    def _rows(self) -> pa.RecordBatchReader:
        names = self._fresh_shards()
        table = replace(self.step, shards=tuple(names), retries=tuple(filter(retry_number, names)))
        # A separate cursor: a result that is being read blocks its connection.
        return (
            self.connection.cursor()
            .sql(
                f"SELECT f.rank, k.embeddings FROM ({kept(table, ['clip_id', 'embeddings'])}) AS k "
                "JOIN work.fresh AS f ON f.clip_id = k.clip_id AND f._base = k._base "
                "WHERE k.embeddings IS NOT NULL"
            )
            .to_arrow_reader(4096)
        )
