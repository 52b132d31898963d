"""Addresses of networks and of the machines on them.

Each address derives from names: the project, the network and the machine. So an address is the same after
every start and on every host, and no lease is kept. Where a derived address is taken, the next
free address is chosen. The records of networks and machines keep the chosen addresses.

    subnet        a /24 of 10.160.0.0/11, which is apart from the uplink's 10.0.2.0/24
    prefix6       a /64 of fd00::/8, unique local addresses (RFC 4193)
    MAC address   52:54 and four bytes
    IPv6 address  the prefix and the MAC address (RFC 4291, appendix A), as guests derive theirs
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from bough.errors import Conflict, InvalidInput
from bough.spec.subnet import check_subnet, unusable_address

_POOL = IPv4Network("10.160.0.0/11")
_SUBNET_BITS = 24
_LINK_LOCAL = IPv6Network("fe80::/64")
_MAC_PREFIX = bytes.fromhex("5254")
_SEPARATOR = "\0"


@dataclass(frozen=True)
class NetworkAddresses:
    """The address ranges of a network, and the switch's own addresses in them."""

    subnet: IPv4Network
    prefix6: IPv6Network
    switch_mac: str

    @property
    def switch_ipv4(self) -> IPv4Address:
        return self.subnet[1]

    @property
    def router6(self) -> IPv6Address:
        """Return the switch's address as a router: a link-local one (RFC 4861)."""
        return ipv6_of(_LINK_LOCAL, self.switch_mac)

    @property
    def switch_ipv6(self) -> IPv6Address:
        return ipv6_of(self.prefix6, self.switch_mac)


def choose_network(
    project: str | None, network: str, taken: Iterable[IPv4Network], *, subnet: IPv4Network | None = None
) -> NetworkAddresses:
    """Return the addresses of a new network.

    Args:
        taken: subnets of the home's other networks.
        subnet: the user's choice.

    Raises:
        InvalidInput: the subnet is too small or too large.
        Conflict: the subnet overlaps with another one, or none is free.
    """
    others = list(taken)
    key = (project or "", network)
    if subnet is not None:
        check_subnet(subnet, others)
    return NetworkAddresses(
        subnet=subnet or _free_subnet(key, others),
        prefix6=IPv6Network((b"\xfd" + _digest("prefix", *key)[:7] + bytes(8), 64)),
        switch_mac=choose_mac(project, network, "", ()),
    )


def choose_mac(project: str | None, network: str, machine: str, taken: Collection[str]) -> str:
    """Return the MAC address of a machine's card on a network; the machine "" is the switch."""
    number = 0
    while True:
        words = (project or "", network, machine, *([str(number)] if number else []))
        mac = (_MAC_PREFIX + _digest("mac", *words)[:4]).hex(":")
        if mac not in taken:
            return mac
        number += 1


def choose_ipv4(subnet: IPv4Network, machine: str, taken: Collection[IPv4Address]) -> IPv4Address:
    """Return the address of a machine on a network.

    Args:
        taken: addresses of the network's other machines.

    Raises:
        Conflict: the subnet is full.
    """
    # The switch has the first address. No host has the network's own address or the broadcast address.
    room = subnet.num_addresses - 3
    start = _number("host", machine) % room
    for step in range(room):
        address = subnet[2 + (start + step) % room]
        if address not in taken:
            return address
    raise Conflict(
        f"the subnet {subnet} is full: it has room for {room} machines",
        hint="create a network with a larger --subnet",
    )


def check_ipv4(address: IPv4Address, subnet: IPv4Network, taken: Collection[IPv4Address]) -> None:
    """Check an address that a user wants for a machine.

    Raises:
        InvalidInput: no machine of the subnet can have the address.
        Conflict: another machine has the address.
    """
    if (problem := unusable_address(address, subnet)) is not None:
        raise InvalidInput(problem, hint=f"the subnet has {subnet[2]} to {subnet[-2]} for machines")
    if address in taken:
        raise Conflict(f"another machine of the network has the address {address}")


def ipv6_of(prefix6: IPv6Network, mac: str) -> IPv6Address:
    """Return the IPv6 address of a card in the prefix, derived from the card's MAC address."""
    octets = bytes.fromhex(mac.replace(":", ""))
    host = bytes((octets[0] ^ 2,)) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(prefix6.network_address.packed[:8] + host)


def _free_subnet(key: tuple[str, str], others: list[IPv4Network]) -> IPv4Network:
    count = 1 << (_SUBNET_BITS - _POOL.prefixlen)
    size = 1 << (32 - _SUBNET_BITS)
    start = _number("subnet", *key) % count
    for step in range(count):
        first = int(_POOL.network_address) + (start + step) % count * size
        subnet = IPv4Network((first, _SUBNET_BITS))
        if not any(subnet.overlaps(other) for other in others):
            return subnet
    raise Conflict(f"no subnet of {_POOL} is free", hint="delete a network, or give one with --subnet")


def _digest(*words: str) -> bytes:
    return hashlib.sha256(_SEPARATOR.join(words).encode()).digest()


def _number(*words: str) -> int:
    return int.from_bytes(_digest(*words)[:8], "big")
