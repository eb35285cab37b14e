"""Reads what shards' footers say about work: rows, time and what else was used."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipmill.pipeline.dataset.run_records import RunRecord, run_records
from clipmill.pipeline.dataset.shards import ShardMetadata, base_shard, committed_shards, shard_path
from clipmill.pipeline.engine.metering import REPORTED

_MOST_RECORDS = 50
AMOUNTS = (*REPORTED, "media_seconds")
"""What work uses beside a worker's time, and what it works on, as footers call it."""


@dataclass
class Footers:
    """The footers of a dataset, each read once. `most_groups` bounds how many are read per step.

    The groups that are read are the same random ones for every step, as far as they have got.
    """

    dataset: Path
    most_groups: int = 400
    _committed: dict[str, frozenset[str]] = field(default_factory=dict)
    _read: dict[tuple[str, str], ShardMetadata] = field(default_factory=dict)

    @functools.cached_property
    def records(self) -> list[RunRecord]:
        """The newest runs, newest first."""
        return run_records(self.dataset)[: -1 - _MOST_RECORDS : -1]

    def committed(self, place: str) -> frozenset[str]:
        """The shards in a step's folder, whose path in the dataset is `place`."""
        if place not in self._committed:
            self._committed[place] = frozenset(committed_shards(self.dataset / place))
        return self._committed[place]

    def of(self, place: str, shard: str) -> ShardMetadata:
        if (place, shard) not in self._read:
            path = shard_path(self.dataset / place, shard)
            self._read[place, shard] = ShardMetadata.read(path)
        return self._read[place, shard]

    def sampled(self, place: str) -> list[str]:
        """The shards of a step that stand for all of them: whole groups of a shard and retries."""
        return sampled_groups(self.committed(place), self.most_groups)

    def outputs(self, place: str, shards: Sequence[str]) -> float:
        """How many rows these committed shards have kept; from a sample if they are many."""
        some = sampled_groups(shards, self.most_groups)
        if not some:
            return 0.0
        return sum(self.of(place, shard).outputs for shard in some) * len(shards) / len(some)


def sampled_groups(shards: Iterable[str], most: int) -> list[str]:
    """The shards of at most `most` groups, drawn at random but always the same ones."""
    by_group: dict[str, list[str]] = {}
    for shard in shards:
        by_group.setdefault(base_shard(shard), []).append(shard)
    chosen = sorted(by_group, key=lambda base: hashlib.sha256(base.encode()).digest())[:most]
    return sorted(shard for base in chosen for shard in by_group[base])
