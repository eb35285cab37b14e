"""One address of a model server: requests to it, and how it has been doing."""

from __future__ import annotations

import ssl
import threading
import time
import urllib.request
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from clipmill.stages.models.engines.alarm import Alarm
from clipmill.stages.models.engines.chat_protocol import TryAgain, listed_models
from clipmill.stages.models.engines.lines import (
    CHECK_SECONDS,
    MOST_BYTES,
    Answer,
    DirectLine,
    Line,
    ProxiedLine,
    TooLong,
)

# A server that is down is left out for so long, and then tried again.
_LEFT_OUT_SECONDS = 30.0
_FAILURES_UNTIL_LEFT_OUT = 3


class Address:
    """Requests to one address; usable from many threads, with a connection for each request that
    is in flight at a time.

    A `direct` one uses no proxy.
    """

    def __init__(
        self,
        url: str,
        headers: dict[str, str],
        tls: Any,
        closing: threading.Event,
        alarm: Alarm,
        *,
        direct: bool = False,
    ) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        self.shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        """The address without a password: what is recorded is shared."""
        proxy = None if direct else _proxy_for(self.url)
        self.name = f"{self.shown} ({proxy})" if proxy else self.shown
        """For messages: it says so where a proxy stands before the server."""
        self.in_flight = 0
        self.out_until = 0.0
        self._failures = 0
        self._headers, self._tls, self._closing, self._alarm = headers, tls, closing, alarm
        self._may_have_proxy = not direct and bool(urllib.request.getproxies())
        self._lines: list[Line] = []
        self._free: list[Line] = []

    def post(self, path: str, body: bytes, seconds: float) -> Answer:
        """The answer to a request; TryAgain if there is none."""
        try:
            return self._exchange("POST", path, seconds, body)
        except httpx.TimeoutException as error:
            raise TryAgain(
                "transient",
                f"{self.name} did not answer within {seconds:g} s (server_timeout_seconds)",
                lost=True,
            ) from error
        except httpx.HTTPError as error:
            raise TryAgain(
                "transient", f"{self.name}: {type(error).__name__}: {error}", lost=True
            ) from error
        except TooLong as error:
            raise TryAgain(
                "model", f"{self.name} answered with more than {MOST_BYTES >> 20} MiB"
            ) from error

    def models(self, seconds: float) -> dict[str, dict[str, Any]]:
        """What the server says about its models, by id; empty if it says nothing about them.

        Raises httpx.ConnectError or ConnectTimeout if nothing answers at the address: not every
        server lists its models, and one may be slow or ask for another key.
        """
        try:
            answer = self._exchange("GET", "models", min(CHECK_SECONDS, seconds))
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise
        except (httpx.HTTPError, TooLong):
            return {}
        return listed_models(answer.content) if answer.status == 200 else {}

    def went_well(self, well: bool) -> None:
        """Notes how a request went; an address that fails again and again is left out."""
        self._failures = 0 if well else self._failures + 1
        if well:
            self.out_until = 0.0
        elif self._failures >= _FAILURES_UNTIL_LEFT_OUT:
            self.leave_out()

    def leave_out(self) -> None:
        self.out_until = time.monotonic() + _LEFT_OUT_SECONDS

    def _exchange(
        self, method: str, path: str, seconds: float, body: bytes | None = None
    ) -> Answer:
        """An answer; raises httpx.HTTPError or TooLong if there is none in time."""
        line = self._line()
        try:
            return line.exchange(method, path, body, seconds, self._alarm)
        finally:
            self._free.append(line)

    def _line(self) -> Line:
        """A connection that no other thread uses: the one that was used last, or a new one."""
        with suppress(IndexError):
            return self._free.pop()
        kind = ProxiedLine if self._may_have_proxy else DirectLine
        line: Line = kind(self.url, self._headers, self._tls, self._closing)
        self._lines.append(line)
        return line

    def cut(self) -> None:
        for line in list(self._lines):
            line.end()

    def close(self) -> None:
        for line in list(self._lines):
            line.close()


def not_reached(name: str, error: Exception) -> str:
    """Why no server could be reached, and what helps."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"{name} has a certificate that is not trusted here ({cause.verify_message}); if it "
            "is the right server, name its certificate's file with SSL_CERT_FILE=/path/to/cert.pem"
        )
    if cause is not None:
        return (
            f"{name} speaks no TLS ({cause}); if that is meant, write http:// instead of https://"
        )
    return f"no server answers at {name} ({error}); start it"


def _proxy_for(url: str) -> str | None:
    """What to say about the environment's proxy for an address; None if it has none."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    found = urllib.request.getproxies()
    proxy = found.get(parts.scheme) or found.get("all")
    if not proxy or urllib.request.proxy_bypass(host):
        return None
    shown = proxy.rpartition("@")[2] if "@" in proxy else proxy.rpartition("//")[2]
    return f"through the environment's proxy {shown.rstrip('/')}; NO_PROXY={host} goes without"
