"""Operations on one machine: start, stop, pause, resume, suspend, restart, rename, mount."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from bough.hypervisor.half_made import HalfMade
from bough.hypervisor.names import Names
from bough.machines.condition import Kind
from bough.machines.machine import Machine
from bough.machines.mounts import add_mount
from bough.machines.state import State
from bough.mounts.source import resolve_mount
from bough.paths import Home
from bough.progress import Report, ignore_progress
from bough.snapshots.suspend import resume, suspend
from bough.spec import parse_mount


class Lifecycle:
    """Operations on one machine. An operation without work to do succeeds and says so: scripts may repeat a
    call.
    """

    def __init__(self, home: Home, names: Names, half_made: HalfMade) -> None:
        self._home = home
        self._names = names
        self._half_made = half_made

    async def start(self, machine: Machine, *, cold: bool = False, report: Report = ignore_progress) -> bool:
        """Start a machine until its vCPUs run. Return whether the machine ran already.

        Args:
            cold: discard the memory of a suspended machine and boot.
        """
        if await _is_already(machine, "starting", State.RUNNING):
            return True
        if machine.state is not State.SUSPENDED:
            await machine.start(report)
        elif cold:
            with machine.claim("starting"):
                await machine.stop(force=True)
                await machine.start(report)
        else:
            await resume(machine, report)
        return False

    async def stop(
        self,
        machine: Machine,
        *,
        deadline_s: float | None = None,
        force: bool = False,
        report: Report = ignore_progress,
    ) -> Literal["guest", "power", "already"]:
        """Stop a machine; see Machine.stop. "already": the machine was off, and no restart is pending."""
        at_rest = [State.STOPPED] if machine.record.restarts.next else [State.STOPPED, State.FAILED]
        if await _is_already(machine, "stopping", *at_rest):
            return "already"
        how = await machine.stop(deadline_s=deadline_s, force=force, report=report)
        return "guest" if how == "guest" else "power"

    async def pause(self, machine: Machine) -> bool:
        """Stop the vCPUs. Return whether the machine was paused already."""
        if await _is_already(machine, "pausing", State.PAUSED):
            return True
        await machine.pause()
        return False

    async def suspend(self, machine: Machine, *, report: Report = ignore_progress) -> bool:
        """Write the memory to disk and end QEMU. Return whether the machine was suspended already."""
        if await _is_already(machine, "being suspended", State.SUSPENDED):
            return True
        with self._half_made.working():
            await suspend(machine, self._home, report)
        return False

    async def resume(self, machine: Machine, *, report: Report = ignore_progress) -> bool:
        """Let a paused or suspended machine run; wake a sleeping guest. Return whether the machine ran
        already.
        """
        if machine.condition.is_now(Kind.ASLEEP):
            await machine.condition.wake()
            return False
        if await _is_already(machine, "resuming", State.RUNNING):
            return True
        if machine.state is State.SUSPENDED:
            await resume(machine, report)
        else:
            await machine.resume()
        return False

    async def restart(
        self, machine: Machine, *, deadline_s: float | None = None, report: Report = ignore_progress
    ) -> None:
        """Stop and start a machine: the guest sees a power cycle. A cancelled call does not interrupt the
        restart.
        """

        async def work() -> None:
            with machine.claim("being restarted"):
                await machine.stop(deadline_s=deadline_s, report=report)
                await machine.start(report)

        await asyncio.shield(machine.own(work(), "restart"))

    def rename(self, machine: Machine, name: str) -> None:
        """Rename a machine.

        Raises:
            NameTaken, InvalidInput
        """
        if name == machine.name:
            return
        with self._names.reserve(name):
            machine.rename(name)

    async def mount(self, machine: Machine, data: dict[str, Any]) -> None:
        """Share a directory; see machines.mounts.add_mount."""
        await add_mount(machine, resolve_mount(parse_mount(data), self._home.hidden))


async def _is_already(machine: Machine, doing: str, *states: State) -> bool:
    """Return whether the machine is in one of the states and stays there: no operation is under way.

    Raises:
        Conflict, NotFound: as a transition does.
    """
    if machine.state not in states:
        return False
    async with machine.operation(doing, *states):
        return True
