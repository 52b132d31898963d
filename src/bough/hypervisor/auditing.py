"""`doctor --store`: check everything in the home. See audit/."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bough.audit.files import Look
from bough.audit.store import audit_store
from bough.hypervisor.half_made import HalfMade
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.lifetimes import Lifetimes
from bough.machines.plan import host_arch
from bough.machines.state import LIVE, State
from bough.paths import Home
from bough.progress import Report
from bough.qemu.binary import find_qemu
from bough.qemu.cgroup import find_groups
from bough.qemu.jail_probe import probe_jail


class Auditing:
    def __init__(self, home: Home, inventory: Inventory, lifetimes: Lifetimes, half_made: HalfMade) -> None:
        self._home = home
        self._inventory = inventory
        self._lifetimes = lifetimes
        self._half_made = half_made

    async def audit(self, *, repair: bool, report: Report) -> dict[str, Any]:
        """Return the faults on disk; with `repair`, make the safe repairs."""
        await self._lifetimes.wait_departed()
        live = {machine.id for machine in self._inventory if machine.state in LIVE}
        jail = await probe_jail(find_qemu(host_arch()), self._home)
        making = self._half_made.is_busy
        look = Look(self._home, live, making=making, group_bases=find_groups(), jail=jail)
        return await audit_store(look, self._keep_still, repair=repair, report=report)

    @asynccontextmanager
    async def _keep_still(self, machine_id: str) -> AsyncIterator[None]:
        """Refuse starts and the deletion of a machine until the block ends.

        Raises:
            Conflict: the machine runs, or another operation is under way.
        """
        states = (State.STOPPED, State.FAILED, State.SUSPENDED)
        async with self._inventory.find(machine_id).operation("being checked", *states):
            yield
