"""Problems that say something about a host, beyond the one video that met them."""

from __future__ import annotations

from typing import Any

from clipmill.schemas.errors import RowFailed


class PassingProblem(Exception):
    """A problem that may be temporary; `whole_host` if the host itself is overloaded.

    `host` is the host that reported it, if known.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        whole_host: bool = False,
        host: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.whole_host = whole_host
        self.host = host


class BotCheck(RowFailed):
    """A site treated the request as a bot's, and is likely to treat further ones the same way.

    `host` is the host that did, if known.
    """

    def __init__(self, message: str, host: str | None = None) -> None:
        super().__init__("blocked", message)
        self.host = host

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.host)


class LeftAlone(RowFailed):
    """The host was not contacted because of how it answered other requests."""
