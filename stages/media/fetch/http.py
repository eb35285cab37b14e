"""Downloads one file over HTTP: resumed if the server allows it, complete or not at all.

Every attempt that fails for a temporary reason is repeated after a pause that doubles. A host
that says it is overloaded (429, 503) makes all workers wait, others only the thread that asked.
One that requests a longer pause than a row waits is contacted by nobody until that is over.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from clipmill.schemas.errors import RowFailed, RowRejected
from clipmill.schemas.words import counted
from clipmill.stages.media.fetch.host_throttle import (
    BotCheck,
    Hosts,
    LeftAlone,
    PassingProblem,
    asked_for_too_long,
)
from clipmill.stages.media.fetch.resumable_file import UNPACKED, Partial, unpacked
from clipmill.stages.media.fetch.watch import BytesSoFar, DownloadLimits, Watch, current, too_large
from clipmill.stages.media.isolation import progress

Result = TypeVar("Result")

MAX_REDIRECTS = 10
# Playlists of pieces, which yt-dlp puts together.
_MANIFEST_TYPES = ("mpegurl", "dash+xml", "vnd.ms-sstr+xml", "f4m")
_BUSY = (408, 425, 429)
# The host as a whole, not what was asked for.
_OVERLOADED = (429, 503)
_MOST_NAME_CHARACTERS = 253
# Anything longer is not a pause any more, and may not be a number.
_LONGEST_RETRY_AFTER_SECONDS = 1e10
_PAGE_TYPES = ("text/", "application/xhtml", "application/json", "application/xml")
_PLAYLIST_STARTS = (b"#extm3u", b"ffconcat")
_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<mpd")


class NotAMediaFile(Exception):
    """The server answered with a page or a manifest: something that yt-dlp has to read."""


@dataclass(frozen=True)
class Patience:
    """How often and how long a temporary problem is waited out."""

    retries: int = 5
    backoff_seconds: float = 2.0
    max_backoff_seconds: float = 120.0


def nothing_measured() -> BytesSoFar:
    return BytesSoFar(0, 0)


def patiently(
    attempt: Callable[[], Result],
    *,
    host: str,
    hosts: Hosts,
    patience: Patience,
    limits: DownloadLimits | None = None,
    measure: Callable[[], BytesSoFar] = nothing_measured,
) -> Result:
    """The result of `attempt`; RowFailed of kind transient if its last error was a PassingProblem.

    The attempt waits for its turn at each host; `host` is blamed if it contacted none.
    """
    first: PassingProblem | None = None
    spent_seconds = 0.0
    for number in range(patience.retries + 1):
        hosts.begin_attempt()
        watch = Watch(limits or DownloadLimits(), measure, spent_seconds)
        try:
            result = _watched(attempt, watch)
        except PassingProblem as problem:
            hosts.failed(problem)
            first, last = first or problem, problem
        except BotCheck as problem:
            hosts.failed(problem)
            raise
        except LeftAlone:
            raise
        except NotAMediaFile:
            hosts.succeeded(with_a_page=True)
            raise
        except (RowFailed, RowRejected) as answer:
            kind = answer.kind if isinstance(answer, RowFailed) else None
            if kind != "transient":
                hosts.succeeded(with_a_page=kind == "bad_media")
            raise
        else:
            hosts.succeeded()
            return result
        spent_seconds += watch.seconds
        is_last = number == patience.retries
        asked_for = last.retry_after_seconds
        pause = min(patience.backoff_seconds * 2**number, patience.max_backoff_seconds)
        if asked_for is not None:
            pause = max(pause, asked_for)
        # What the host itself asked for holds for the others when this row has given up, too.
        asker = last.host or hosts.last_asked(host)
        if last.whole_host and (asked_for is not None or not is_last):
            hosts.hold(asker, pause, last.message)
        if asked_for is not None and asked_for > patience.max_backoff_seconds:
            raise RowFailed(
                "transient",
                f"{last.message} (Retry-After: {asked_for:.0f} s); "
                + asked_for_too_long(asker, asked_for),
            ) from last
        if is_last:
            break
        progress.pause(pause)
    assert first is not None
    message = first.message
    if last.message != first.message:
        message += f"; in the end: {last.message}"
    raise RowFailed("transient", f"{message} (tried {counted(number + 1, 'time')})") from last


def _watched(attempt: Callable[[], Result], watch: Watch) -> Result:
    try:
        with watch:
            result = attempt()
    except Exception as error:
        watch.check(error)
        raise
    watch.check()
    return result


def take_turn(hosts: Hosts, url: str) -> None:
    """Waits until the host of `url` may be contacted; RowFailed for an impossible host."""
    if host := host_of(url):
        wait_for_turn(hosts, host)


def host_of(url: str) -> str | None:
    """Raises RowFailed if `url` has an impossible host or port."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # raises for an invalid port
        if host and not host.isascii():
            httpx.URL(url)  # looks for its spelling on the network
    except (ValueError, httpx.InvalidURL) as error:
        raise RowFailed("permanent", f"not a URL: {url[:200]!r}: {error}") from error
    if host:
        check_name(host)
    return host


def wait_for_turn(hosts: Hosts, host: str) -> None:
    with _own_wait():
        hosts.wait(host)


def check_name(host: str) -> None:
    """Raises RowFailed for an invalid host name, which Python reports in terms of its codec."""
    labels = host.removesuffix(".").split(".")
    if len(host) > _MOST_NAME_CHARACTERS or not all(0 < len(one) <= 63 for one in labels):
        raise RowFailed(
            "permanent",
            f"{host[:100]!r} can't be a host name: it needs 1 to 63 "
            f"characters between dots, and at most {_MOST_NAME_CHARACTERS} in all",
        )


def heed(hosts: Hosts, status: int, url: str, headers: Mapping[str, str]) -> None:
    """Makes everybody wait for a host that asks for it, whatever becomes of the answer."""
    if status in _OVERLOADED and not is_challenge(headers):
        seconds = retry_after_seconds(headers.get("Retry-After"))
        if seconds is not None and (host := urlsplit(url).hostname):
            hosts.hold(host, seconds, f"HTTP {status} from {host}")


def _own_wait() -> contextlib.AbstractContextManager[None]:
    """A wait of our own making, for which the server is not blamed."""
    watch = current()
    return watch.waiting() if watch is not None else contextlib.nullcontext()


def is_answer(status: int) -> bool:
    """Whether a status shows that the host works, whatever it thinks of the request."""
    return status < 500 and status not in _BUSY


def polite(hosts: Hosts) -> dict[str, list[Callable[..., None]]]:
    """Hooks of an httpx client that make each request, including redirects, wait its turn."""

    def asking(request: httpx.Request) -> None:
        if not request.url.host:
            raise RowFailed("permanent", f"a URL without a host: {request.url}")
        take_turn(hosts, str(request.url))

    def answered(response: httpx.Response) -> None:
        if is_answer(response.status_code):
            hosts.answered(response.request.url.host)

    return {"request": [asking], "response": [answered]}


def is_challenge(headers: Mapping[str, str]) -> bool:
    """Whether Cloudflare asks for proof that this is not a bot, whatever the status says."""
    return headers.get("cf-mitigated") == "challenge"


def problem_of_status(
    status: int, url: str, retry_after: str | None = None
) -> RowFailed | PassingProblem:
    """The error for an unsuccessful HTTP status."""
    host = urlsplit(url).hostname
    message = f"HTTP {status} from {host}"
    if status in (401, 403, 407):
        return RowFailed("blocked", f"{message}: cookies, a proxy or another user agent may help")
    if not is_answer(status):
        return PassingProblem(
            message,
            retry_after_seconds=retry_after_seconds(retry_after),
            whole_host=status in _OVERLOADED,
            host=host,
        )
    return RowFailed("permanent", message)


def retry_after_seconds(value: str | None) -> float | None:
    """The header Retry-After, in either of its forms, as seconds from now; None for nonsense."""
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value), _LONGEST_RETRY_AFTER_SECONDS)
    try:
        at = parsedate_to_datetime(value)
        wait = at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, wait.total_seconds()), _LONGEST_RETRY_AFTER_SECONDS)


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
    patience: Patience,
    limits: DownloadLimits | None = None,
    rate_limit_bytes_per_second: int | None = None,
    page_is_bad_media: bool = False,
) -> Fetched:
    """Writes the body at `url` to `path`, and leaves no `path` behind if that fails.

    A partial file left by a killed process is resumed if the server still has the same version
    of the file. Raises RowFailed with its kind; NotAMediaFile if the answer is a page or a
    manifest (with `page_is_bad_media`, a page is a failure of kind bad_media).
    """
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL as error:
        raise RowFailed("permanent", f"not a URL that can be requested: {error}") from error
    limits = limits or DownloadLimits()
    try:
        with Partial(path, url) as partial:
            transfer = _Transfer(
                client,
                url,
                partial,
                rate_limit_bytes_per_second,
                page_is_bad_media,
                limits.max_bytes,
            )
            # How large the file gets is seen here, to the byte, before the watch could.
            patiently(
                transfer.attempt,
                host=host,
                hosts=hosts,
                patience=patience,
                limits=replace(limits, max_bytes=None),
                measure=lambda: BytesSoFar(partial.received, partial.received),
            )
            partial.finish()
        return Fetched(path, partial.digest.hexdigest(), partial.received, partial.content_type)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@dataclass
class _Transfer:
    """One file being downloaded, over as many connections as it takes."""

    client: httpx.Client
    url: str
    partial: Partial
    rate_limit: int | None
    page_is_bad_media: bool
    max_bytes: int | None

    def attempt(self) -> None:
        partial = self.partial
        headers = {"Accept-Encoding": "identity"}
        if partial.received and partial.validator:
            headers |= {"Range": f"bytes={partial.received}-", "If-Range": partial.validator}
        try:
            with self.client.stream("GET", self.url, headers=headers) as response:
                self._begin(response)
                self._receive(response)
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
        if self.max_bytes is not None and (partial.total or 0) > self.max_bytes:
            raise too_large(self.max_bytes)
        # Bytes of a compressed answer are counted differently here than by the server.
        partial.validator = None if encoding else _validator(response)

    def _receive(self, response: httpx.Response) -> None:
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
            if self.max_bytes is not None and partial.received > self.max_bytes:
                raise too_large(self.max_bytes)
            if self.rate_limit:
                due = began + (partial.received - earlier) / self.rate_limit
                if (early := due - time.monotonic()) > 0:
                    with _own_wait():
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
    """What identifies the version of the file for certain: a strong ETag, or its modification time.

    None if it could not be sent back.
    """
    etag = response.headers.get("etag", "")
    found = etag if etag and not etag.startswith("W/") else response.headers.get("last-modified")
    return found if found and found.isascii() else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
