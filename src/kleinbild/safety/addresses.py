"""Which addresses a request that a caller caused may reach: the public internet, and what the server's owner listed.

Deny-lists of "private" networks have been walked around for years through the forms that an IPv4 address takes inside
an IPv6 one, so this is an allow-list: an address is un-mapped first, and must then lie in globally routable space
(IANA's special-purpose registries; written out here because the standard library's answer differs by version).
Addresses at which clouds serve credentials stay closed whatever is listed.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAT64 = IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All of IPv6 that is handed out for public use. Outside it lie loopback, site-local (fec0::/10), unique local,
link-local, multicast, the IPv4-compatible form (::a.b.c.d) and local NAT64 (64:ff9b:1::/48)."""

_NOT_GLOBAL: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this network": 0.0.0.0 reaches this machine
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, and most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)

_METADATA: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "169.254.0.0/16",  # AWS, Azure, Google, Oracle, DigitalOcean, OpenStack; container credentials
        "fe80::/10",
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure's host, inside public space
        "192.0.0.192/32",  # Oracle, older
        "fd00:ec2::254/128",  # AWS
        "fd20:ce::254/128",  # Google
    )
)

METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})
"""Names that only a cloud's own machines resolve, to where credentials are served."""


def may_reach(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Whether `address`, un-mapped, is globally routable or in one of the `allowed` networks."""
    bare = unmapped(address)
    if _in_any(bare, _METADATA):
        return False
    return _in_any(bare, allowed) or _is_global(bare)


def unmapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 one (mapped, NAT64, 6to4) leads to; any other address as it is.

    Teredo and the IPv4-compatible form are not un-mapped: nothing public is reached through them any more, and they
    are refused as a whole.
    """
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def parse_address(text: str) -> Address | None:
    """An address as written in a URL or by a resolver, None where it is none. Zones (fe80::1%eth0) are kept off."""
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _is_global(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return not _in_any(address, _NOT_GLOBAL)


def _in_any(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)  # another version's networks contain nothing
