"""Which addresses count as private, independent of the version of Python."""

from __future__ import annotations

import ipaddress

import pytest

from clipmill.stages.media.fetch.addresses import is_private

PRIVATE_IPV4 = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.0.9",
    "192.0.0.192",
    "192.0.2.1",
    "192.31.196.1",
    "192.52.193.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.175.48.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]
PUBLIC_IPV4 = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.0.3.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
]


@pytest.mark.parametrize(
    "address",
    [
        *PRIVATE_IPV4,
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "feff::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "ff0e::1",
        "64:ff9b:1::a00:1",
        "64:ff9b:1:ffff::808:808",
        "100::1",
        "100:0:0:1::1",
        "200::1",
        "4000::1",
        "5f00::1",
        "2001::1",
        "2001:0:808:808::f7f7:f7f7",
        "2001:1::1",
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "2620:4f:8000::1",
        "3fff::1",
    ],
)
def test_address_is_private(address):
    assert is_private(address)


@pytest.mark.parametrize(
    "address",
    [
        *PUBLIC_IPV4,
        "2001:200::1",
        "2001:4860:4860::8888",
        "2606:4700::1111",
        "2a00:1450::1",
        "3ffe:ffff::1",
    ],
)
def test_address_is_public(address):
    assert not is_private(address)


@pytest.mark.parametrize(
    "form", ["::{}", "::ffff:{}", "::ffff:0:{}", "64:ff9b::{}", "2002:{}::", "2002:{}::1"]
)
def test_ipv6_form_is_as_private_as_its_ipv4_address(form):
    """Compatible, mapped, translated, NAT64, 6to4."""
    for addresses, expected in ((PRIVATE_IPV4, True), (PUBLIC_IPV4, False)):
        for inner in addresses:
            number = int(ipaddress.IPv4Address(inner))
            text = f"{number >> 16:x}:{number & 0xFFFF:x}"
            assert is_private(form.format(text)) == expected, form.format(text)
