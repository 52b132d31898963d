"""The record of a machine whose settings change: of a project's machine, and of any other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from bough.machines.mac_address import choose_mac_addresses
from bough.machines.record import MachineRecord, Nic, PortForward
from bough.machines.state import State
from bough.spec import MachineSpec, NicSpec
from bough.spec.nic import MOST_NICS
from bough.spec.program import exposed_ports

AT_REST = (State.STOPPED, State.FAILED)
#: These need more than another value in the spec of a running machine.
_APART = frozenset({"ports", "mounts", "nics", "uplink", "disk", "disks"})
#: These grow while the machine runs; see machines/disks/growth.py.
DISKS = frozenset({"disk", "disks"})


def plain_settings(settings: Collection[str], wanted: MachineSpec) -> dict[str, Any]:
    """Return the values of those settings that are only values in the record's spec."""
    names = [name for name in settings if name in MachineSpec.model_fields and name not in _APART]
    return {name: getattr(wanted, name) for name in names}


def changed_fields(record: MachineRecord, settings: Collection[str], wanted: MachineSpec) -> dict[str, Any]:
    """Return the fields of a record that change when a machine at rest gets these settings of a spec."""
    fields: dict[str, Any] = {}
    values = plain_settings(settings, wanted)
    values |= {name: getattr(wanted, name) for name in ("ports", "mounts") if name in settings}
    if {"nics", "uplink"} & set(settings):
        values |= {"nics": wanted.nics, "uplink": wanted.uplink}
        hardware = record.hardware
        nics = match_cards(
            record.spec.network_cards, hardware.nics, wanted.network_cards, model=hardware.nic_model
        )
        fields["hardware"] = hardware.model_copy(update={"nics": nics})
    if "ports" in settings:
        fields["ports"] = [PortForward(**port.model_dump()) for port in wanted.ports]
    if "publish_exposed" in settings and wanted.publish_exposed:
        ports = fields.get("ports", record.ports)
        fields["ports"] = [*ports, *_exposed(record, {port.guest_port for port in ports})]
    return {**fields, "spec": record.spec.model_copy(update=values)}


def _exposed(record: MachineRecord, forwarded: set[int]) -> list[PortForward]:
    """Return a forward for each exposed port that has none yet."""
    exposed = exposed_ports(record.container) if record.container is not None else []
    return [PortForward(host_port=0, guest_port=port) for port in exposed if port not in forwarded]


def match_cards(
    before: Sequence[NicSpec], nics: Sequence[Nic], wanted: Sequence[NicSpec], *, model: str = "virtio"
) -> list[Nic]:
    """Return a card of the hardware for each wanted card. A card that stays keeps its place and addresses.

    Args:
        model: of cards for which the user named no model.
    """
    left = list(zip(before, nics, strict=True))
    matched: list[Nic | None] = []
    for card in wanted:
        index = next(
            (
                number
                for number, (old, nic) in enumerate(left)
                if (old.network, nic.model) == (card.network, card.model_for(model))
                and card.mac in (None, nic.mac)
            ),
            None,
        )
        matched.append(None if index is None else left.pop(index)[1])
    places = iter(sorted(set(range(MOST_NICS)) - {nic.place for nic in matched if nic is not None}))
    macs = choose_mac_addresses(
        nic.mac if nic is not None else card.mac for nic, card in zip(matched, wanted, strict=True)
    )
    return [
        nic or Nic(mac=mac, model=card.model_for(model), place=next(places))
        for nic, card, mac in zip(matched, wanted, macs, strict=True)
    ]
