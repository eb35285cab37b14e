"""Limits one download attempt, whichever library makes it: time, speed, size, addresses.

A library's timeout only limits a single silence, so a server that sends a byte now and then holds a
connection for ever. Here everything that the attempt's threads connect or start is known, and cut
off when a limit is exceeded. For that `socket.socket.connect`, `subprocess.Popen`, `Thread.start`
and `HTTPConnection.putrequest` ask, once this module was used, whether the calling thread is
watched; for all others they are what they were.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.fetch.addresses import PrivateAddress, check_address
from clipmill.stages.media.fetch.host_throttle import PassingProblem
from clipmill.stages.media.isolation import children
from clipmill.stages.media.isolation.progress import beat

_LONGEST_STEP_SECONDS = 1.0
_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


@dataclass(frozen=True)
class DownloadLimits:
    """Limits for one download; None is no limit.

    `allowed` are the only private addresses that may be connected to; None allows all of them.
    """

    max_bytes: int | None = None
    min_bytes_per_second: int | None = None
    window_seconds: float = 60.0
    max_seconds: float | None = None
    allowed: frozenset[tuple[str, int]] | None = None


@dataclass(frozen=True)
class BytesSoFar:
    """Bytes that have come so far, in all, and those of the largest file."""

    in_all: int
    largest: int


_current = threading.local()


def current() -> Watch | None:
    """What watches this thread."""
    return getattr(_current, "watch", None)


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    watch, _current.watch = current(), None
    try:
        yield
    finally:
        _current.watch = watch


class Watch:
    """One attempt; earlier ones used `spent_seconds`.

    As a context it watches this thread and those that it starts; `check` then says what was wrong.
    """

    def __init__(
        self, limits: DownloadLimits, measure: Callable[[], BytesSoFar], spent_seconds: float = 0.0
    ) -> None:
        self._limits = limits
        self._measure = measure
        self._spent_seconds = spent_seconds
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._sockets: list[tuple[int, int]] = []
        self._children: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()
        self._numbers: set[int] = set()
        self._problem: PassingProblem | RowFailed | None = None
        self._refused: str | None = None
        self._waiting = 0
        self._waited_seconds = 0.0
        self._asked_at = self._began_at = time.monotonic()
        self.asking: Callable[[str], None] = lambda host: None
        """Called for each request that Python's own HTTP client is about to make, by its host."""
        self.is_receiving: Callable[[], bool] = lambda: True
        """Whether the attempt is waiting for the network; checked before it is called slow."""

    def __enter__(self) -> Watch:
        _install()
        limits = self._limits
        if {limits.max_bytes, limits.min_bytes_per_second, limits.max_seconds} != {None}:
            threading.Thread(target=self._look, name="watch", daemon=True).start()
        self._outer, _current.watch = current(), self
        return self

    def __exit__(self, *_: object) -> None:
        _current.watch = self._outer
        self._done.set()
        for child in list(self._children):
            if child.poll() is None:
                child.kill()
                child.wait()
        for number in self._numbers:
            children.drop(number)

    @property
    def refuses_addresses(self) -> bool:
        return self._limits.allowed is not None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Waits for a turn, which counts neither as slow nor as long; then a request follows."""
        began = time.monotonic()
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                self._asked_at = time.monotonic()
                self._waited_seconds += self._asked_at - began

    @property
    def seconds(self) -> float:
        """What the attempt has taken, waits for one's turn left out."""
        return time.monotonic() - self._began_at - self._waited_seconds

    def check(self, error: Exception | None = None) -> None:
        """Raises the reason why the attempt was cut off; after an `error`, also refusals."""
        if self._problem is not None:
            raise self._problem from error
        # What came faster than anybody looked.
        if error is None and (problem := self._too_large(self._measure())) is not None:
            raise problem
        if error is not None and self._refused is not None:
            raise RowFailed(
                "permanent", f"{self._refused}, and download_videos.private_addresses is `refuse`"
            ) from error

    def connecting(self, sock: socket.socket, address: Any) -> Any:
        """Notes a socket that is about to be connected; the address that it may be connected to."""
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return address
        if self._limits.allowed is not None:
            try:
                address = check_address(sock, address, self._limits.allowed)
            except PrivateAddress as error:
                self._refused = str(error)
                raise
        descriptor = sock.fileno()
        with self._lock:
            self._sockets.append((descriptor, os.fstat(descriptor).st_ino))
            self._sockets = [(one, inode) for one, inode in self._sockets if _is(one, inode)]
        if self._problem is not None:
            raise ConnectionAbortedError("cut off")
        return address

    def starting(self, arguments: Any) -> None:
        """Raises RowFailed if a program would fetch something that it must not."""
        words = arguments.split() if isinstance(arguments, str) else list(map(str, arguments))
        addresses = [word for word in words if _URL.match(word)]
        if self.refuses_addresses and addresses:
            raise RowFailed(
                "permanent",
                f"{words[0]} would make its own connection and can't be "
                "kept from private addresses; download_videos.private_addresses=allow "
                "allows it",
            )
        for host in dict.fromkeys(urlsplit(address).hostname for address in addresses):
            if host:
                self.asking(host)

    def started(self, child: subprocess.Popen[bytes]) -> None:
        self._children.add(child)
        self._numbers.add(child.pid)
        children.add(child.pid)
        if self._problem is not None:
            child.kill()

    def _look(self) -> None:
        """The thread that enforces the limits."""
        limits = self._limits
        step = min(_LONGEST_STEP_SECONDS, limits.window_seconds / 4)
        # Seconds in which this process ran: one that was stopped, or whose machine stood still,
        # has taken nothing meanwhile, whatever was sent.
        watched, looked_at = 0.0, time.monotonic()
        history: deque[tuple[float, int]] = deque()
        while not self._done.wait(step):
            progress, now = self._measure(), time.monotonic()
            watched += min(now - looked_at, 2 * step)
            looked_at = now
            if self._waiting or not history or history[-1][1] != progress.in_all:
                beat()
            history.append((watched, progress.in_all))
            while len(history) > 1 and watched - history[1][0] >= limits.window_seconds:
                history.popleft()
            problem = self._too_large(progress) or self._too_long() or self._too_slow(history)
            if problem is not None:
                self._cut_off(problem)
                return

    def _too_large(self, progress: BytesSoFar) -> RowFailed | None:
        most = self._limits.max_bytes
        return too_large(most) if most is not None and progress.largest > most else None

    def _too_long(self) -> RowFailed | None:
        most = self._limits.max_seconds
        if most is None or self._waiting or self._spent_seconds + self.seconds < most:
            return None
        return RowFailed(
            "transient", f"not done after {most:g} s, download_videos.max_download_seconds"
        )

    def _too_slow(self, history: deque[tuple[float, int]]) -> PassingProblem | None:
        limits = self._limits
        if limits.min_bytes_per_second is None or self._waiting:
            return None
        watched, received = history[-1]
        asked_for = min(time.monotonic() - self._asked_at, watched - history[0][0])
        # Files that are put together grow and vanish: any change is a sign of life.
        came = abs(received - history[0][1])
        if (
            asked_for < limits.window_seconds * 0.99
            or came >= limits.min_bytes_per_second * asked_for
            or not (self.is_receiving() or self._a_child_fetches())
        ):
            return None
        return PassingProblem(
            f"{came} bytes in {asked_for:.0f} s, after {received} bytes: slower "
            "than download_videos.min_bytes_per_second"
        )

    def _a_child_fetches(self) -> bool:
        return any(
            child.poll() is None and "://" in str(child.args) for child in list(self._children)
        )

    def _cut_off(self, problem: PassingProblem | RowFailed) -> None:
        with self._lock:
            self._problem = problem
            sockets, self._sockets = self._sockets, []
        for descriptor, inode in sockets:
            _shut(descriptor, inode)
        for child in list(self._children):
            if child.poll() is None:
                child.kill()


def too_large(max_bytes: int) -> RowFailed:
    return RowFailed("permanent", f"larger than {max_bytes} bytes, download_videos.max_bytes")


def _is(descriptor: int, inode: int) -> bool:
    try:
        return os.fstat(descriptor).st_ino == inode
    except OSError:
        return False


def _shut(descriptor: int, inode: int) -> None:
    """Ends the connection under whichever object holds it now: TLS takes the descriptor over."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as twin:
        if _is(twin.fileno(), inode):
            twin.shutdown(socket.SHUT_RDWR)


def _asked_host(connection: http.client.HTTPConnection, target: str) -> str:
    """Through a proxy it is the request's target, or the tunnel, that names the host."""
    named = None
    with contextlib.suppress(ValueError):
        named = urlsplit(target).hostname if _URL.match(target) else None
    tunnelled: str | None = connection._tunnel_host  # type: ignore[attr-defined]  # not public
    return named or tunnelled or connection.host


_install_lock = threading.Lock()
_installed = False


def _install() -> None:
    global _installed
    with _install_lock:
        if _installed:
            return
        _installed = True
        connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
        popen, start = subprocess.Popen.__init__, threading.Thread.start
        put_request = http.client.HTTPConnection.putrequest

        def watched_connect(self: socket.socket, address: Any) -> None:
            watch = current()
            connect(self, address if watch is None else watch.connecting(self, address))

        def watched_connect_ex(self: socket.socket, address: Any) -> int:
            watch = current()
            return connect_ex(self, address if watch is None else watch.connecting(self, address))

        def watched_popen(self: subprocess.Popen[bytes], *args: Any, **kwargs: Any) -> None:
            watch = current()
            if watch is not None:
                watch.starting(kwargs.get("args", args[0] if args else ()))
            popen(self, *args, **kwargs)
            if watch is not None:
                with _unwatched():
                    watch.started(self)

        def watched_put_request(
            self: http.client.HTTPConnection, method: str, url: str, *args: Any, **kwargs: Any
        ) -> None:
            watch = current()
            if watch is not None:
                watch.asking(_asked_host(self, url))
            put_request(self, method, url, *args, **kwargs)

        def watched_start(self: threading.Thread) -> None:
            watch, run = current(), self.run
            if watch is not None:

                def run_watched() -> None:
                    _current.watch = watch
                    run()

                self.run = run_watched  # type: ignore[method-assign]  # for this thread only
            start(self)

        replaced: list[tuple[Any, str, Callable[..., Any]]] = [
            (socket.socket, "connect", watched_connect),
            (socket.socket, "connect_ex", watched_connect_ex),
            (subprocess.Popen, "__init__", watched_popen),
            (threading.Thread, "start", watched_start),
            (http.client.HTTPConnection, "putrequest", watched_put_request),
        ]
        for owner, name, watched in replaced:
            setattr(owner, name, watched)
