"""One address of a model server: requests to it, and how it has been doing."""

from __future__ import annotations

import threading
import time
import urllib.request
from typing import Any

import httpx

from clipmill.stages.media.fetch.proxies import proxies_of_environment
from clipmill.stages.models.engines.chat_protocol import TryAgain, listed_models
from clipmill.stages.models.engines.connections import Alarm, Line

CHECK_SECONDS = 10.0
"""For what a server answers at once if it is well: its list of models, a new connection."""
# A chat completion is a few kilobytes of text, perhaps with its reasoning and probabilities.
_MOST_BYTES = 8 * 2**20
# A server that is down is left out for so long, and then tried again.
_LEFT_OUT_SECONDS = 30.0
_FAILURES_UNTIL_LEFT_OUT = 3


class Address:
    """A client for one address; usable from many threads, each with a connection of its own.

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
        self.in_flight = 0
        self.out_until = 0.0
        self._failures = 0
        self._headers, self._tls, self._closing, self._alarm = headers, tls, closing, alarm
        # Looking for proxies takes longer than all else about a new client.
        self._may_have_proxy = not direct and bool(urllib.request.getproxies())
        self._own = threading.local()
        self._lines: list[Line] = []

    def post(self, body: dict[str, Any], seconds: float) -> tuple[httpx.Response, bytes]:
        """The response to a chat request and its content; TryAgain if there is none."""
        try:
            answer, content = self._exchange("POST", "chat/completions", seconds, body)
        except httpx.TimeoutException as error:
            raise TryAgain(
                "transient", f"{self.url} did not answer within {seconds:g} s", lost=True
            ) from error
        except httpx.HTTPError as error:
            raise TryAgain(
                "transient", f"{self.url}: {type(error).__name__}: {error}", lost=True
            ) from error
        except _TooLong as error:
            raise TryAgain(
                "model", f"{self.url} answered with more than {_MOST_BYTES >> 20} MiB"
            ) from error
        return answer, content

    def models(self, seconds: float) -> dict[str, dict[str, Any]]:
        """What the server says about its models, by id; empty if it says nothing about them.

        Raises httpx.ConnectError if nothing answers at the address: not every server lists its
        models, and one may be slow or ask for another key.
        """
        try:
            answer, content = self._exchange("GET", "models", min(CHECK_SECONDS, seconds))
        except httpx.ConnectError:
            raise
        except (httpx.HTTPError, _TooLong):
            return {}
        return listed_models(content) if answer.status_code == 200 else {}

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
        self, method: str, path: str, seconds: float, body: dict[str, Any] | None = None
    ) -> tuple[httpx.Response, bytes]:
        """A response and its body; raises httpx.HTTPError or _TooLong if there is none in time."""
        content = bytearray()
        with (
            self._line().within(seconds, self._alarm) as line,
            line.client.stream(
                method,
                f"{self.url}/{path}",
                json=body,
                headers=self._headers,
                timeout=httpx.Timeout(seconds, connect=min(CHECK_SECONDS, seconds)),
                extensions={"trace": line.watch},
            ) as answer,
        ):
            for part in answer.iter_bytes():
                content += part
                if len(content) > _MOST_BYTES:
                    raise _TooLong
        return answer, bytes(content)

    def _line(self) -> Line:
        """This thread's own client, kept for its next request."""
        if not hasattr(self._own, "line"):
            with proxies_of_environment():
                client = httpx.Client(verify=self._tls, trust_env=self._may_have_proxy)
                self._own.line = Line(client, self._closing)
            self._lines.append(self._own.line)
        line: Line = self._own.line
        return line

    def cut(self) -> None:
        for line in list(self._lines):
            line.end()

    def close(self) -> None:
        for line in list(self._lines):
            line.client.close()


class _TooLong(Exception):
    pass
