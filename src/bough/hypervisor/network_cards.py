"""The cards of machines on a network: their ports, addresses and names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from typing import Any

from bough.machines.record import MachineRecord, Nic, NicLink
from bough.networks.addresses import check_ipv4, choose_ipv4, ipv6_of
from bough.networks.names import domains_of, names_of
from bough.networks.record import NetworkRecord
from bough.networks.store import port_name
from bough.networks.uplink_filter import has_default_route
from bough.spec.nic import UPLINK


@dataclass(frozen=True)
class Way:
    """A machine's way to the outside through a network.

    Attributes:
        place: of the card.
        has_ipv6: the host reaches the outside by IPv6.
    """

    place: int
    has_ipv6: bool


@dataclass(frozen=True)
class Card:
    """A card of a machine on a network.

    Attributes:
        port: name of its port at the switch.
        names: DNS names on the network, the machine's own name first.
        nic: the card in the machine's record.
        wanted: the address that a user wants, or None.
        has_uplink: another card of the machine leads outside.
        has_agent: bough's agent configures the card.
    """

    network: NetworkRecord
    port: str
    names: tuple[str, ...]
    nic: Nic
    has_uplink: bool
    has_agent: bool
    wanted: IPv4Address | None = None

    @property
    def ipv4(self) -> IPv4Address | None:
        """Return the chosen address, or None before the machine's first start."""
        return None if self.nic.link is None else self.nic.link.ipv4.ip

    @property
    def is_way_out(self) -> bool:
        """Return whether the machine reaches the outside through this card, since its last start."""
        return self.nic.link is not None and self.nic.link.gateway is not None

    @property
    def uplink_addresses(self) -> tuple[str, ...]:
        """Return the addresses for the machine's uplink process; see uplink_filter.CARD."""
        own = self.network.addresses
        prefix, switch = str(own.subnet.prefixlen), str(own.switch_ipv4)
        return (str(self.ipv4), prefix, switch, switch, own.switch_mac)

    @property
    def reserved(self) -> set[IPv4Address]:
        """Return the addresses that no other machine gets: the chosen one, and the wanted one."""
        return {address for address in (self.ipv4, self.wanted) if address is not None}

    @property
    def ipv6(self) -> str:
        return str(ipv6_of(self.network.prefix6, self.nic.mac))

    def link(self, machine: str, taken: Collection[IPv4Address], *, way: Way | None = None) -> None:
        """Set the addresses of the card. An IPv4 address of the network that was chosen before stays.

        Args:
            machine: its name on the network, from which the address derives.
            taken: addresses of the network's other machines.
            way: set if the machine reaches the outside through this card.

        Raises:
            Conflict: the subnet is full, or another machine has the wanted address.
            InvalidInput: the wanted address is not one of the subnet's.
        """
        network, ipv4 = self.network, self.wanted or self.ipv4
        if self.wanted is not None and self.wanted != self.ipv4:
            check_ipv4(self.wanted, network.subnet, taken)
        if ipv4 is None or ipv4 not in network.subnet:
            ipv4 = choose_ipv4(network.subnet, machine, taken)
        self.nic.link = NicLink(
            ipv4=IPv4Interface((ipv4, network.subnet.prefixlen)),
            ipv6=IPv6Interface((self.ipv6, network.prefix6.prefixlen)),
            mtu=network.mtu,
            resolver=network.addresses.switch_ipv4,
            domains=list(domains_of(network.name, domain=network.domain)),
            gateway=network.addresses.switch_ipv4 if way is not None else None,
            gateway6=network.addresses.router6 if way is not None and way.has_ipv6 else None,
        )

    def member(self) -> dict[str, Any]:
        """Return what the switch has to know; see switch/settings.py."""
        return {
            "port": self.port,
            "mac": self.nic.mac,
            "addresses": [str(self.ipv4), self.ipv6],
            "names": list(self.names),
            "uplink": self.has_uplink,
            "gateway": self.is_way_out,
            "gateway6": self.nic.link is not None and self.nic.link.gateway6 is not None,
            "advertised": not self.has_agent,
        }

    def describe(self) -> dict[str, Any]:
        """Return what the API says about the card."""
        return {
            "mac": self.nic.mac,
            "ipv4": str(self.ipv4) if self.ipv4 is not None else None,
            "ipv6": self.ipv6,
            "names": list(self.names),
        }


def cards_on(network: NetworkRecord, machine: MachineRecord) -> list[Card]:
    """Return the cards of a machine on the network."""
    wanted = machine.spec.network_cards
    pairs = list(zip(wanted, machine.hardware.nics, strict=True))
    leading = [nic for card, nic in pairs if card.network == UPLINK or (nic.link and nic.link.gateway)]
    return [
        Card(
            network,
            port_name(machine.id, f"nic{nic.place}"),
            names_of(machine.network_name, network.name, domain=network.domain, aliases=card.aliases),
            nic,
            any(one is not nic for one in leading),
            machine.image_agent,
            IPv4Address(card.ipv4) if card.ipv4 is not None else None,
        )
        for card, nic in pairs
        if card.network == network.name
    ]


def way_out(machine: MachineRecord, networks: Mapping[str, NetworkRecord]) -> Way | None:
    """Return the machine's way to the outside through a network: its first card on a network with an uplink.

    A machine with a card on the uplink has no such way: None.

    Args:
        networks: those of the machine's cards, by name.
    """
    pairs = zip(machine.spec.network_cards, machine.hardware.nics, strict=True)
    names = {nic.place: card.network for card, nic in pairs}
    if UPLINK in names.values():
        return None
    places = [place for place, name in names.items() if name in networks and not networks[name].internal]
    return Way(places[0], has_default_route("/proc/net/ipv6_route")) if places else None
