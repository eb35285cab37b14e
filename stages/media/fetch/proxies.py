"""Reports unusable proxies when a recipe is read, or when the environment's are used."""

from __future__ import annotations

import contextlib
import importlib.util
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from clipmill.schemas.errors import RowFailed, UsageError

_SCHEMES = ("http", "https", "socks5", "socks5h")
_OF_YT_DLP = (*_SCHEMES, "socks4", "socks4a", "socks")


def check_yt_dlp_proxy(proxy: object) -> None:
    """ValueError if yt-dlp can't use the proxy; an empty one means none."""
    if not isinstance(proxy, str):
        raise ValueError(f"proxy: expected a URL, not {proxy!r}")
    if proxy:
        _check(proxy, _OF_YT_DLP)


def check_proxy(proxy: str) -> None:
    """ValueError if nothing here can use `proxy`."""
    _check(proxy, _SCHEMES)
    if proxy.lower().startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ValueError(
            "SOCKS needs a package that is not installed: `pip install socksio`, or "
            "use an HTTP proxy"
        )


def _check(proxy: str, schemes: tuple[str, ...]) -> None:
    import httpx

    from clipmill.stages.media.fetch.turns import check_name

    example = "write it as http://HOST:PORT or socks5://HOST:PORT"
    try:
        url = httpx.URL(proxy)
    except httpx.InvalidURL as error:
        raise ValueError(f"is not the URL of a proxy: {error}; {example}") from error
    if url.scheme not in schemes:
        raise ValueError(
            f"the proxy scheme {url.scheme!r} is not supported; allowed: "
            f"{', '.join(schemes)}; {example}"
        )
    try:
        check_name(url.host)
    except RowFailed as error:
        raise ValueError(f"{error}; {example}") from error
    if not 0 < (1 if url.port is None else url.port) < 65536:
        raise ValueError(f"invalid port {url.port}; {example}")


@contextlib.contextmanager
def proxies_of_environment() -> Iterator[None]:
    """Context for creating an httpx client, which reads the environment's proxies: UsageError."""
    import httpx

    try:
        yield
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        raise _wrong_environment(error) from error


def check_environment() -> None:
    """UsageError for proxies of the environment that no library could use."""
    for name, proxy in urllib.request.getproxies().items():
        try:
            if name != "no":
                urlsplit(proxy if "://" in proxy else f"http://{proxy}").port  # noqa: B018 - read
        except ValueError as error:
            raise _wrong_environment(error) from error


def _wrong_environment(error: Exception) -> UsageError:
    return UsageError(
        "the proxies of the environment can't be used (HTTP_PROXY, HTTPS_PROXY, "
        f"ALL_PROXY, NO_PROXY, in either case): {error}; fix or unset them"
    )
