"""Fetches one file over HTTP: resumed where the server allows it, whole or not at all.

Every attempt that fails for a passing reason is made again after a pause that doubles. A host
that says it is overloaded (429, 503) makes all threads of the worker wait, others only their own.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

import httpx

from schemas.errors import RowFailed

Result = TypeVar("Result")

MAX_REDIRECTS = 10
# Playlists of pieces, which yt-dlp puts together.
_MANIFEST_TYPES = ("mpegurl", "dash+xml", "vnd.ms-sstr+xml", "f4m")
_PAGE_TYPES = ("text/", "application/xhtml", "application/json", "application/xml")
_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml")


class NotAMediaFile(Exception):
    """The server answered with a page or a manifest: something that yt-dlp has to read."""


class PassingProblem(Exception):
    """Something that may be over in a while; `whole_host` where the host itself is overloaded."""

    def __init__(
        self, message: str, *, retry_after_seconds: float | None = None, whole_host: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.whole_host = whole_host


@dataclass(frozen=True)
class Patience:
    """How often and how long a passing problem is waited out."""

    retries: int = 5
    backoff_seconds: float = 2.0
    max_backoff_seconds: float = 120.0


class HostGate:
    """Spaces the requests to one host over all threads of a worker."""

    def __init__(self, sleep_seconds: float = 0.0) -> None:
        self._sleep_seconds = sleep_seconds
        self._lock = threading.Lock()
        self._next: dict[str, float] = {}

    def wait(self, host: str) -> None:
        """Sleeps until this thread's turn at `host`."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next.get(host, now))
            if self._sleep_seconds or host in self._next:
                self._next[host] = turn + self._sleep_seconds
        if turn > now:
            time.sleep(turn - now)

    def hold(self, host: str, seconds: float) -> None:
        """Nobody asks `host` for the next `seconds`."""
        with self._lock:
            self._next[host] = max(self._next.get(host, 0.0), time.monotonic() + seconds)


def patiently(
    attempt: Callable[[], Result], *, host: str, gate: HostGate, patience: Patience
) -> Result:
    """What `attempt` gives; a RowFailed of kind transient when the last PassingProblem was it."""
    first: PassingProblem | None = None
    for number in range(patience.retries + 1):
        gate.wait(host)
        try:
            return attempt()
        except PassingProblem as problem:
            first, last = first or problem, problem
        if number == patience.retries:
            break
        pause = min(patience.backoff_seconds * 2**number, patience.max_backoff_seconds)
        if last.retry_after_seconds is not None:
            if last.retry_after_seconds > patience.max_backoff_seconds:
                raise RowFailed("transient", f"{last.message}; the server asks to wait "
                                f"{last.retry_after_seconds:.0f} s, more than max_backoff_seconds")
            pause = max(pause, last.retry_after_seconds)
        if last.whole_host:
            gate.hold(host, pause)
        else:
            time.sleep(pause)
    assert first is not None
    message = first.message
    if last.message != first.message:
        message += f"; in the end: {last.message}"
    raise RowFailed("transient", f"{message} (tried {number + 1} times)") from last


def problem_of_status(
    status: int, url: str, retry_after: str | None = None
) -> RowFailed | PassingProblem:
    """What an HTTP status that is no success means."""
    message = f"HTTP {status} from {urlsplit(url).hostname}"
    if status in (401, 403, 407):
        return RowFailed("blocked", f"{message}: cookies, a proxy or another user agent may help")
    if status in (408, 425, 429) or status >= 500:
        return PassingProblem(message, retry_after_seconds=retry_after_seconds(retry_after),
                              whole_host=status in (429, 503))
    return RowFailed("permanent", message)


def retry_after_seconds(value: str | None) -> float | None:
    """The header Retry-After, in either of its forms, as seconds from now."""
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


@dataclass(frozen=True)
class Fetched:
    """A whole file, under a temporary name still, with what its bytes were on the way."""

    path: Path
    sha256: str
    size_bytes: int
    content_type: str


def fetch(
    client: httpx.Client,
    url: str,
    path: Path,
    *,
    gate: HostGate,
    patience: Patience,
    rate_limit_bytes_per_second: int | None = None,
    page_is_bad_media: bool = False,
) -> Fetched:
    """Writes the body at `url` to `path`, and leaves no `path` behind where that fails.

    Raises RowFailed with its kind; NotAMediaFile where the answer is a page or a manifest (with
    `page_is_bad_media`, a page is a failure of kind bad_media).
    """
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL as error:
        raise RowFailed("permanent", f"not a URL that can be asked for: {error}") from error
    try:
        with open(path, "wb") as file:
            transfer = _Transfer(client, url, file, rate_limit_bytes_per_second,
                                 page_is_bad_media)
            patiently(transfer.attempt, host=host, gate=gate, patience=patience)
            file.flush()
            os.fsync(file.fileno())
        return Fetched(path, transfer.digest.hexdigest(), transfer.received,
                       transfer.content_type)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@dataclass
class _Transfer:
    """One file on its way, over as many connections as it takes."""

    client: httpx.Client
    url: str
    file: BinaryIO
    rate_limit: int | None
    page_is_bad_media: bool
    received: int = 0
    total: int | None = None
    validator: str | None = None
    content_type: str = ""
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def attempt(self) -> None:
        headers = {"Accept-Encoding": "identity"}
        if self.received and self.validator:
            headers |= {"Range": f"bytes={self.received}-", "If-Range": self.validator}
        try:
            with self.client.stream("GET", self.url, headers=headers) as response:
                self._begin(response)
                self._receive(response)
        except httpx.TooManyRedirects as error:
            raise RowFailed("permanent", f"more than {MAX_REDIRECTS} redirects") from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise RowFailed("permanent", f"cannot be asked for over HTTP: {error}") from error
        except httpx.DecodingError as error:
            raise RowFailed("bad_media", f"the compressed answer is broken: {error}") from error
        except httpx.TransportError as error:
            raise self._of_transport(error) from error
        if self.total is not None and self.received != self.total:
            raise PassingProblem(f"the server declared {self.total} bytes and sent "
                                 f"{self.received}")

    def _begin(self, response: httpx.Response) -> None:
        if response.status_code == 206 and self.received:
            start = f"bytes {self.received}-"
            if response.headers.get("content-range", "").startswith(start):
                return
            self._restart()
            raise PassingProblem("the server resumed at another place than it was asked to")
        if response.status_code == 416:
            self._restart()
            raise PassingProblem("the server could not resume the file")
        if response.status_code != 200:
            raise problem_of_status(response.status_code, str(response.url),
                                    response.headers.get("retry-after"))
        self._restart()
        self.content_type = response.headers.get("content-type", "").partition(";")[0].lower()
        if any(kind in self.content_type for kind in _MANIFEST_TYPES):
            raise NotAMediaFile(self.content_type)
        if self.content_type.startswith(_PAGE_TYPES):
            raise self._page()
        encoded = response.headers.get("content-encoding", "identity").lower() != "identity"
        length = response.headers.get("content-length", "")
        self.total = int(length) if length.isdigit() and not encoded else None
        etag = response.headers.get("etag", "")
        strong = etag if etag and not etag.startswith("W/") else None
        # Bytes of a compressed answer are counted differently here than by the server.
        self.validator = None if encoded else strong or response.headers.get("last-modified")

    def _receive(self, response: httpx.Response) -> None:
        began, earlier = time.monotonic(), self.received
        for chunk in response.iter_bytes():
            if not self.received and chunk[:64].lstrip().lower().startswith(_PAGE_STARTS):
                raise self._page()
            self.file.write(chunk)
            self.digest.update(chunk)
            self.received += len(chunk)
            if self.rate_limit:
                due = began + (self.received - earlier) / self.rate_limit
                time.sleep(max(0.0, due - time.monotonic()))

    def _restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.received = 0
        self.digest = hashlib.sha256()
        self.validator = self.total = None

    def _page(self) -> Exception:
        if self.page_is_bad_media:
            return RowFailed("bad_media", "not a video: the server sent a page "
                             f"({self.content_type or 'no content type'})")
        return NotAMediaFile(self.content_type)

    def _of_transport(self, error: httpx.TransportError) -> RowFailed | PassingProblem:
        for cause in _causes(error):
            if isinstance(cause, ssl.SSLCertVerificationError):
                return RowFailed("permanent", "the server's TLS certificate is not trusted: "
                                 f"{cause.verify_message}")
        if isinstance(error, httpx.TimeoutException):
            return PassingProblem(f"timed out after {self.received} bytes "
                                  f"({type(error).__name__})")
        return PassingProblem(f"{type(error).__name__} after {self.received} bytes: {error}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

