"""Subnets and frame sizes of networks between machines."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from bough.errors import Conflict, InvalidInput

#: The addresses of each machine's uplink.
UPLINK_SUBNET = IPv4Network("10.0.2.0/24")
#: A subnet of a user has room for the switch, a machine, and the two addresses that no host has.
_MOST_BITS = 30
_LEAST_BITS = 8
#: Bytes of a frame's payload.
LEAST_MTU = 576
MOST_MTU = 65520


def parse_subnet(text: str) -> IPv4Network:
    """Raises InvalidInput: the text is no IPv4 network."""
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise InvalidInput(
            f"{text[:60]!r} is not a subnet: {error}",
            hint="write an IPv4 network like 10.1.0.0/24",
        ) from error


def unusable_address(address: IPv4Address, subnet: IPv4Network) -> str | None:
    """Return why no machine of the subnet can have the address; None: a machine can."""
    if address not in subnet:
        return f"the address {address} is not in the subnet {subnet}"
    if address in (subnet[0], subnet[-1]):
        return f"{address} is the first or the last address of {subnet}, which no machine has"
    if address == subnet[1]:
        return f"{address} is the address of the network's switch"
    return None


def check_subnet(subnet: IPv4Network, others: Iterable[IPv4Network]) -> None:
    """Check the subnet of a network, beside the subnets of other networks.

    Raises:
        InvalidInput: the subnet is too small, too large, or not private.
        Conflict: the subnet overlaps with another one.
    """
    if not _LEAST_BITS <= subnet.prefixlen <= _MOST_BITS:
        raise InvalidInput(
            f"a subnet has a prefix of /{_LEAST_BITS} to /{_MOST_BITS}, not /{subnet.prefixlen}"
        )
    if not subnet.is_private or subnet.is_loopback or subnet.is_link_local:
        raise InvalidInput(
            f"{subnet} is not a private subnet",
            hint="use a part of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16",
        )
    if subnet.overlaps(UPLINK_SUBNET):
        raise Conflict(f"{subnet} overlaps with {UPLINK_SUBNET}, the addresses of each machine's uplink")
    for other in others:
        if subnet.overlaps(other):
            raise Conflict(f"{subnet} overlaps with {other}, the subnet of another network")
