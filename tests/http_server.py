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
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """One request as received; `at_seconds` is monotonic."""

    method: str
    path: str
    range: str | None
    headers: dict[str, str]
    at_seconds: float


class Behaviour(Protocol):
    """One response, written to the handler."""

    def answer(self, handler: _Handler) -> None: ...


@dataclass(frozen=True)
class File:
    """Responds with the bytes, or with the requested range."""

    data: bytes
    content_type: str = "video/mp4"
    ranges: bool = True
    etag: bool = True

    def answer(self, handler: _Handler) -> None:
        start = handler.asked_start() if self.ranges else None
        tag = f'"{hashlib.sha256(self.data).hexdigest()[:16]}"'
        if handler.headers.get("If-Range") not in (None, tag):
            start = None
        body = self.data[start or 0 :]
        handler.send_response(200 if start is None else 206)
        handler.send_header("Content-Type", self.content_type)
        handler.send_header("Content-Length", str(len(body)))
        if self.etag:
            handler.send_header("ETag", tag)
        if start is not None:
            handler.send_header(
                "Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
            )
        handler.end_headers()
        handler.body(body)


@dataclass(frozen=True)
class Broken:
    """Like File, but resets the connection after `after_bytes` of the response."""

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
    """A status without a body, with Retry-After if given."""

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
    """Accepts the request and sends nothing until the server stops, or `seconds` have passed."""

    seconds: float = 60.0

    def answer(self, handler: _Handler) -> None:
        handler.server.stopping.wait(self.seconds)
        handler.close_connection = True


@dataclass(frozen=True)
class Trickle:
    """Like File, but sends `piece_bytes` at a time, with pauses between.

    `sent` receives the size of each piece that was sent.
    """

    file: File
    piece_bytes: int = 10
    pause_seconds: float = 0.05
    sent: list[int] = field(default_factory=list, compare=False)

    def answer(self, handler: _Handler) -> None:
        handler.trickle = self
        self.file.answer(handler)


@dataclass(frozen=True)
class TrickledHeaders:
    """A response whose headers never end; no silence is longer than `pause_seconds`."""

    pause_seconds: float = 0.05

    def answer(self, handler: _Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not handler.server.stopping.wait(self.pause_seconds):
            handler.wfile.write(b"X-More: 1\r\n")


@dataclass(frozen=True)
class Endless:
    """A body without a declared length and, after `start`, longer than any limit in the tests.

    It does end, so that a limit that isn't enforced is noticed soon, before the disk is full.
    """

    content_type: str = "video/mp4"
    start: bytes = b""
    size_bytes: int = 300_000_000

    def answer(self, handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", self.content_type)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(self.start)
        for _ in range(self.size_bytes // 65536):
            if handler.server.stopping.is_set():
                break
            handler.wfile.write(bytes(65536))


@dataclass(frozen=True)
class Encoded:
    """Sends `data` with this content encoding, whether or not it really is, to every client."""

    data: bytes
    encoding: str = "gzip"
    content_type: str = "video/mp4"

    def answer(self, handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", self.content_type)
        handler.send_header("Content-Encoding", self.encoding)
        handler.send_header("Content-Length", str(len(self.data)))
        handler.end_headers()
        handler.body(self.data)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    cut_after: int | None = None
    trickle: Trickle | None = None

    def do_GET(self) -> None:
        self.server.log.append(
            Request(
                self.command,
                self.path,
                self.headers.get("Range"),
                dict(self.headers),
                time.monotonic(),
            )
        )
        self.cut_after = self.trickle = None
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.server.next_behaviour(self.path.partition("?")[0]).answer(self)

    do_HEAD = do_GET

    def asked_start(self) -> int | None:
        match = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        return int(match[1]) if match else None

    def body(self, data: bytes) -> None:
        if self.command == "HEAD":
            return
        if self.trickle is not None:
            for start in range(0, len(data), self.trickle.piece_bytes):
                self.trickle.sent.append(
                    self.wfile.write(data[start : start + self.trickle.piece_bytes])
                )
                if self.server.stopping.wait(self.trickle.pause_seconds):
                    return
            return
        if self.cut_after is None:
            self.wfile.write(data)
            return
        self.wfile.write(data[: self.cut_after])
        self.wfile.flush()
        # Zero linger: the peer sees a reset, not an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(0.05)  # written data must arrive before the reset discards it
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """The log is kept in memory."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: str, tls: ssl.SSLContext | None) -> None:
        super().__init__((address, 0), _Handler)
        self.tls = tls
        self.log: list[Request] = []
        self.stopping = threading.Event()
        self.scripts: dict[str, list[Behaviour]] = {}
        self.lock = threading.Lock()

    def finish_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        # In the connection's own thread, so that a hanging handshake blocks no one.
        if self.tls is not None:
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def next_behaviour(self, path: str) -> Behaviour:
        with self.lock:
            steps = self.scripts.get(path)
            if not steps:
                return Busy(404)
            return steps.pop(0) if len(steps) > 1 else steps[0]

    def handle_error(self, *_: object) -> None:
        """This server breaks connections on purpose."""


@dataclass
class Site:
    """The server as a test sees it."""

    _server: _Server
    address: str = field(init=False)

    def __post_init__(self) -> None:
        scheme = "http" if self._server.tls is None else "https"
        host, port = self._server.server_address[:2]
        self.address = f"{scheme}://{host}:{port}"

    @property
    def log(self) -> list[Request]:
        return self._server.log

    @property
    def times(self) -> list[float]:
        """The times of all requests; monotonic."""
        return [request.at_seconds for request in self.log]

    def asked(self, path: str, method: str = "GET") -> list[Request]:
        """The requests for one path."""
        return [
            request for request in self.log if request.path == path and request.method == method
        ]

    def url(self, path: str) -> str:
        return self.address + path

    def script(self, path: str, *steps: Behaviour) -> str:
        """Responds with each step once, in order, then always with the last one."""
        self._server.scripts[path] = list(steps)
        return self.url(path)

    def file(self, path: str, data: bytes, content_type: str = "video/mp4") -> str:
        return self.script(path, File(data, content_type))

    def page(self, path: str, html: str, content_type: str = "text/html") -> str:
        return self.script(path, File(html.encode(), content_type))

    def status(self, path: str, status: int) -> str:
        return self.script(path, Busy(status))


@contextlib.contextmanager
def refusing_address() -> Iterator[str]:
    """A loopback address and port that refuse connections, and that nobody else can use."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and doesn't listen
        yield f"127.0.0.1:{held.getsockname()[1]}"


@contextlib.contextmanager
def serve(address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """A server on a free loopback port until the block ends."""
    server = _Server(address, tls)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Site(server)
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
