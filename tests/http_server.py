"""A web server that misbehaves on request, on loopback, with a log of what it was asked.

    with serve() as server:
        server.file("/a.mp4", data)                      # answers ranges, with an ETag
        server.status("/b.mp4", 404)
        server.script("/c.mp4", Busy(429, retry_after="0"), File(data))
        download(server.url("/a.mp4"))
        server.log                                       # [Request("GET", "/a.mp4", None, …)]
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """One request as it came in; `at_seconds` is monotonic."""

    method: str
    path: str
    range: str | None
    headers: dict[str, str]
    at_seconds: float


class Behaviour(Protocol):
    """One answer, written to the handler."""

    def answer(self, handler: _Handler) -> None: ...


@dataclass(frozen=True)
class File:
    """Answers with the bytes, or with the part of them that was asked for."""

    data: bytes
    content_type: str = "video/mp4"
    ranges: bool = True
    etag: bool = True

    def answer(self, handler: _Handler) -> None:
        start = handler.asked_start() if self.ranges else None
        tag = f'"{hashlib.sha256(self.data).hexdigest()[:16]}"'
        if handler.headers.get("If-Range") not in (None, tag):
            start = None
        body = self.data[start or 0:]
        handler.send_response(200 if start is None else 206)
        handler.send_header("Content-Type", self.content_type)
        handler.send_header("Content-Length", str(len(body)))
        if self.etag:
            handler.send_header("ETag", tag)
        if start is not None:
            handler.send_header(
                "Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        handler.end_headers()
        handler.body(body)


@dataclass(frozen=True)
class Broken:
    """Like File, but the connection is reset after `after_bytes` of the answer."""

    file: File
    after_bytes: int

    def answer(self, handler: _Handler) -> None:
        handler.cut_after = self.after_bytes
        self.file.answer(handler)


@dataclass(frozen=True)
class Lying:
    """Declares `declared_bytes` and sends the data, then closes the connection properly."""

    data: bytes
    declared_bytes: int

    def answer(self, handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "video/mp4")
        handler.send_header("Content-Length", str(self.declared_bytes))
        handler.end_headers()
        handler.body(self.data)
        handler.close_connection = True


@dataclass(frozen=True)
class Busy:
    """A status without a body, with Retry-After where given."""

    status: int
    retry_after: str | None = None

    def answer(self, handler: _Handler) -> None:
        handler.send_response(self.status)
        if self.retry_after is not None:
            handler.send_header("Retry-After", self.retry_after)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@dataclass(frozen=True)
class Redirect:
    to: str

    def answer(self, handler: _Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", self.to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@dataclass(frozen=True)
class Hang:
    """Takes the request and says nothing until the server stops, or `seconds` have passed."""

    seconds: float = 60.0

    def answer(self, handler: _Handler) -> None:
        handler.server.stopping.wait(self.seconds)
        handler.close_connection = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    cut_after: int | None = None

    def do_GET(self) -> None:
        self.server.log.append(Request(
            self.command, self.path, self.headers.get("Range"), dict(self.headers),
            time.monotonic(),
        ))
        self.cut_after = None
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.server.next_behaviour(self.path.partition("?")[0]).answer(self)

    do_HEAD = do_GET

    def asked_start(self) -> int | None:
        match = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        return int(match[1]) if match else None

    def body(self, data: bytes) -> None:
        if self.command == "HEAD":
            return
        if self.cut_after is None:
            self.wfile.write(data)
            return
        self.wfile.write(data[: self.cut_after])
        self.wfile.flush()
        # Zero linger: the peer sees a reset, not an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(0.05)  # what was written must arrive before the reset throws it away
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """The log is kept in memory."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.log: list[Request] = []
        self.stopping = threading.Event()
        self.scripts: dict[str, list[Behaviour]] = {}
        self.lock = threading.Lock()

    def next_behaviour(self, path: str) -> Behaviour:
        with self.lock:
            steps = self.scripts.get(path)
            if not steps:
                return Busy(404)
            return steps.pop(0) if len(steps) > 1 else steps[0]

    def handle_error(self, *_: object) -> None:
        """Broken connections are what this server is for."""


@dataclass
class Site:
    """What a test sees of the server."""

    _server: _Server
    address: str = field(init=False)

    def __post_init__(self) -> None:
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def log(self) -> list[Request]:
        return self._server.log

    def asked(self, path: str, method: str = "GET") -> list[Request]:
        """The requests for one path."""
        return [request for request in self.log
                if request.path == path and request.method == method]

    def url(self, path: str) -> str:
        return self.address + path

    def script(self, path: str, *steps: Behaviour) -> str:
        """Answers with each step once, in order, then with the last one for ever."""
        self._server.scripts[path] = list(steps)
        return self.url(path)

    def file(self, path: str, data: bytes, content_type: str = "video/mp4") -> str:
        return self.script(path, File(data, content_type))

    def page(self, path: str, html: str, content_type: str = "text/html") -> str:
        return self.script(path, File(html.encode(), content_type))

    def status(self, path: str, status: int) -> str:
        return self.script(path, Busy(status))


@contextlib.contextmanager
def serve() -> Iterator[Site]:
    """A server on a free port of loopback until the block ends."""
    server = _Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Site(server)
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
