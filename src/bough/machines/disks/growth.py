"""Grow the disks of a running machine: in QEMU, then the root file system in the guest.

QEMU grows the file of the disk, in its jail, and tells the guest. The guest sees a larger virtio disk at
once, and other disks at its next boot. The record has the new size first. A service that is killed in between
leaves a larger disk in the record than in QEMU, which does no harm. A repeated call grows the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from bough.errors import BeyondHost, InvalidSpec, MachineFailed
from bough.guest.channel import AgentChannel
from bough.machines.disks.nodes import read_tops
from bough.machines.first_boot import GROW_TIMEOUT_S
from bough.machines.record import MachineDisk, MachineRecord
from bough.progress import Progress, Report
from bough.qemu.qmp import Qmp
from bough.spec import MachineSpec
from bough.units import format_size

#: A guest sees the new size some ms after QEMU has told it.
_LOOKS, _LOOK_S = 10, 0.2


class Chains(Protocol):
    async def give_way(self) -> None: ...
    def look(self) -> None: ...


class Host(Protocol):
    """The parts of a machine whose disks grow."""

    @property
    def record(self) -> MachineRecord: ...
    @property
    def chains(self) -> Chains: ...
    def qmp(self) -> Qmp: ...
    def channel(self) -> AgentChannel | None: ...
    def change(self, **fields: Any) -> None: ...


def grown_disks(record: MachineRecord, wanted: MachineSpec) -> list[MachineDisk]:
    """Return the disks of a machine with the sizes of a spec. A size that the spec leaves out stays.

    Raises:
        InvalidSpec: a disk would shrink.
    """
    first = [] if record.media.root == "none" else [wanted.disk]
    sizes = [*first, *(disk.size for disk in wanted.disks)]
    found = []
    for number, disk in enumerate(record.disks):
        size = (sizes[number] if number < len(sizes) else None) or disk.size_bytes
        if size < disk.size_bytes:
            raise InvalidSpec(
                f"disk {number} would shrink from {format_size(disk.size_bytes)} to {format_size(size)}",
                hint="a disk only grows",
            )
        found.append(disk.model_copy(update={"size_bytes": size}))
    return found


def check_room(record: MachineRecord, wanted: MachineSpec, free_bytes: int) -> None:
    """Raise BeyondHost if the disks grow by more than the host has free. Raises InvalidSpec, too."""
    growth = sum(
        new.size_bytes - old.size_bytes
        for old, new in zip(record.disks, grown_disks(record, wanted), strict=True)
    )
    if growth > free_bytes:
        message = f"{format_size(growth)} more requested, the host has {format_size(free_bytes)} free"
        raise BeyondHost(
            f"disk: {message}",
            hint="request less, or override with --force",
            problems=[{"place": "disk", "message": message, "hint": None}],
        )


async def grow_disks(machine: Host, disks: Sequence[MachineDisk], report: Report) -> None:
    """Give a running machine disks of these sizes, and let its root file system use all of the first.

    Raises:
        GuestRefused: the disks have grown; the guest could not grow its file system.
        QmpRefused, MachineFailed: QEMU did not grow a disk.
    """
    report(Progress("growing the disk"))
    machine.change(disks=list(disks))
    await machine.chains.give_way()  # QEMU grows no disk during a merge
    try:
        await _resize(machine.qmp(), disks)
    finally:
        machine.chains.look()
    await _grow_root(machine.channel())


async def _resize(qmp: Qmp, disks: Sequence[MachineDisk]) -> None:
    tops, sizes = await read_tops(qmp), await _sizes(qmp)
    for number, disk in enumerate(disks):
        top = tops.get(f"disk{number}")
        if top is None:
            raise MachineFailed(f"QEMU reports no disk {number}")
        if sizes.get(top.name, 0) < disk.size_bytes:
            arguments: dict[str, Any] = {"node-name": top.name, "size": disk.size_bytes}
            await qmp.execute("block_resize", **arguments)


async def _sizes(qmp: Qmp) -> dict[str, int]:
    """Return node -> its size in bytes."""
    sizes = {}
    for node in await qmp.query_list("query-named-block-nodes", flat=True):
        image = node.get("image")
        size = image.get("virtual-size") if isinstance(image, dict) else None
        if isinstance(size, int):
            sizes[str(node.get("node-name"))] = size
    return sizes


async def _grow_root(channel: AgentChannel | None) -> None:
    """Let the root file system use the whole disk. A guest without bough's agent does it by itself."""
    if channel is None:
        return
    for _ in range(_LOOKS):
        told = await channel.call("grow_root", {}, timeout_s=GROW_TIMEOUT_S)
        if told.get("grown"):
            return
        await asyncio.sleep(_LOOK_S)
