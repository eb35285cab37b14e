"""Addresses that a stranger's URL must not lead to: this machine, its network, its cloud's data.

What counts is the address that a socket is connected to, after the name was resolved and after
every redirect, so a name that resolves to something else the second time gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.request
from typing import Any
from urllib.parse import urlsplit

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IPV4_COMPATIBLE = ipaddress.ip_network("::/96")


class PrivateAddress(OSError):
    """A connection that was not made, because the address is a private one."""


def is_private(address: str) -> bool:
    """Whether an IP address is no public one, also where IPv6 wraps an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = _wrapped(ip)
        if inner is not None and not (ip.is_loopback or ip.is_unspecified):
            return is_private(str(inner))
    return ip.is_multicast or not ip.is_global


def _wrapped(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if ip in _NAT64 or ip in _IPV4_COMPATIBLE:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


def check_address(sock: socket.socket, address: Any, allowed: frozenset[tuple[str, int]]) -> Any:
    """The address to connect `sock` to, as numbers; PrivateAddress where it is a private one.

    `allowed` are addresses and ports that may be private: those of proxies.
    """
    host, port = address[:2]
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        # A name, which `connect` would resolve by itself, after it was checked here.
        address = socket.getaddrinfo(host, port, sock.family, sock.type)[0][4]
        host, port = address[:2]
    if (host, port) not in allowed and is_private(host):
        raise PrivateAddress(f"{host} is a private address")
    return address


def proxy_addresses(proxy: str | None) -> frozenset[tuple[str, int]]:
    """Where the proxies are that requests go through: the given one, and the environment's."""
    found: set[tuple[str, int]] = set()
    by_environment = [url for scheme, url in urllib.request.getproxies().items() if scheme != "no"]
    for url in [proxy, *by_environment]:
        try:
            parts = urlsplit(url if "://" in (url or "") else f"http://{url or ''}")
            port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 1080)
            entries = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM) \
                if url and parts.hostname else []
        except (ValueError, OSError):
            continue  # no URL, or a host that is not there: the request itself will say so
        found.update((entry[4][0], entry[4][1]) for entry in entries)
    return frozenset(found)
