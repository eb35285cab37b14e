"""Whose turn it is to ask a model's servers, and whether they answer at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Health:
    """Whether the servers answer at all, and whose turn it is to find out."""

    def __init__(self, unanswered_until_down: int) -> None:
        self.unanswered = 0
        self._until_down = unanswered_until_down
        self._changed = threading.Condition()
        self._is_trying = False
        self._tried = 0.0  # when the last try ended
        self._is_closed = False

    def is_down(self) -> bool:
        return self.unanswered >= self._until_down

    def went(self, well: bool) -> None:
        """Notes how a request ended."""
        with self._changed:
            self.unanswered = 0 if well else self.unanswered + 1
            if self._is_trying or well:
                self._is_trying = False
                self._tried = time.monotonic()
                self._changed.notify_all()

    def may_ask(self, submitted: float, pause_seconds: float) -> bool:
        """Whether a request may be sent though the servers were down.

        The first one waits and is sent as a trial; the others wait for how that goes. False for
        those that had been submitted before a trial failed.
        """
        with self._changed:
            while self.is_down() and not self._is_closed:
                if self._tried > submitted:
                    return False
                if not self._is_trying:
                    self._is_trying = True
                    self._changed.wait_for(lambda: self._is_closed, pause_seconds)
                    return not self._is_closed
                self._changed.wait()
            return not self._is_closed

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class Turns:
    """Turns to send a request: at most `limit` at a time, or one alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._for_many, self._for_one = (threading.Condition(self._lock) for _ in range(2))
        self._together = 0
        self._waiting = 0  # to be alone
        self._is_taken = False
        self._is_closed = False

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """Waits for it; after `close`, nobody waits."""
        with self._lock:
            if alone:
                self._waiting += 1
                self._for_one.wait_for(lambda: self._is_closed or self._is_nobody_in())
                self._waiting -= 1
                self._is_taken = True
            else:
                self._for_many.wait_for(lambda: self._is_closed or self._has_room())
                self._together += 1
        try:
            yield
        finally:
            with self._lock:
                if alone:
                    self._is_taken = False
                    self._for_many.notify_all()
                else:
                    self._together -= 1
                    self._for_many.notify()
                if self._is_nobody_in():
                    self._for_one.notify()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._for_many.notify_all()
            self._for_one.notify_all()

    def _is_nobody_in(self) -> bool:
        return not self._is_taken and not self._together

    def _has_room(self) -> bool:
        return not self._is_taken and not self._waiting and self._together < self._limit
