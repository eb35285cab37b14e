"""The interface by which requests take turns at hosts."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit

from clipmill.schemas.errors import RowFailed

_MOST_NAME_CHARACTERS = 253


class Turns(Protocol):
    """Spaces the requests per host; see `Hosts`."""

    def wait(self, host: str) -> None: ...

    def hold(self, host: str, seconds: float, said: str) -> None: ...

    def answered(self, host: str) -> None: ...


def take_turn(hosts: Turns, url: str) -> None:
    """Waits until the host of `url` may be contacted; RowFailed for an impossible host."""
    if host := host_of(url):
        hosts.wait(host)


def host_of(url: str) -> str | None:
    """Raises RowFailed if `url` has an impossible host or port."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # raises for an invalid port
        if host and not host.isascii():
            _check_spelling(url)
    except ValueError as error:
        raise RowFailed("permanent", f"not a URL: {url[:200]!r}: {error}") from error
    if host:
        check_name(host)
    return host


def _check_spelling(url: str) -> None:
    """ValueError if the host of `url` has no spelling on the network."""
    import httpx

    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(error) from error


def check_name(host: str) -> None:
    """Raises RowFailed for an invalid host name, which Python reports in terms of its codec."""
    labels = host.removesuffix(".").split(".")
    if len(host) > _MOST_NAME_CHARACTERS or not all(0 < len(one) <= 63 for one in labels):
        raise RowFailed(
            "permanent",
            f"{host[:100]!r} can't be a host name: it needs 1 to 63 "
            f"characters between dots, and at most {_MOST_NAME_CHARACTERS} in all",
        )
