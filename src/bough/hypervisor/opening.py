"""Start and end of the service: sweep leftovers, read records, adopt machines; leave machines to the next
service.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from bough.audit.sweep import sweep_runtime, sweep_unfinished_writes
from bough.forks.loaded import LoadedForks
from bough.forks.pool import Pool
from bough.forks.standby import StandbyMachines
from bough.hypervisor.faults import Faults
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.lifetimes import EPHEMERAL_GRACE_S, Lifetimes
from bough.hypervisor.networks import Networks
from bough.hypervisor.projects.branches import ProjectBranches
from bough.hypervisor.projects.registry import Projects
from bough.hypervisor.projects.removal import ProjectRemoval
from bough.hypervisor.projects.snapshots import ProjectSnapshots
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.images.bootstrap import remove_build
from bough.machines.autostart import start_machines
from bough.machines.clock import ClockKeeper, follow_host
from bough.machines.disks.creation import remove_strays
from bough.machines.events import Events
from bough.machines.record import MachineRecord
from bough.paths import Home
from bough.snapshots.suspend import sweep_suspended
from bough.storage import remove_tree
from bough.tasks import Tasks

log = logging.getLogger("bough.hypervisor")


class Opening:
    def __init__(
        self,
        home: Home,
        events: Events,
        inventory: Inventory,
        lifetimes: Lifetimes,
        keeper: SnapshotKeeper,
        pool: Pool,
        standby: StandbyMachines,
        loaded: LoadedForks,
        networks: Networks,
        projects: Projects,
        faults: Faults,
        project_snapshots: ProjectSnapshots,
        project_branches: ProjectBranches,
        project_removal: ProjectRemoval,
    ) -> None:
        self._home = home
        self._events = events
        self._inventory = inventory
        self._lifetimes = lifetimes
        self._keeper = keeper
        self._pool = pool
        self._standby = standby
        self._loaded = loaded
        self._networks = networks
        self._faults = faults
        self._projects = projects
        self._project_snapshots = project_snapshots
        self._project_branches = project_branches
        self._project_removal = project_removal
        self._tasks = Tasks()

    async def open(self) -> None:
        """Remove half-made files, read every record, adopt every running machine."""
        self._home.create()
        self._keeper.tree.store.open()
        self._networks.store.open()
        self._projects.store.open()
        for stray in self._home.incoming.iterdir():
            await asyncio.to_thread(remove_build if stray.is_dir() else remove_tree, stray)
        sweep_unfinished_writes(self._home)
        sweep_runtime(self._home)
        for root in sorted(self._home.machines.iterdir()):
            await self._read(root)
        self._projects.open()
        async with asyncio.TaskGroup() as group:
            for machine in self._inventory:
                group.create_task(machine.recovery.adopt())
        self._faults.read()
        await self._networks.open()
        await self._faults.open()
        for machine in self._inventory:
            remove_strays(machine.paths, machine.record)
            sweep_suspended(machine.paths, machine.record)
        self._keeper.tree.settle()
        self._project_snapshots.open()
        self._keeper.drop_stale_booted()
        self._inventory.collect()
        await self._project_removal.open()
        for machine in self._inventory:
            if machine.record.ephemeral:
                # Standby machines of the last service have no client any more.
                grace_s = 0 if machine.record.standby else EPHEMERAL_GRACE_S
                self._lifetimes.expire_unless_held(machine.id, grace_s)
        self._project_branches.open()
        self._tasks.begin(follow_host(self._clocks), "follow the host's clock")
        self._tasks.begin(start_machines(self._inventory.listed(), self._events), "autostart")
        if self._home.spares.exists():  # of an earlier version
            self._home.spares.replace(self._home.standby)
        self._standby.open()

    async def _read(self, root: Path) -> None:
        paths = self._home.machine(root.name)
        if paths.record.exists() and not paths.record.stat().st_size:
            # An ephemeral machine's record, which is not synced, after a power loss.
            await asyncio.to_thread(remove_tree, root)
            return
        try:
            record = MachineRecord.read(paths)
        except (OSError, ValueError) as error:
            # A damaged record must not keep other machines from being used.
            log.error("the record of machine %s cannot be read: %s", root.name, error)
            self._inventory.unreadable[root.name] = str(error)
            self._keeper.tree.store.keep_all(root.name)
        else:
            self._inventory.add(record)

    def _clocks(self) -> list[ClockKeeper]:
        return [machine.clock for machine in self._inventory.present()]

    async def close(self) -> None:
        """Leave the machines to the next service; QEMU runs on. Standby and discarded machines
        are deleted.
        """
        await self._project_snapshots.close()
        await self._project_branches.close()
        await self._project_removal.close()
        await self._standby.close()
        await self._loaded.clear()
        await self._pool.close()
        for machine in self._inventory:
            if machine.record.standby:
                self._lifetimes.discard(machine)  # after a start under way has ended
        await self._lifetimes.wait_departed()
        await self._tasks.end()
        await self._lifetimes.end()
        await self._keeper.tree.close()
        await self._faults.close()
        await self._networks.close()
        await asyncio.gather(*(machine.let_go() for machine in self._inventory))
