"""Connections to a server, which can be cut at any time."""

from __future__ import annotations

import heapq
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import httpx


class Line:
    """One thread's client, with one connection that can be cut after a time limit.

    httpx only limits each wait for bytes, not the whole response: a server that sends one byte at
    a time would never time out. Once `closing` is set, any new connection is cut as soon as it is
    open.
    """

    def __init__(self, client: httpx.Client, closing: threading.Event) -> None:
        self.client = client
        self._closing = closing
        self._socket: socket.socket | None = None
        self._cut = False

    def watch(self, event: str, details: Mapping[str, Any]) -> None:
        """An httpcore `trace` that records each new connection."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = details["return_value"].get_extra_info("socket")
            if self._cut or self._closing.is_set():
                self._shut()

    @contextmanager
    def within(self, seconds: float, alarm: Alarm) -> Iterator[Line]:
        """Cuts the connection after this many seconds; then raises httpx.ReadTimeout."""
        self._cut = False
        try:
            with alarm.after(seconds, self.end):
                yield self
        except httpx.HTTPError as error:
            if self._cut:
                raise httpx.ReadTimeout("the answer never ended") from error
            raise
        if self._cut:
            # A body without a declared length looks complete when its connection ends.
            raise httpx.ReadTimeout("the answer never ended")

    def end(self) -> None:
        """Cuts the connection now."""
        self._cut = True
        self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class Alarm:
    """Calls functions when their time has come, all from one thread."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, list[Callable[[], None]]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
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

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed:
                # Entries of blocks that have ended are dropped when they come first.
                while self._due and (not self._due[0][2] or self._due[0][0] <= time.monotonic()):
                    for call in heapq.heappop(self._due)[2]:
                        call()
                left = self._due[0][0] - time.monotonic() if self._due else None
                self._changed.wait(left)
