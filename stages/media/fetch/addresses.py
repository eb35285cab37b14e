"""Refuses private addresses in untrusted URLs: this machine, its network, its cloud's metadata.

The address that a socket connects to is checked, after name resolution and every redirect, so DNS
rebinding doesn't get around it.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from clipmill.schemas.errors import RowFailed

# Non-public addresses, from IANA's registries of special-purpose and multicast addresses. Python's
# `is_global` covers only some of them, and which ones depends on its patch version.
_NOT_PUBLIC = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",  # private
        "100.64.0.0/10",  # shared by a provider's customers (carrier-grade NAT)
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, and the metadata service of most clouds
        "168.63.129.16/32",  # Azure's metadata service, in a public range
        "192.0.0.0/24",  # protocol assignments, and the metadata service of Oracle's cloud
        "192.0.2.0/24",
        "198.51.100.0/24",
        "203.0.113.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.31.196.0/24",
        "192.175.48.0/24",  # AS112, which answers for private names
        "192.52.193.0/24",  # multicast relays
        "198.18.0.0/15",  # benchmarks
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
# Public IPv6 addresses are all in this range; everything else is reserved or local to a network.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, including Teredo
        "2001:db8::/32",
        "3fff::/20",  # documentation
        "2620:4f:8000::/48",  # AS112
    )
)
# An address in these ranges leads to the IPv4 address in its last 32 bits.
_LEADS_TO_IPV4 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "::/96",  # IPv4-compatible
        "::ffff:0:0/96",  # IPv4-mapped
        "::ffff:0:0:0/96",  # IPv4-translated (SIIT)
        "64:ff9b::/96",  # NAT64
    )
)


class PrivateAddress(OSError):
    """A connection was refused because the address is private."""


def is_private(address: str) -> bool:
    """Whether an IP address is not public, also if IPv6 wraps an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = ip if isinstance(ip, ipaddress.IPv4Address) else _wrapped(ip)
    if inner is not None:
        return any(inner in network for network in _NOT_PUBLIC)
    return ip not in _GLOBAL_UNICAST or any(ip in network for network in _NOT_PUBLIC_IPV6)


def _wrapped(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if any(ip in network for network in _LEADS_TO_IPV4):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.sixtofour


def resolved(host: str, port: int, family: int = 0) -> list[tuple[Any, ...]]:
    """The numeric addresses of a host."""
    entries = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    return [entry[4] for entry in entries]


def public_address(
    address: tuple[Any, ...], allowed: frozenset[tuple[str, int]]
) -> tuple[Any, ...]:
    """The same numeric address; raises PrivateAddress if it is private.

    `allowed` are addresses and ports that may be private, such as those of proxies.
    """
    if address[:2] not in allowed and is_private(address[0]):
        raise PrivateAddress(f"{address[0]} is a private address")
    return address


def refused(error: PrivateAddress) -> RowFailed:
    return RowFailed("permanent", f"{error}, and download_videos.private_addresses is `refuse`")


def proxy_addresses(proxy: str | None) -> frozenset[tuple[str, int]]:
    """The addresses of the proxies in use: the given one, and the environment's."""
    found: set[tuple[str, int]] = set()
    by_environment = [url for scheme, url in urllib.request.getproxies().items() if scheme != "no"]
    for url in [proxy, *by_environment]:
        try:
            parts = urlsplit(url if url and "://" in url else f"http://{url or ''}")
            port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 1080)
            entries = (
                socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
                if url and parts.hostname
                else []
            )
        except (ValueError, OSError):
            continue  # not a URL, or an unknown host: the request itself will report it
        found.update((str(entry[4][0]), int(entry[4][1])) for entry in entries)
    return frozenset(found)
