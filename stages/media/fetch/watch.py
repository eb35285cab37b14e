"""Limits one download attempt, whichever library makes it: time, speed, size.

A library's timeout only limits each single silence, so a server that sends a byte now and then
holds a connection forever. A thread checks what has arrived, and cuts the attempt off at a limit.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.fetch.problems import PassingProblem
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.media.isolation.worker_link import report_alive

_LONGEST_STEP_SECONDS = 1.0

Problem = PassingProblem | RowFailed


@dataclass(frozen=True)
class DownloadLimits:
    """Limits for one download; None means no limit.

    `allowed` are the only private addresses that may be connected to; None allows all of them.
    """

    max_bytes: int | None = None
    min_bytes_per_second: int | None = None
    window_seconds: float = 60.0
    max_seconds: float | None = None
    allowed: frozenset[tuple[str, int]] | None = None


@dataclass(frozen=True)
class BytesSoFar:
    """Bytes received so far: in total, and of the largest file."""

    in_all: int
    largest: int


def files_of(folder: Path) -> BytesSoFar:
    """The files in a folder that someone else is writing to."""
    sizes = [0]
    for file in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            sizes.append(file.stat().st_size)
    return BytesSoFar(sum(sizes), max(sizes))


class Stopwatch:
    """The time that a download takes, over all its attempts, without our own pauses."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._pauses = 0
        self._since = time.monotonic()
        self._seconds = seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock; several threads may be inside at once."""
        with self._lock:
            if not self._pauses:
                self._seconds += time.monotonic() - self._since
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                self._since = time.monotonic()

    @property
    def is_paused(self) -> bool:
        return self._pauses > 0

    @property
    def seconds(self) -> float:
        with self._lock:
            return self._seconds + (0.0 if self._pauses else time.monotonic() - self._since)

    @property
    def seconds_since_pause(self) -> float:
        return time.monotonic() - self._since


class Watch:
    """Watches one attempt, as a context manager; `check` then says what was wrong.

    `cut_off` is called once, in another thread, with the limit that was exceeded.
    """

    def __init__(
        self,
        limits: DownloadLimits,
        measure: Callable[[], BytesSoFar],
        stopwatch: Stopwatch,
        cut_off: Callable[[Problem], None],
    ) -> None:
        self._limits = limits
        self._measure = measure
        self._stopwatch = stopwatch
        self._cut_off = cut_off
        self._done = threading.Event()
        self._problem: Problem | None = None
        self.is_receiving: Callable[[], bool] = lambda: True
        """Whether the attempt is waiting for the network; checked before it is called slow."""

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def check(self, error: Exception | None = None) -> None:
        """Raises the reason why the attempt was cut off, instead of the resulting `error`."""
        if self._problem is not None:
            raise self._problem from error
        # Data that arrived between two checks.
        if error is None and (problem := self._too_large(self._measure())) is not None:
            raise problem

    def _look(self) -> None:
        """Enforces the limits, in a thread."""
        limits = self._limits
        step = min(_LONGEST_STEP_SECONDS, limits.window_seconds / 4)
        # Seconds in which this process ran: a stopped process, or one on a suspended machine,
        # receives nothing meanwhile, whatever was sent.
        watched, looked_at = 0.0, time.monotonic()
        history: deque[tuple[float, int]] = deque()
        while not self._done.wait(step):
            progress, now = self._measure(), time.monotonic()
            watched += min(now - looked_at, 2 * step)
            looked_at = now
            report_alive()
            if self._stopwatch.is_paused or not history or history[-1][1] != progress.in_all:
                beat()
            history.append((watched, progress.in_all))
            while len(history) > 1 and watched - history[1][0] >= limits.window_seconds:
                history.popleft()
            problem = self._too_large(progress) or self._too_long() or self._too_slow(history)
            if problem is not None:
                self._problem = problem
                self._cut_off(problem)
                return

    def _too_large(self, progress: BytesSoFar) -> RowFailed | None:
        most = self._limits.max_bytes
        return too_large(most) if most is not None and progress.largest > most else None

    def _too_long(self) -> RowFailed | None:
        most = self._limits.max_seconds
        if most is None or self._stopwatch.is_paused or self._stopwatch.seconds < most:
            return None
        return RowFailed(
            "transient", f"not done after {most:g} s, download_videos.max_download_seconds"
        )

    def _too_slow(self, history: deque[tuple[float, int]]) -> PassingProblem | None:
        limits = self._limits
        if limits.min_bytes_per_second is None or self._stopwatch.is_paused:
            return None
        watched, received = history[-1]
        asked_for = min(self._stopwatch.seconds_since_pause, watched - history[0][0])
        # Files grow and vanish while they are merged: any change is a sign of progress.
        came = abs(received - history[0][1])
        if (
            asked_for < limits.window_seconds * 0.99
            or came >= limits.min_bytes_per_second * asked_for
            or not self.is_receiving()
        ):
            return None
        return PassingProblem(
            f"{came} bytes in {asked_for:.0f} s, after {received} bytes: slower "
            "than download_videos.min_bytes_per_second"
        )


def too_large(max_bytes: int) -> RowFailed:
    return RowFailed("permanent", f"larger than {max_bytes} bytes, download_videos.max_bytes")
