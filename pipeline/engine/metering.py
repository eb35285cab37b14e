"""Measures what a worker uses for one step of one shard, for the shard's footer."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.pipeline.dataset.shards import ShardMetadata
from clipmill.pipeline.engine.step_inputs import kept_rows
from clipmill.schemas.ids import clip_seconds
from clipmill.stages import usage

REPORTED = (
    "cpu_seconds",
    "gpu_seconds",
    "requests",
    "tokens_in",
    "tokens_out",
    "downloaded_bytes",
    "written_bytes",
)
"""The parts of a footer that a worker also reports, so that a run knows what it has spent."""


@dataclass(frozen=True)
class _Reading:
    seconds: float
    cpu_seconds: float
    used: Counter[Any]

    @classmethod
    def now(cls) -> _Reading:
        used = usage.used()
        cpu = time.process_time() + used[usage.HELPER_CPU_SECONDS]
        return cls(time.monotonic(), cpu, used)


@dataclass
class Meter:
    """What one step of one shard uses, from when the meter is made."""

    began: _Reading = field(default_factory=_Reading.now)
    opening_seconds: float = 0.0
    opening_cpu_seconds: float = 0.0
    rows_began: _Reading | None = None
    row_seconds: float = 0.0
    row_cpu_seconds: float = 0.0
    media_seconds: float = 0.0
    downloaded_bytes: int = 0

    def begin_rows(self) -> None:
        """From here on, time is spent on rows; before, on the shard as a whole."""
        self.rows_began = _Reading.now()

    def end_rows(self) -> None:
        assert self.rows_began is not None
        now = _Reading.now()
        self.row_seconds = now.seconds - self.rows_began.seconds
        self.row_cpu_seconds = now.cpu_seconds - self.rows_began.cpu_seconds
        # A helper process that starts for a row serves many others. Several may start at once.
        starting = now.used - self.rows_began.used
        seconds = min(self.row_seconds, starting[usage.STARTING_SECONDS])
        cpu_seconds = min(self.row_cpu_seconds, starting[usage.STARTING_CPU_SECONDS])
        self.row_seconds -= seconds
        self.row_cpu_seconds -= cpu_seconds
        self.opening_seconds += seconds
        self.opening_cpu_seconds += cpu_seconds

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Counts what happens inside as the loading of models, which a worker does once."""
        before = _Reading.now()
        try:
            yield
        finally:
            after = _Reading.now()
            self.opening_seconds += after.seconds - before.seconds
            self.opening_cpu_seconds += after.cpu_seconds - before.cpu_seconds

    def add(self, table: pa.Table) -> None:
        """Counts the kept rows of a batch."""
        self.media_seconds += seconds_of_video(table)
        kept = kept_rows(table)
        if {"size_bytes", "path"} <= set(kept.column_names):
            # A path in the dataset is relative: the file was fetched, not found on disk.
            sizes = zip(kept["path"].to_pylist(), kept["size_bytes"].to_pylist(), strict=True)
            self.downloaded_bytes += sum(
                size or 0 for path, size in sizes if path and not path.startswith("/")
            )

    def reading(self, gpus: float) -> dict[str, Any]:
        """The measured part of a footer, by field."""
        now = _Reading.now()
        seconds = now.seconds - self.began.seconds
        cpu = now.cpu_seconds - self.began.cpu_seconds
        requests = int(now.used[usage.REQUESTS] - self.began.used[usage.REQUESTS])
        told = now.used[usage.TOLD_TOKENS] > self.began.used[usage.TOLD_TOKENS] or not requests
        tokens = {
            name: int(now.used[name] - self.began.used[name]) if told else None
            for name in (usage.TOKENS_IN, usage.TOKENS_OUT)
        }
        return {
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu, 3),
            "gpu_seconds": round(gpus * seconds, 3),
            "opening_seconds": round(self.opening_seconds, 6),
            "opening_cpu_seconds": round(self.opening_cpu_seconds, 6),
            "fixed_seconds": round(seconds - self.row_seconds - self.opening_seconds, 6),
            "fixed_cpu_seconds": round(cpu - self.row_cpu_seconds - self.opening_cpu_seconds, 6),
            "requests": requests,
            **tokens,
            "media_seconds": round(self.media_seconds, 3),
            "downloaded_bytes": self.downloaded_bytes,
        }


def reported(metadata: ShardMetadata) -> Counter[Any]:
    """What a worker reports of a committed footer."""
    return Counter({name: getattr(metadata, name) or 0 for name in REPORTED})


def seconds_of_video(table: pa.Table) -> float:
    """The total length of the kept videos or clips, if the table or their ids tell it."""
    rows = kept_rows(table)
    if "duration_seconds" in rows.column_names:
        return pc.sum(rows["duration_seconds"]).as_py() or 0.0
    if "clip_id" in rows.column_names:
        return sum(clip_seconds(key) for key in rows["clip_id"].to_pylist())
    return 0.0


def total(table: pa.Table, column: str) -> int:
    """The sum of a column; 0 if the table lacks it."""
    if column not in table.column_names:
        return 0
    return sum(value or 0 for value in table[column].to_pylist())
