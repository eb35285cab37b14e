"""Progress on standard error: bars on a terminal, otherwise an occasional line."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clipmill.pipeline.engine.standstill import Seen
from clipmill.schemas.words import plain_time

REFRESH_PER_SECOND = 4
_MOST_BAR_COLUMNS = 40
_LEAST_BAR_COLUMNS = 4
_MOST_WORKERS = 8
_LINES_AROUND = 3
# Shorter pauses are normal: stages report once per batch.
_STILL_SECONDS = 30.0
_NO_FIGURE = "–"
_FIRST_TO_GO = ("video", "rate", "skipped", "rejected", "left")


@dataclass
class _Stage:
    """The state of one stage; `shards` and `step_shards` are those to be done."""

    shards: int
    step_shards: int
    counts: Counter[Any] = field(default_factory=Counter)
    began: float | None = None
    last: float = 0.0

    @property
    def rows(self) -> int:
        return sum(self.counts[name] for name in ("kept", "rejected", "failed", "skipped"))

    @property
    def done(self) -> float:
        """From 0 to 1; every step of a shard has the same weight."""
        if self.counts["shards"] >= self.shards:
            return 1.0
        # If a shard is run again, its rows are reported twice.
        return min(self.counts["share"] / self.step_shards, 1.0) if self.step_shards else 1.0

    def shown_rows(self) -> str:
        """`12/40`, or `12/~40` while some shards' numbers of rows are unknown."""
        begun = min(self.counts["begun"], self.shards)
        if not self.shards:
            return _NO_FIGURE
        if not begun:
            return f"{self.rows:,}/?"
        whole = max(self.rows, round(self.counts["inputs"] / self.counts["begun"] * self.shards))
        return f"{self.rows:,}/{'' if begun == self.shards else '~'}{whole:,}"

    def shown_hours(self) -> str:
        seconds = self.counts["seconds"]
        hours = seconds / 3600
        if hours < 0.1:
            return plain_time(seconds) if seconds else _NO_FIGURE
        return f"{hours:,.1f} h" if hours >= 10 else f"{hours:.2f} h"

    def shown_rate(self) -> str:
        # The first report comes with the first batch, so there is no rate before the second.
        spent = self.last - self.began if self.began is not None else 0.0
        if spent < 0.1 or not self.rows:
            return _NO_FIGURE
        rate = self.rows / spent
        return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.2g}/s"

    def shown_left(self, now: float) -> str:
        done = self.done
        if done >= 1 or self.began is None or not done:
            return _NO_FIGURE
        return _clock((now - self.began) * (1 - done) / done)


class TerminalProgress:
    """Bars with rows, hours of video, rate and time left by stage, and what each worker is at.

    In a pipe or a file, the same information is printed every `line_seconds`; 0 for never.
    """

    def __init__(
        self,
        todo: Mapping[str, Sequence[int]],
        *,
        line_seconds: float = 30.0,
        console: Console | None = None,
    ) -> None:
        """`todo` maps each stage, in order, to its steps' numbers of pending shards."""
        self._stages = {label: _Stage(steps[-1], sum(steps)) for label, steps in todo.items()}
        self._workers: Sequence[Seen] = ()
        self._lock = threading.Lock()
        self._began = self._moved = time.monotonic()
        # A separate handle to the terminal: the Ray engine filters everything else on stderr.
        self._console = console or Console(file=os.fdopen(os.dup(2), "w"), highlight=False)
        self._live = Live(
            get_renderable=self._screen,
            console=self._console,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
        )
        self._line_seconds = line_seconds
        self._leaving = threading.Event()

    def __enter__(self) -> TerminalProgress:
        if self._console.is_terminal:
            self._live.start()
        elif self._line_seconds:
            threading.Thread(target=self._say_lines, name="progress", daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        self._leaving.set()
        if self._console.is_terminal:
            self._live.stop()

    def report(self, label: str, counts: Counter[Any]) -> None:
        """Called by the runner, from any thread."""
        now = time.monotonic()
        with self._lock:
            stage = self._stages.setdefault(label, _Stage(0, 0))
            stage.began = stage.began if stage.began is not None else now
            stage.counts.update(counts)
            stage.last = self._moved = now

    def show(self, workers: Sequence[Seen]) -> None:
        """What all workers are doing."""
        with self._lock:
            self._workers = workers
            if workers:
                still = min(worker.still_seconds for worker in workers)
                self._moved = max(self._moved, time.monotonic() - still)

    def say(self, message: str) -> None:
        """Prints a permanent line above the bars."""
        self._console.print(message, markup=False, soft_wrap=not self._console.is_terminal)

    def _say_lines(self) -> None:
        while not self._leaving.wait(self._line_seconds):
            self.say(self.line())

    def line(self) -> str:
        """Everything on one line."""
        now = time.monotonic()
        with self._lock:
            stages = [
                f"{label} {stage.shown_rows()} rows ({100 * stage.done:.0f}%), "
                f"{stage.shown_hours()}, {stage.shown_rate()}, {stage.shown_left(now)} left, "
                f"{stage.counts['rejected']} rejected, {stage.counts['failed']} failed"
                + (f", {skipped} skipped" if (skipped := stage.counts["skipped"]) else "")
                for label, stage in self._stages.items()
                if stage.began is not None
            ]
            workers = [
                f"{worker.step} {worker.describe()}"
                for worker in _worst_first(self._workers)[:_MOST_WORKERS]
            ]
            parts = [*(stages or ["no rows done yet"]), *workers, self._still(now)]
        return f"[{_clock(now - self._began)}] " + " | ".join(filter(None, parts))

    def _screen(self) -> RenderableType:
        now = time.monotonic()
        with self._lock:
            room = max(
                1, min(_MOST_WORKERS, self._console.height - len(self._stages) - _LINES_AROUND)
            )
            workers = _worst_first(self._workers)
            lines = [
                Text(
                    f"{worker.step} {worker.describe()}",
                    no_wrap=True,
                    overflow="ellipsis",
                    style="bold red" if worker.is_standing else "dim",
                )
                for worker in workers[:room]
            ]
            if len(workers) > room:
                lines.append(Text(f"and {len(workers) - room} more workers", style="dim"))
            below = [f"{_clock(now - self._began)} so far", self._still(now)]
            return Group(self._bars(now), *lines, Text(" ".join(filter(None, below))))

    def _bars(self, now: float) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        # Only runs with gates, or with a choice, skip rows.
        skips = any(stage.counts["skipped"] for stage in self._stages.values())
        rows = {
            label: {
                "rows": stage.shown_rows(),
                "video": stage.shown_hours(),
                "rate": stage.shown_rate(),
                "left": stage.shown_left(now),
                "rejected": f"{stage.counts['rejected']:,}",
                "failed": f"{stage.counts['failed']:,}",
                **({"skipped": f"{stage.counts['skipped']:,}"} if skips else {}),
            }
            for label, stage in self._stages.items()
        }
        names = self._fitting(rows)
        table.add_column("stage", no_wrap=True)
        table.add_column("", ratio=1, max_width=_MOST_BAR_COLUMNS)
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for label, stage in self._stages.items():
            style = "red" if stage.counts["failed"] else ""
            table.add_row(
                label,
                ProgressBar(total=1.0, completed=stage.done),
                *(Text(rows[label][name], style if name == "failed" else "") for name in names),
            )
        return table

    def _fitting(self, rows: Mapping[str, Mapping[str, str]]) -> list[str]:
        """The columns for which the terminal has room; numbers are never truncated."""
        widths = {
            name: max(len(name), *(len(row[name]) for row in rows.values())) + 1
            for name in next(iter(rows.values()), {})
        }
        room = self._console.width - max(map(len, rows), default=0) - 1 - _LEAST_BAR_COLUMNS
        for name in _FIRST_TO_GO:
            if sum(widths.values()) <= room:
                break
            widths.pop(name, None)
        return list(widths)

    def _still(self, now: float) -> str:
        still = now - self._moved
        return f"no progress for {plain_time(still)}" if still >= _STILL_SECONDS else ""


def _worst_first(workers: Sequence[Seen]) -> list[Seen]:
    return sorted(workers, key=lambda worker: (not worker.is_standing, -worker.still_seconds))


def _clock(seconds: float) -> str:
    """`0:01:05`"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


@contextmanager
def saying(first: str = "starting") -> Iterator[Callable[[str], None]]:
    """Shows a status message on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda said: None
        return
    with Console(stderr=True).status(escape(first)) as status:
        yield status.update
