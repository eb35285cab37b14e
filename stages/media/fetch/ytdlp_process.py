"""Runs yt-dlp in a helper process that limits it and the programs that it starts.

yt-dlp has no setting for some of this. So in the helper process, which does nothing else,
`socket.socket.connect`, `subprocess.Popen` and `HTTPConnection.putrequest` ask the current
attempt.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import logging
import os
import re
import socket
import subprocess
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.fetch.addresses import PrivateAddress, public_address, refused, resolved
from clipmill.stages.media.fetch.watch import DownloadLimits, Stopwatch, Watch, files_of
from clipmill.stages.media.fetch.ytdlp_errors import logger
from clipmill.stages.media.isolation.worker_link import ask, end_with

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


@dataclass(frozen=True)
class Attempt:
    """What the helper process has to know about an attempt.

    `kind` names the requested part if it is an optional one. `proxies` are the variables of the
    worker's environment, which may have changed since the process started.
    """

    folder: Path
    limits: DownloadLimits
    spent_seconds: float
    kind: str | None
    proxies: dict[str, str]


def proxies_of_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}


class Worker:
    """The worker, as yt-dlp's process sees it: it spaces requests and judges videos."""

    def __init__(self, attempt: Attempt) -> None:
        self.kind = attempt.kind
        self.stopwatch = Stopwatch(attempt.spent_seconds)
        self.refused: PrivateAddress | None = None
        self.asking: Callable[[str], None] = lambda host: None
        """Called with the host of each request that Python's own HTTP client is about to make."""
        self.is_receiving: Callable[[], bool] = lambda: True
        """Whether yt-dlp is waiting for the network."""
        self._allowed = attempt.limits.allowed
        self._programs: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()

    @property
    def refuses_addresses(self) -> bool:
        return self._allowed is not None

    def wait(self, host: str) -> None:
        with self.stopwatch.paused():
            ask("wait", host)

    def hold(self, host: str, seconds: float, said: str) -> None:
        ask("hold", host, seconds, said)

    def answered(self, host: str) -> None:
        ask("answered", host)

    def last_asked(self) -> str:
        """The host that this attempt contacted last, or ""."""
        host: str = ask("last_asked")
        return host

    def got_through(self) -> None:
        """The site delivers videos: it doesn't treat this client as a bot."""
        ask("got_through")

    def judge(self, duration_seconds: float | None, short_side: int | None) -> None:
        """Raises RowRejected for a duration and a short side; None means unknown."""
        ask("judge", duration_seconds, short_side)

    def check_known(self, extractor: str, platform_id: str, page: str | None) -> None:
        """Raises RowRejected for a video that is excluded or belongs to another source."""
        ask("check_known", extractor, platform_id, page)

    def connecting(self, sock: socket.socket, address: Any) -> Any:
        """The address that a socket may be connected to; raises PrivateAddress."""
        if self._allowed is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return address
        try:
            # Resolved once: `connect` would resolve the name again, after the check.
            host, port = address[:2]
            return public_address(resolved(host, port, sock.family)[0], self._allowed)
        except PrivateAddress as error:
            self.refused = error
            raise

    def starting(self, arguments: Any) -> None:
        """Raises RowFailed if a program would fetch something forbidden."""
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

    def started(self, program: subprocess.Popen[bytes]) -> None:
        self._programs.add(program)

    def is_fetching(self) -> bool:
        """Whether yt-dlp, or a program that it has started, is waiting for the network."""
        return self.is_receiving() or any(
            program.poll() is None and "://" in str(program.args)
            for program in list(self._programs)
        )

    def end_programs(self) -> None:
        for program in list(self._programs):
            if program.poll() is None:
                program.kill()
                program.wait()


def run(attempt: Attempt, function: Callable[..., Any], *args: Any) -> Any:
    """Runs `function(worker, *args)` as one attempt; exceeding a limit ends this process."""
    global _worker
    _install()
    for name in proxies_of_environment():
        del os.environ[name]
    os.environ.update(attempt.proxies)
    worker = Worker(attempt)
    watch = Watch(attempt.limits, lambda: files_of(attempt.folder), worker.stopwatch, end_with)
    watch.is_receiving = worker.is_fetching
    _worker = worker
    try:
        with watch:
            value = function(worker, *args)
    except Exception as error:
        watch.check(error)
        if worker.refused is not None:
            raise refused(worker.refused) from error
        raise
    finally:
        _worker = None
        worker.end_programs()
    watch.check()
    return value


class _ToWorker(logging.Handler):
    """Passes messages on to the worker, whose log is kept."""

    def emit(self, record: logging.LogRecord) -> None:
        ask("log", record.getMessage())


_worker: Worker | None = None


@functools.cache
def _install() -> None:
    logger.addHandler(_ToWorker())
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    popen = subprocess.Popen.__init__
    put_request = http.client.HTTPConnection.putrequest

    def checked_connect(self: socket.socket, address: Any) -> None:
        connect(self, address if _worker is None else _worker.connecting(self, address))

    def checked_connect_ex(self: socket.socket, address: Any) -> int:
        return connect_ex(self, address if _worker is None else _worker.connecting(self, address))

    def checked_popen(self: subprocess.Popen[bytes], *args: Any, **kwargs: Any) -> None:
        worker = _worker
        if worker is not None:
            worker.starting(kwargs.get("args", args[0] if args else ()))
        popen(self, *args, **kwargs)
        if worker is not None:
            worker.started(self)

    def asking_put_request(
        self: http.client.HTTPConnection, method: str, url: str, *args: Any, **kwargs: Any
    ) -> None:
        if _worker is not None:
            _worker.asking(_asked_host(self, url))
        put_request(self, method, url, *args, **kwargs)

    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (socket.socket, "connect", checked_connect),
        (socket.socket, "connect_ex", checked_connect_ex),
        (subprocess.Popen, "__init__", checked_popen),
        (http.client.HTTPConnection, "putrequest", asking_put_request),
    ]
    for owner, name, checked in replaced:
        setattr(owner, name, checked)


def _asked_host(connection: http.client.HTTPConnection, target: str) -> str:
    """The request's host; through a proxy, that of the request's target or of the tunnel."""
    named = None
    with contextlib.suppress(ValueError):
        named = urlsplit(target).hostname if _URL.match(target) else None
    tunnelled: str | None = connection._tunnel_host  # type: ignore[attr-defined]  # not public
    return named or tunnelled or connection.host
