"""The spec of a project's machine, with the addresses that derive from the project."""

from __future__ import annotations

from bough.networks.addresses import choose_mac
from bough.projects.record import ProjectRecord
from bough.spec import MachineSpec, NicSpec
from bough.spec.nic import ISOLATED, UPLINK
from bough.spec.project.model import ProjectMachine


def machine_spec(record: ProjectRecord, role: str, machine: ProjectMachine) -> MachineSpec:
    """Return the spec to create the machine from.

    Ports without an address of their own are published on the project's loopback address. A card on a network
    has a MAC address that derives from project, network and role, so the machine has the same addresses in
    each home.
    """
    spec = machine.published_on(record.loopback)
    return spec.model_copy(update={"nics": _with_addresses(spec.nics, record.domain, role)})


def _with_addresses(cards: tuple[NicSpec, ...], domain: str, role: str) -> tuple[NicSpec, ...]:
    taken = [card.mac for card in cards if card.mac is not None]

    def with_address(card: NicSpec) -> NicSpec:
        if card.mac is not None or card.network in (UPLINK, ISOLATED):
            return card
        mac = choose_mac(domain, card.network, role, taken)
        taken.append(mac)
        return card.model_copy(update={"mac": mac})

    return tuple(with_address(card) for card in cards)
