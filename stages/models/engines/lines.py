"""Connections to one address of a model server, which can be cut at any time.

A direct one uses Python's own HTTP client: httpx takes three times as much processor time for a
request, which adds up where hundreds are answered per second. One through a proxy uses httpx, which
knows the environment's proxies. Both raise httpx's exceptions.
"""

from __future__ import annotations

import base64
import http.client
import select
import socket
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx

from clipmill.stages.media.fetch.proxies import proxies_of_environment
from clipmill.stages.models.engines.alarm import Alarm

CHECK_SECONDS = 10.0
"""For what a server answers at once if it is well: its list of models, a new connection."""
# A chat completion is a few kilobytes of text, perhaps with its reasoning and probabilities.
MOST_BYTES = 8 * 2**20
_PART_BYTES = 2**16
_OF_PATHS = "/%:@!$&'()*+,;=~"
# Of zlib: the compression is that of gzip or deflate.
_GZIP_OR_DEFLATE = 32 + zlib.MAX_WBITS


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    content: bytes
    retry_after: str | None = None
    location: str | None = None


class TooLong(Exception):
    """The answer has more than MOST_BYTES."""


class Line(ABC):
    """A connection for one request at a time, which can be cut after a time limit, and is kept for
    the next one.

    Each wait for bytes is limited by the libraries, but a server that sends one byte at a time
    would never time out. Once `closing` is set, any new connection is cut as soon as it is open.
    """

    def __init__(self, closing: threading.Event) -> None:
        self._closing = closing
        self._socket: socket.socket | None = None
        self._cut = False

    def exchange(
        self, method: str, path: str, body: bytes | None, seconds: float, alarm: Alarm
    ) -> Answer:
        """An answer; httpx.HTTPError or TooLong if there is none in time."""
        with self._within(seconds, alarm):
            return self._exchange(method, path, body, seconds)

    @abstractmethod
    def _exchange(self, method: str, path: str, body: bytes | None, seconds: float) -> Answer: ...

    @abstractmethod
    def close(self) -> None: ...

    def end(self) -> None:
        """Cuts the connection now."""
        self._cut = True
        self._shut()

    def _opened(self, connection: Any) -> None:
        """Records a new connection's socket."""
        self._socket = connection
        if self._cut or self._closing.is_set():
            self._shut()

    @contextmanager
    def _within(self, seconds: float, alarm: Alarm) -> Iterator[None]:
        """Cuts the connection after this many seconds; then raises httpx.ReadTimeout."""
        self._cut = False
        try:
            with alarm.after(seconds, self.end):
                yield
        except httpx.HTTPError as error:
            if self._cut:
                raise httpx.ReadTimeout("the answer never ended") from error
            raise
        if self._cut:
            # A body without a declared length looks complete when its connection ends.
            raise httpx.ReadTimeout("the answer never ended")

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class DirectLine(Line):
    """A connection without a proxy."""

    def __init__(
        self, url: str, headers: Mapping[str, str], tls: Any, closing: threading.Event
    ) -> None:
        super().__init__(closing)
        parts = urlsplit(url)
        self._host, self._path = parts.hostname or "", quote(parts.path, safe=_OF_PATHS)
        self._tls = tls if parts.scheme == "https" else None
        self._port = parts.port or (80 if self._tls is None else 443)
        self._headers = {
            "Host": parts.netloc.rpartition("@")[2],
            "Accept": "*/*",
            "User-Agent": "clipmill",
            "Content-Type": "application/json",
            **headers,
        }
        if parts.username or parts.password:
            words = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            token = base64.b64encode(words.encode()).decode("ascii")
            self._headers["Authorization"] = f"Basic {token}"
        self._connection: http.client.HTTPConnection | None = None

    def _exchange(self, method: str, path: str, body: bytes | None, seconds: float) -> Answer:
        connection = self._connected(min(CHECK_SECONDS, seconds))
        connection.sock.settimeout(seconds)
        is_kept = False
        try:
            connection.request(method, f"{self._path}/{path}", body, self._headers)
            response = connection.getresponse()
            content = _whole(_parts_of(response))
            is_kept = not response.will_close
            return _answer(response.status, content, response.headers)
        except TimeoutError as error:
            raise httpx.ReadTimeout(str(error)) from error
        except (http.client.HTTPException, zlib.error, ValueError) as error:
            raise httpx.RemoteProtocolError(str(error) or type(error).__name__) from error
        except OSError as error:
            raise httpx.ReadError(str(error)) from error
        finally:
            if not is_kept:
                self.close()

    def _connected(self, seconds: float) -> http.client.HTTPConnection:
        """The open connection, or a new one."""
        if self._connection is not None:
            if not _is_readable(self._connection.sock):
                return self._connection
            self.close()  # it has ended, for nothing was asked
        try:
            opened = socket.create_connection((self._host, self._port), seconds)
            self._opened(opened)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                opened = self._tls.wrap_socket(opened, server_hostname=self._host)
                self._opened(opened)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(str(error)) from error
        except (OSError, ValueError) as error:
            raise httpx.ConnectError(str(error)) from error
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.auto_open = 0
        connection.sock = opened
        self._connection = connection
        return connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class ProxiedLine(Line):
    """A connection through one of the environment's proxies, where it has one for the address."""

    def __init__(
        self, url: str, headers: Mapping[str, str], tls: Any, closing: threading.Event
    ) -> None:
        super().__init__(closing)
        self._url = url
        self._headers = {"Content-Type": "application/json", **headers}
        with proxies_of_environment():
            self._client = httpx.Client(verify=tls, trust_env=True)

    def _exchange(self, method: str, path: str, body: bytes | None, seconds: float) -> Answer:
        with self._client.stream(
            method,
            f"{self._url}/{path}",
            content=body,
            headers=self._headers,
            timeout=httpx.Timeout(seconds, connect=min(CHECK_SECONDS, seconds)),
            extensions={"trace": self._watch},
        ) as response:
            content = _whole(response.iter_bytes())
        return _answer(response.status_code, content, response.headers)

    def _watch(self, event: str, details: Mapping[str, Any]) -> None:
        """An httpcore `trace` that records each new connection."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._opened(details["return_value"].get_extra_info("socket"))

    def close(self) -> None:
        self._client.close()


def _answer(status: int, content: bytes, headers: Any) -> Answer:
    location = headers.get("Location") if 300 <= status < 400 else None
    return Answer(status, content, headers.get("Retry-After"), location)


def _whole(parts: Iterable[bytes]) -> bytes:
    content = bytearray()
    for part in parts:
        content += part
        if len(content) > MOST_BYTES:
            raise TooLong
    return bytes(content)


def _parts_of(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """A body's parts, decompressed: some gateways compress it though nobody asked them to."""
    packed = response.getheader("Content-Encoding", "identity").lower() in ("gzip", "deflate")
    unpack = zlib.decompressobj(_GZIP_OR_DEFLATE)
    while part := response.read(_PART_BYTES):
        yield unpack.decompress(part, MOST_BYTES + 1) if packed else part
    if response.length:  # it is None where no length was declared
        raise http.client.IncompleteRead(b"", response.length)


def _is_readable(connection: socket.socket) -> bool:
    """Whether something has come, which at rest is its end."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
