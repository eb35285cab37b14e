"""What the status and headers of an HTTP answer mean for the request and for its host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.fetch.problems import PassingProblem
from clipmill.stages.media.fetch.turns import Turns

_BUSY = (408, 425, 429)
# These concern the host as a whole, not the requested resource.
_OVERLOADED = (429, 503)
# Anything longer is not a real pause, and may not be a number.
_LONGEST_RETRY_AFTER_SECONDS = 1e10


def heed(hosts: Turns, status: int, url: str, headers: Mapping[str, str]) -> None:
    """Makes everybody wait for a host that requests it, whatever else the answer means."""
    if status in _OVERLOADED and not is_challenge(headers):
        seconds = retry_after_seconds(headers.get("Retry-After"))
        if seconds is not None and (host := urlsplit(url).hostname):
            hosts.hold(host, seconds, f"HTTP {status} from {host}")


def is_answer(status: int) -> bool:
    """Whether a status shows that the host works, even if it refuses the request."""
    return status < 500 and status not in _BUSY


def is_challenge(headers: Mapping[str, str]) -> bool:
    """Whether Cloudflare demands proof that the client is not a bot, whatever the status."""
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
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", value):
        return min(float(value), _LONGEST_RETRY_AFTER_SECONDS)
    try:
        at = parsedate_to_datetime(value)
        wait = at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, wait.total_seconds()), _LONGEST_RETRY_AFTER_SECONDS)
