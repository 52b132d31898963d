"""The network cards of a machine: chosen once from the spec, planned at each start."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Literal, Protocol

from bough.errors import NotFound
from bough.machines.mac_address import choose_mac_addresses
from bough.machines.record import MachineRecord, Nic
from bough.networks.switch_port import SwitchPort
from bough.qemu.plan import NicPlan
from bough.spec import MachineSpec
from bough.spec.nic import ISOLATED, UPLINK
from bough.spec.problems import Problem, did_you_mean, raise_if_any


class Networks(Protocol):
    """The networks between machines of one home."""

    def names(self, project: str | None = None) -> Collection[str]:
        """Return the names of the networks that a machine of the project may use."""
        ...

    def port(self, network: str, machine_id: str, nic: str, project: str | None = None) -> SwitchPort:
        """Return where the port of a machine's card is. Creates nothing.

        Args:
            project: id of the machine's project, whose networks come before the home's.

        Raises:
            NotFound: no such network.
        """
        ...


class NoNetworks:
    """The networks of a home without networks."""

    def names(self, project: str | None = None) -> Collection[str]:
        return ()

    def port(self, network: str, machine_id: str, nic: str, project: str | None = None) -> SwitchPort:
        raise NotFound(f"the machine has a network card on '{network}', and there is no such network")


class NowhereNetworks:
    """Networks of a throw-away machine: each port is a directory of the machine, without a switch.

    QEMU drops all frames, because no socket has the switch's name.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self, project: str | None = None) -> Collection[str]:
        return ()

    def port(self, network: str, machine_id: str, nic: str, project: str | None = None) -> SwitchPort:
        return SwitchPort(str(self._root / nic))


def resolve_nics(spec: MachineSpec, model: str = "virtio") -> list[Nic]:
    """Choose the cards of a new machine, for its whole life.

    Args:
        model: of cards for which the spec names no model.
    """
    cards = spec.network_cards
    addresses = choose_mac_addresses(card.mac for card in cards)
    return [
        Nic(mac=mac, model=card.model_for(model), place=place)
        for place, (card, mac) in enumerate(zip(cards, addresses, strict=True))
    ]


def renew_mac_addresses(nics: Sequence[Nic], spec: MachineSpec | None) -> list[Nic]:
    """Return the cards with new addresses, for a machine with a new identity.

    Args:
        spec: names the addresses that a user wants; None: all addresses are random.
    """
    wanted = [card.mac for card in spec.network_cards] if spec else [None] * len(nics)
    addresses = choose_mac_addresses(wanted)
    return [
        nic.model_copy(update={"mac": mac, "link": None}) for nic, mac in zip(nics, addresses, strict=True)
    ]


def check_networks(spec: MachineSpec, networks: Networks, project: str | None = None) -> None:
    """Raise InvalidSpec if a card is on a network that a machine of the project may not use."""
    known = networks.names(project)
    raise_if_any(
        [
            Problem(f"nics[{number}].network", f"no network '{card.network}'", _hint(card.network, known))
            for number, card in enumerate(spec.nics)
            if card.network not in (UPLINK, ISOLATED, *known)
        ]
    )


def _hint(name: str, known: Collection[str]) -> str | None:
    return did_you_mean(name, [UPLINK, ISOLATED, *known])


def plan_nics(
    spec: MachineSpec,
    nics: Sequence[Nic],
    machine_id: str,
    networks: Networks,
    project: str | None = None,
) -> tuple[NicPlan, ...]:
    """Return the cards and backends of the next start.

    Args:
        project: id of the machine's project.

    Raises:
        NotFound: no such network.
    """
    cards = zip(spec.network_cards, nics, strict=True)
    return tuple(_plan_nic(card.network, nic, machine_id, networks, project) for card, nic in cards)


def _plan_nic(network: str, nic: Nic, machine_id: str, networks: Networks, project: str | None) -> NicPlan:
    backend: Literal["passt", "user", "isolated", "switch"] = "switch"
    if network == UPLINK:
        backend = uplink_backend()
    elif network == ISOLATED:
        backend = "isolated"
    # "uplink" is the name in all versions of bough.
    name = "uplink" if nic.place == 0 and backend != "switch" else f"nic{nic.place}"
    return NicPlan(
        nic.mac,
        backend,
        nic.announces,
        id=name,
        network=network,
        model=nic.model,
        place=nic.place,
        port=networks.port(network, machine_id, name, project) if backend == "switch" else None,
    )


def uplink_backend() -> Literal["passt", "user"]:
    return "passt" if shutil.which("passt") else "user"


def render_links(record: MachineRecord) -> list[dict[str, Any]]:
    """Return the settings of the cards on networks between machines, for the agent's `set_links`."""
    # The resolver of the way outside knows all names except names of the other networks.
    links = [nic.link for nic in record.hardware.nics if nic.link is not None]
    leads = any(link.gateway for link in links) or UPLINK in (
        one.network for one in record.spec.network_cards
    )
    return [
        {
            "name": f"nic{nic.place}",
            "mac": nic.mac,
            "addresses": [str(nic.link.ipv4), str(nic.link.ipv6)],
            "mtu": nic.link.mtu,
            "resolver": str(nic.link.resolver),
            "domains": [*nic.link.domains, f"~{_reverse_domain(nic.link.ipv4.network)}"],
            "default": nic.link.gateway is not None or not leads,
            "gateways": [str(one) for one in (nic.link.gateway, nic.link.gateway6) if one is not None],
        }
        for nic in record.hardware.nics
        if nic.link is not None
    ]


def uplink_addresses(record: MachineRecord) -> list[str]:
    """Return the MAC addresses of the cards on the uplink."""
    cards = zip(record.spec.network_cards, record.hardware.nics, strict=False)
    return [nic.mac for card, nic in cards if card.network == UPLINK]


def _reverse_domain(network: IPv4Network) -> str:
    """Return the domain of the reverse names of a subnet: 0.1.10.in-addr.arpa for 10.1.0.0/24."""
    octets = str(network.network_address).split(".")[: network.prefixlen // 8]
    return ".".join([*octets[::-1], "in-addr", "arpa"])
