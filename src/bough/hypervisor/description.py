"""Descriptions of a machine for the API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from bough.machines.disks.creation import read_disk_usage
from bough.machines.machine import Machine
from bough.machines.mounts import describe_mounts
from bough.machines.record import MachineRecord
from bough.machines.state import LIVE, State
from bough.networks.uplink_state import describe_uplink
from bough.progress import Report, notice
from bough.spec.program import describe_container


def describe(machine: Machine) -> dict[str, Any]:
    """Return the API's description of a machine."""
    record = machine.record
    return {
        "id": record.id,
        "name": record.name,
        "state": str(record.state),
        "unreachable": machine.reach.trouble,
        "agent": machine.agent_state if record.state in LIVE else "none",
        "condition": machine.condition.found.to_dict() if machine.condition.found else None,
        "image": record.spec.image,
        "image_digest": record.image_digest,
        "created": record.created,
        "started": record.started if record.state in LIVE else None,
        "vcpus": record.spec.vcpus,
        "memory_bytes": record.spec.memory,
        "disk_bytes": read_disk_usage(machine.paths),
        "layers": machine.chains.depth,
        "nics": _describe_nics(record),
        "ports": [forward.model_dump() for forward in record.ports],
        "mounts": describe_mounts(machine),
        "accelerator": record.accelerator,
        "accelerator_note": record.accelerator_note,
        "hardware": record.hardware.model_dump(mode="json"),
        "jail": record.jail,
        "restarts": record.restarts.model_dump(),
        "failure": record.failure.model_dump() if record.failure else None,
        "first_boot": record.first_boot.model_dump(),
        "hostname": record.hostname,
        "identity_error": record.identity_error,
        "ephemeral": record.ephemeral,
        "project": record.project,
        "role": record.role,
        "suspended": record.suspended.model_dump() if record.suspended else None,
        "snapshot": record.snapshot,
        "forked_from": record.forked_from,
        "boot_id": machine.boot_id,
        "seen": machine.boot_sight.describe() if record.state in LIVE else None,
        "booted": machine.booted if record.state in LIVE and record.image_agent else None,
        "pid": machine.pid,
        "vnc": str(machine.paths.vnc_socket) if machine.pid and record.media.display else None,
        "container": describe_container(record.container),
        "program": _describe_program(record),
        "spec": record.spec.model_dump(mode="json"),
    }


def report_emulation(machines: Iterable[Machine], report: Report) -> None:
    """Report why machines are emulated on a host with /dev/kvm. Each reason is one notice."""
    for note in dict.fromkeys(machine.record.accelerator_note for machine in machines):
        if note is not None:
            report(notice(note))


def report_exposed(machine: Machine, report: Report) -> None:
    """Report the ports of the host that `publish_exposed` has chosen."""
    if machine.record.spec.publish_exposed:
        for port in machine.record.ports:
            report(notice(f"{port.host}:{port.host_port} is forwarded to port {port.guest_port}"))


def _describe_program(record: MachineRecord) -> dict[str, Any] | None:
    """Return what is known of the program. Only a live or suspended machine has one that waits or runs."""
    run = record.program
    if run is None or not (run.is_over or record.state in LIVE or record.state is State.SUSPENDED):
        return None
    return run.model_dump(mode="json")


def _describe_nics(record: MachineRecord) -> list[dict[str, Any]]:
    cards = zip(record.spec.network_cards, record.hardware.nics, strict=True)
    return [
        {
            "network": card.network,
            "mac": nic.mac,
            "model": nic.model,
            "ipv4": str(nic.link.ipv4.ip) if nic.link else None,
            "ipv6": str(nic.link.ipv6.ip) if nic.link else None,
        }
        for card, nic in cards
    ]


async def describe_fully(machine: Machine) -> dict[str, Any]:
    """Return `describe` and the results of a look at the host: too slow for each machine of a list."""
    uplink, network = None, _network_outside(machine.record)
    if machine.pid is not None and (network is not None or machine.record.spec.uplink is True):
        uplink = await asyncio.to_thread(describe_uplink, machine.id, network)
    return {**describe(machine), "uplink": uplink}


def _network_outside(record: MachineRecord) -> str | None:
    """Return the network through which the machine has reached the outside since its last start."""
    cards = zip(record.spec.network_cards, record.hardware.nics, strict=True)
    return next((card.network for card, nic in cards if nic.link is not None and nic.link.gateway), None)
