"""Change an existing machine of a project as the file has changed."""

from __future__ import annotations

from collections.abc import Collection

from bough.hypervisor.changed_settings import AT_REST, DISKS, changed_fields, plain_settings
from bough.hypervisor.lifecycle import Lifecycle
from bough.machines.disks.growth import check_room, grow_disks, grown_disks
from bough.machines.machine import Machine
from bough.machines.mounts import add_mount, remove_mount
from bough.machines.record import PortForward
from bough.machines.state import LIVE, State
from bough.mounts.source import resolve_mounts
from bough.paths import Home
from bough.progress import Progress, Report
from bough.qemu.host import read_host_facts
from bough.spec import MachineSpec


class MachineChanges:
    """Changes machines. A change that is interrupted is made again by the next `up`."""

    def __init__(self, home: Home, lifecycle: Lifecycle) -> None:
        self._home = home
        self._lifecycle = lifecycle

    async def change_stopped(
        self, machine: Machine, settings: Collection[str], wanted: MachineSpec, report: Report
    ) -> None:
        """Stop a machine and change its settings. Its disks stay.

        Raises:
            WrongState, Conflict: another operation is under way.
        """
        wanted = resolve_mounts(wanted, self._home.hidden)
        if machine.state is State.SUSPENDED:  # a stop would lose its memory unsaved
            await self._lifecycle.resume(machine, report=report)
        if machine.state in LIVE:
            report(Progress("stopping"))
            await self._lifecycle.stop(machine, report=report)
        async with machine.operation("being changed", *AT_REST):
            machine.change(**changed_fields(machine.record, settings, wanted))

    async def change_running(self, machine: Machine, settings: Collection[str], wanted: MachineSpec) -> None:
        """Change settings of a machine while it runs, or is off."""
        wanted = resolve_mounts(wanted, self._home.hidden)
        if "ports" in settings:
            await _change_ports(machine, wanted)
        if "mounts" in settings:
            await _change_mounts(machine, wanted)
        plain = plain_settings(settings, wanted)
        if plain:
            machine.change(spec=machine.record.spec.model_copy(update=plain))

    async def check_room(self, machine: Machine, wanted: MachineSpec) -> None:
        """Raise BeyondHost if the machine's disks would grow by more than the host has free."""
        if grown_disks(machine.record, wanted) != machine.record.disks:
            facts = await read_host_facts(self._home)
            check_room(machine.record, wanted, facts.free_disk_bytes)

    async def grow_disks(
        self, machine: Machine, settings: Collection[str], wanted: MachineSpec, report: Report
    ) -> None:
        """Give a machine that runs the larger disks of its file. Do nothing if the disks have these sizes.

        Args:
            settings: names of changed settings. With a disk among them an earlier call may have been
                interrupted.

        Raises:
            InvalidSpec: a disk would shrink.
            WrongState, Conflict: another operation is under way, or the machine has a fault.
            GuestRefused, QmpRefused, MachineFailed: see growth.grow_disks.
        """
        disks = grown_disks(machine.record, wanted)
        if disks == machine.record.disks and not DISKS & set(settings):
            return
        if machine.state is not State.RUNNING:
            return
        machine.faults.check_none("a larger disk")
        with machine.claim("being changed"):
            await grow_disks(machine, disks, report)
            sizes = {name: getattr(wanted, name) for name in DISKS}
            machine.change(spec=machine.record.spec.model_copy(update=sizes))


async def _change_ports(machine: Machine, wanted: MachineSpec) -> None:
    before = machine.record.spec.ports
    for port in before:
        if port not in wanted.ports:
            for forward in machine.record.ports:
                same = (forward.host, forward.guest_port) == (port.host, port.guest_port)
                if same and port.host_port in (0, forward.host_port):
                    await machine.forwards.remove(forward.host_port)
                    break
    added = [PortForward(**port.model_dump()) for port in wanted.ports if port not in before]
    if machine.state in LIVE:
        for forward in added:
            await machine.forwards.add(forward)
    else:
        machine.change(ports=[*machine.record.ports, *added])
    machine.change(spec=machine.record.spec.model_copy(update={"ports": wanted.ports}))


async def _change_mounts(machine: Machine, wanted: MachineSpec) -> None:
    for mount in machine.record.spec.mounts:
        if mount not in wanted.mounts:
            await remove_mount(machine, mount.target)
    for mount in wanted.mounts:
        if mount not in machine.record.spec.mounts:
            await add_mount(machine, mount)
