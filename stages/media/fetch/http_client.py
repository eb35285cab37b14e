"""The HTTP client for downloads: spaces requests per host, and can refuse private addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpcore
import httpx

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.fetch.addresses import PrivateAddress, public_address, resolved
from clipmill.stages.media.fetch.http_answers import is_answer
from clipmill.stages.media.fetch.proxies import proxies_of_environment
from clipmill.stages.media.fetch.turns import Turns, take_turn

MAX_REDIRECTS = 10


def open_client(
    hosts: Turns, *, allowed: frozenset[tuple[str, int]] | None = None, **settings: Any
) -> httpx.Client:
    """An httpx client with these settings.

    `allowed` are the only private addresses that it may connect to; None allows all of them.
    """
    with proxies_of_environment():  # the recipe's own proxy was checked when the recipe was read
        client = httpx.Client(
            **settings,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            event_hooks=_hooks(hosts),
            # Each download has its own connections, so that they can be cut off.
            limits=httpx.Limits(max_keepalive_connections=0),
        )
    if allowed is not None:
        # httpx has no setting for the network backend of the transports that it creates.
        transports: list[Any] = [client._transport, *client._mounts.values()]
        for transport in transports:
            if transport is not None:
                transport._pool._network_backend = _Guarded(allowed)
    return client


def _hooks(hosts: Turns) -> dict[str, list[Callable[..., None]]]:
    """Event hooks that make each request, including redirects, wait its turn."""

    def asking(request: httpx.Request) -> None:
        if not request.url.host:
            raise RowFailed("permanent", f"a URL without a host: {request.url}")
        take_turn(hosts, str(request.url))

    def answered(response: httpx.Response) -> None:
        if is_answer(response.status_code):
            hosts.answered(response.request.url.host)

    return {"request": [asking], "response": [answered]}


class _Refused(PrivateAddress, httpcore.ConnectError):
    """A private address as an httpcore error; httpcore drops the causes of its errors."""


class _Guarded(httpcore.SyncBackend):
    """Connects to the address that was checked, even if the name then resolves to another one."""

    def __init__(self, allowed: frozenset[tuple[str, int]]) -> None:
        self._allowed = allowed

    def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        first: Exception | None = None
        try:
            addresses = resolved(host, port)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        for address in addresses:
            try:
                public_address(address, self._allowed)
                return super().connect_tcp(address[0], port, *args, **kwargs)
            except (PrivateAddress, httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                first = first or error
        if isinstance(first, PrivateAddress):
            raise _Refused(str(first)) from first
        raise first or httpcore.ConnectError(f"{host} has no address")
