"""One thread that calls functions when their time has come, and reports progress for others."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clipmill.stages.media.isolation.progress import beat

_BEAT_SECONDS = 1.0


class Alarm:
    """Calls functions when their time has come, all from one thread.

    It also reports the progress of threads that wait for something whose time is limited.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, list[Callable[[], None]]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._waiting: set[int] = set()
        self._is_closed = False
        threading.Thread(target=self._run, name="alarm", daemon=True).start()

    @contextmanager
    def after(self, seconds: float, call: Callable[[], None]) -> Iterator[None]:
        """Calls a function if the block takes longer than this; not after the block's end."""
        entry = [call]
        with self._changed:
            due = time.monotonic() + seconds
            heapq.heappush(self._due, (due, next(self._numbers), entry))
            if self._due[0][2] is entry:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                entry.clear()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Reports the calling thread's progress once a second while it is in the block."""
        own = threading.get_ident()
        with self._changed:
            self._waiting.add(own)
            if len(self._waiting) == 1:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._waiting.discard(own)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        beaten = 0.0
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                # Entries of blocks that have ended are dropped when they come first.
                while self._due and (not self._due[0][2] or self._due[0][0] <= now):
                    for call in heapq.heappop(self._due)[2]:
                        call()
                if self._waiting and now - beaten >= _BEAT_SECONDS:
                    beaten = now
                    for thread in self._waiting:
                        beat(thread=thread)
                left = [self._due[0][0] - now] if self._due else []
                left += [beaten + _BEAT_SECONDS - now] if self._waiting else []
                self._changed.wait(max(0.0, min(left)) if left else None)
