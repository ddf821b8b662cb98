"""Which addresses a callback may connect to: public ones, and private ones on request only.

A name is resolved once, every address that it has is checked, and the socket is made for a checked
address (`guard`). So a name that resolves differently a moment later gains nothing.
"""

from __future__ import annotations

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NEVER: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        # This host, link-local (the metadata of clouds too), and what no unicast address is.
        "0.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/128",
        "fe80::/10",
        "ff00::/8",
        # Ways to reach an IPv4 address by another name; some versions of Python call them global.
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
        "192.88.99.0/24",
        "192.0.0.0/24",
        # The metadata of clouds, with credentials, at addresses that are not link-local: Alibaba,
        # Azure, AWS (a network of its own services), Google, Oracle and Scaleway.
        "100.100.100.200/32",
        "168.63.129.16/32",
        "fd00:ec2::/32",
        "fd20:ce::254/128",
        "fd00:c1::a9fe:a9fe/128",
        "fd00:42::42/128",
    )
)
_INNER: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "100.64.0.0/10")
)
_V4: Final = 4
_COMPATIBLE: Final = ipaddress.ip_network("::/96")
_UNICAST: Final = ipaddress.ip_network("2000::/3")
"""All public IPv6 addresses; Python calls those of networks that are not in use global too."""


def is_allowed(text: str, *, private: bool) -> bool:
    """Return whether a callback may connect to an address.

    With `private` also to this machine, and to the usual private networks.
    """
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = _plain(address)
    # No address is in a network of the other version.
    if any(address in network for network in _NEVER):
        return False
    if address.is_loopback or any(address in network for network in _INNER):
        return private
    return address.is_global and (address.version == _V4 or address in _UNICAST)


def _plain(address: ipaddress.IPv6Address) -> Address:
    """Return the IPv4 address that a mapped or compatible one stands for, else the address."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _COMPATIBLE and not (address.is_loopback or address.is_unspecified):
        return ipaddress.IPv4Address(int(address))
    return address
