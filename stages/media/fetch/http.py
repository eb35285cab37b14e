"""Downloads one file over HTTP, resuming if the server allows it; the file is complete or absent.

Each attempt that fails for a temporary reason is repeated after a pause that doubles. A host that
reports overload (429, 503) makes all workers wait, others only the requesting thread. If a host
requests a longer pause than a row waits, nobody contacts it until the pause is over.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from clipmill.schemas.errors import RowFailed
from clipmill.schemas.retries import Backoff
from clipmill.stages.media.fetch.addresses import PrivateAddress, refused
from clipmill.stages.media.fetch.attempts import NotAMediaFile, patiently
from clipmill.stages.media.fetch.host_throttle import Hosts
from clipmill.stages.media.fetch.http_answers import is_challenge, problem_of_status
from clipmill.stages.media.fetch.http_client import MAX_REDIRECTS
from clipmill.stages.media.fetch.problems import BotCheck, PassingProblem
from clipmill.stages.media.fetch.resumable_file import UNPACKED, Partial, unpacked
from clipmill.stages.media.fetch.watch import (
    BytesSoFar,
    DownloadLimits,
    Problem,
    Stopwatch,
    Watch,
    too_large,
)
from clipmill.stages.media.isolation import progress

# Segmented playlists, which yt-dlp assembles.
_MANIFEST_TYPES = ("mpegurl", "dash+xml", "vnd.ms-sstr+xml", "f4m")
_PAGE_TYPES = ("text/", "application/xhtml", "application/json", "application/xml")
_PLAYLIST_STARTS = (b"#extm3u", b"ffconcat")
_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<mpd")


@dataclass(frozen=True)
class Fetched:
    """A complete file, still under a temporary name, with facts about its transfer."""

    path: Path
    sha256: str
    size_bytes: int
    content_type: str


def fetch(
    client: httpx.Client,
    url: str,
    path: Path,
    *,
    hosts: Hosts,
    patience: Backoff,
    limits: DownloadLimits | None = None,
    rate_limit_bytes_per_second: int | None = None,
    page_is_bad_media: bool = False,
) -> Fetched:
    """Writes the body at `url` to `path`; leaves no file at `path` if that fails.

    A partial file left by a killed process is resumed if the server still has the same version of
    the file. Raises RowFailed with its kind; NotAMediaFile if the answer is a page or a manifest
    (with `page_is_bad_media`, a page is a failure of kind bad_media).
    """
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL as error:
        raise RowFailed("permanent", f"not a URL that can be requested: {error}") from error
    limits = limits or DownloadLimits()
    try:
        with Partial(path, url) as partial:
            transfer = _Transfer(
                client, url, partial, rate_limit_bytes_per_second, page_is_bad_media, limits
            )
            patiently(transfer.attempt, host=host, hosts=hosts, patience=patience)
            partial.finish()
        return Fetched(path, partial.digest.hexdigest(), partial.received, partial.content_type)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@dataclass
class _Connections:
    """The connections of one attempt, which a watch can cut off."""

    sockets: list[socket.socket] = field(default_factory=list)
    is_cut_off: bool = False

    def trace(self, event: str, details: Mapping[str, Any]) -> None:
        """An httpcore `trace` function, which reports every new connection."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self.sockets.append(details["return_value"].get_extra_info("socket"))
            if self.is_cut_off:
                self._shut()

    def cut_off(self, problem: Problem) -> None:
        self.is_cut_off = True
        self._shut()

    def _shut(self) -> None:
        for one in self.sockets:
            # The socket is shut down but not closed: another thread is reading from it.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(one.fileno())) as twin:
                twin.shutdown(socket.SHUT_RDWR)


@dataclass
class _Transfer:
    """One file being downloaded, over as many connections as it takes."""

    client: httpx.Client
    url: str
    partial: Partial
    rate_limit: int | None
    page_is_bad_media: bool
    limits: DownloadLimits

    def attempt(self, stopwatch: Stopwatch) -> None:
        partial, connections = self.partial, _Connections()
        watch = Watch(
            # The exact size is checked here, before the watch could notice.
            replace(self.limits, max_bytes=None),
            lambda: BytesSoFar(partial.received, partial.received),
            stopwatch,
            connections.cut_off,
        )
        try:
            with watch:
                self._attempt(stopwatch, connections)
        except Exception as error:
            watch.check(error)
            raise
        watch.check()

    def _attempt(self, stopwatch: Stopwatch, connections: _Connections) -> None:
        partial = self.partial
        headers = {"Accept-Encoding": "identity"}
        if partial.received and partial.validator:
            headers |= {"Range": f"bytes={partial.received}-", "If-Range": partial.validator}
        try:
            with self.client.stream(
                "GET", self.url, headers=headers, extensions={"trace": connections.trace}
            ) as response:
                self._begin(response)
                self._receive(response, stopwatch)
        except httpx.TooManyRedirects as error:
            raise RowFailed("permanent", f"more than {MAX_REDIRECTS} redirects") from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
            raise RowFailed("permanent", f"cannot be requested over HTTP: {error}") from error
        except httpx.TransportError as error:
            raise self._of_transport(error) from error
        if partial.total is not None and partial.received != partial.total:
            raise PassingProblem(
                f"the server declared {partial.total} bytes and sent {partial.received}"
            )

    def _begin(self, response: httpx.Response) -> None:
        partial = self.partial
        if response.status_code == 206 and partial.received:
            start = f"bytes {partial.received}-"
            now = _validator(response)
            if (
                response.headers.get("content-range", "").startswith(start)
                and now in (None, partial.validator)
                and not _encoding(response)
            ):
                return
            partial.restart()
            raise PassingProblem(
                "the server resumed a different file, or at a different place, than requested"
            )
        if response.status_code == 416:
            partial.restart()
            raise PassingProblem("the server could not resume the file")
        if is_challenge(response.headers):
            raise BotCheck(
                f"HTTP {response.status_code} from {response.url.host}: Cloudflare asks "
                "for proof that this is not a bot: cookies, a proxy or another user "
                "agent may help",
                response.url.host,
            )
        if response.status_code != 200:
            raise problem_of_status(
                response.status_code, str(response.url), response.headers.get("retry-after")
            )
        partial.restart()
        partial.content_type = response.headers.get("content-type", "").partition(";")[0].lower()
        if any(kind in partial.content_type for kind in _MANIFEST_TYPES):
            raise NotAMediaFile(partial.content_type)
        if partial.content_type.startswith(_PAGE_TYPES):
            raise self._page()
        encoding = _encoding(response)
        if encoding not in ("", *UNPACKED):
            raise RowFailed(
                "bad_media",
                f"the server sent the file compressed as {encoding!r}, which was not requested",
            )
        length = response.headers.get("content-length", "")
        partial.total = int(length) if length.isdecimal() and not encoding else None
        if self.limits.max_bytes is not None and (partial.total or 0) > self.limits.max_bytes:
            raise too_large(self.limits.max_bytes)
        # The server counts the bytes of a compressed answer differently.
        partial.validator = None if encoding else _validator(response)

    def _receive(self, response: httpx.Response, stopwatch: Stopwatch) -> None:
        partial = self.partial
        began, earlier = time.monotonic(), partial.received
        for chunk in unpacked(response.iter_raw(), _encoding(response)):
            if not partial.received:
                start = chunk[:64].lstrip().lower()
                if start.startswith(_PAGE_STARTS):
                    raise self._page()
                if start.startswith(_PLAYLIST_STARTS):
                    raise NotAMediaFile("a playlist")
            partial.write(chunk)
            progress.beat()
            if self.limits.max_bytes is not None and partial.received > self.limits.max_bytes:
                raise too_large(self.limits.max_bytes)
            if self.rate_limit:
                due = began + (partial.received - earlier) / self.rate_limit
                if (early := due - time.monotonic()) > 0:
                    with stopwatch.paused():
                        progress.pause(early)

    def _page(self) -> Exception:
        content_type = self.partial.content_type
        if self.page_is_bad_media:
            return RowFailed(
                "bad_media",
                f"not a video: the server sent a page ({content_type or 'no content type'})",
            )
        return NotAMediaFile(content_type)

    def _of_transport(self, error: httpx.TransportError) -> RowFailed | PassingProblem:
        for cause in _causes(error):
            if isinstance(cause, PrivateAddress):
                return refused(cause)
            if isinstance(cause, httpx.InvalidURL):
                return RowFailed("permanent", f"the server redirects to an invalid URL: {cause}")
            if isinstance(cause, ssl.SSLCertVerificationError):
                return RowFailed(
                    "permanent",
                    f"the server's TLS certificate is not trusted: {cause.verify_message}",
                )
            if (
                isinstance(cause, ssl.SSLError)
                and isinstance(error, httpx.ConnectError)
                and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)
            ):
                return RowFailed(
                    "permanent", f"the server supports no known version of TLS: {cause}"
                )
        received = self.partial.received
        if isinstance(error, httpx.TimeoutException):
            return PassingProblem(f"timed out after {received} bytes ({type(error).__name__})")
        return PassingProblem(f"{type(error).__name__} after {received} bytes: {error}")


def _encoding(response: httpx.Response) -> str:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    return "" if encoding == "identity" else encoding


def _validator(response: httpx.Response) -> str | None:
    """What reliably identifies the file's version: a strong ETag, or its modification time.

    None if the value could not be sent back.
    """
    etag = response.headers.get("etag", "")
    found = etag if etag and not etag.startswith("W/") else response.headers.get("last-modified")
    return found if found and found.isascii() else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
