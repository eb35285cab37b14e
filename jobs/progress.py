"""Progress on standard error while a run goes on; silent where that is no terminal."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

REFRESH_PER_SECOND = 4


class Progress:
    """Per stage: shards done, rows done, rows a second since its first row, failures so far."""

    def __init__(self, todo: dict[str, int], console: Console | None = None) -> None:
        """`todo` gives the shards that each stage has still to do, in order."""
        self._todo = todo
        self._counts = {label: Counter() for label in todo}
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()
        # A door of its own to the terminal: the Ray engine filters what else goes to stderr.
        self._console = console or Console(file=os.fdopen(os.dup(2), "w"))
        self._live = Live(get_renderable=self._table, console=self._console,
                          refresh_per_second=REFRESH_PER_SECOND, transient=True)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def report(self, label: str, counts: Counter) -> None:
        """What the runner calls, from any thread."""
        now = time.monotonic()
        with self._lock:
            self._first.setdefault(label, now)
            self._last[label] = now
            self._counts.setdefault(label, Counter()).update(counts)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("stage", "shards", "rows", "rows/s", "rejected", "failed"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        with self._lock:
            for label, counts in self._counts.items():
                rows = counts["kept"] + counts["rejected"] + counts["failed"]
                spent = self._last.get(label, 0) - self._first.get(label, 0)
                # The first report comes with the first batch: there is no rate before the second.
                speed = f"{rows / spent:.1f}" if spent > 0 and rows else "–"
                failed = f"[red]{counts['failed']}[/red]" if counts["failed"] else "0"
                total = self._todo.get(label, 0)
                table.add_row(label, f"{min(counts['shards'], total)}/{total}", str(rows), speed,
                              str(counts["rejected"]), failed)
        table.caption = f"{time.monotonic() - self._started:.0f} s"
        table.caption_justify = "left"
        return table


@contextmanager
def saying() -> Iterator[Callable[[str], None]]:
    """What is being done, on standard error while that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda said: None
        return
    with Console(stderr=True).status("starting") as status:
        yield status.update
