"""Measures what a worker uses for one step of one shard, for the shard's footer.

A worker may have several shards in flight. Time in which it is at work on several of them is
divided equally among these, so that all footers together say how long it has worked; time in which
a shard waits for its turn, or for its calls, is not the shard's.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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

# Reading the processor time of many threads takes longer than a change of what they do.
_COARSE_SECONDS = 0.01

Work = Literal["fixed", "rows", "opening"]
"""Work on a shard as a whole, on its rows, or loading models, which a worker does once."""


@dataclass(frozen=True)
class _Reading:
    seconds: float
    cpu_seconds: float
    used: Mapping[str, float]

    @classmethod
    def now(cls) -> _Reading:
        used = usage.unclaimed()
        cpu = time.process_time() + used.get(usage.HELPER_CPU_SECONDS, 0.0)
        return cls(time.monotonic(), cpu, used)


def _no_time() -> dict[Work, float]:
    return {"fixed": 0.0, "rows": 0.0, "opening": 0.0}


@dataclass(eq=False)
class Meter:
    """What one step of one shard has used so far; `WorkTime` adds the time."""

    seconds: dict[Work, float] = field(default_factory=_no_time)
    cpu_seconds: dict[Work, float] = field(default_factory=_no_time)
    account: usage.Account = field(default_factory=lambda: defaultdict(float))
    media_seconds: float = 0.0
    downloaded_bytes: int = 0

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
        seconds = sum(self.seconds.values())
        cpu = sum(self.cpu_seconds.values()) + self.account[usage.HELPER_CPU_SECONDS]
        # A helper process that starts for a row serves many others. Several may start at once.
        starting = min(self.seconds["rows"], self.account[usage.STARTING_SECONDS])
        starting_cpu = min(
            self.cpu_seconds["rows"] + self.account[usage.HELPER_CPU_SECONDS],
            self.account[usage.STARTING_CPU_SECONDS],
        )
        requests = int(self.account[usage.REQUESTS])
        told = self.account[usage.TOLD_TOKENS] or not requests
        tokens = {
            name: int(self.account[name]) if told else None
            for name in (usage.TOKENS_IN, usage.TOKENS_OUT)
        }
        return {
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu, 3),
            "gpu_seconds": round(gpus * seconds, 3),
            "opening_seconds": round(self.seconds["opening"] + starting, 6),
            "opening_cpu_seconds": round(self.cpu_seconds["opening"] + starting_cpu, 6),
            "fixed_seconds": round(self.seconds["fixed"], 6),
            "fixed_cpu_seconds": round(self.cpu_seconds["fixed"], 6),
            "requests": requests,
            **tokens,
            "media_seconds": round(self.media_seconds, 3),
            "downloaded_bytes": self.downloaded_bytes,
        }


class WorkTime:
    """Divides a worker's time, and what no account claims, among the shards it is at work on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own = threading.local()
        self._at: dict[Meter, Counter[Work]] = {}
        self._threads = 0
        self._last = _Reading.now()

    @contextlib.contextmanager
    def on(self, meter: Meter, work: Work) -> Iterator[None]:
        """What this thread does inside is this work; what it did before is continued after."""
        before: tuple[Meter, Work] | None = getattr(self._own, "at", None)
        self._change(before, (meter, work))
        try:
            yield
        finally:
            self._change((meter, work), before)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """This thread waits inside: for a turn, or for calls in other threads."""
        before: tuple[Meter, Work] | None = getattr(self._own, "at", None)
        self._change(before, None)
        try:
            yield
        finally:
            self._change(None, before)

    def reading(self, meter: Meter, gpus: float) -> dict[str, Any]:
        """What a meter measured until now."""
        with self._lock:
            self._settle()
            return meter.reading(gpus)

    def _change(self, old: tuple[Meter, Work] | None, new: tuple[Meter, Work] | None) -> None:
        with self._lock:
            if (
                self._threads <= 1
                or self._threads + (new is not None) - (old is not None) <= 1
                or time.monotonic() - self._last.seconds > _COARSE_SECONDS
            ):
                self._settle()
            self._threads += (new is not None) - (old is not None)
            if old is not None:
                works = self._at[old[0]]
                works[old[1]] -= 1
                if not any(works.values()):
                    del self._at[old[0]]
            if new is not None:
                self._at.setdefault(new[0], Counter())[new[1]] += 1
            self._own.at = new

    def _settle(self) -> None:
        """Gives the time since the last change to what is at work."""
        now, last = _Reading.now(), self._last
        self._last = now
        if not self._at:
            return
        seconds = (now.seconds - last.seconds) / len(self._at)
        cpu = (now.cpu_seconds - last.cpu_seconds) / len(self._at)
        for meter, works in self._at.items():
            threads = works.total()
            for work, count in works.items():
                meter.seconds[work] += seconds * count / threads
                meter.cpu_seconds[work] += cpu * count / threads
        if now.used is not last.used:
            fresh = {
                name: amount - last.used.get(name, 0.0)
                for name, amount in now.used.items()
                if name != usage.HELPER_CPU_SECONDS  # it is processor time
            }
            usage.credit(next(iter(self._at)).account, fresh)


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
