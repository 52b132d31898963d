"""Removal of projects as a whole: half-made forks, and ephemeral projects without a client."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from bough.errors import BoughError, Conflict, DeadlineExceeded, NotFound
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.lifetimes import Lifetimes
from bough.hypervisor.networks import Networks
from bough.hypervisor.projects.operations import ProjectOperations
from bough.hypervisor.projects.registry import Projects
from bough.machines.machine import Machine
from bough.projects.record import ProjectRecord
from bough.tasks import Tasks, all_or_first_error, finish

log = logging.getLogger("bough.hypervisor")

#: Another operation on a machine ends first. Some write the whole memory.
_MOST_S = 120.0
_AGAIN_S = 0.1


class ProjectRemoval:
    """Removes projects. The next start of the service completes an interrupted removal."""

    def __init__(
        self,
        projects: Projects,
        operations: ProjectOperations,
        inventory: Inventory,
        lifetimes: Lifetimes,
        networks: Networks,
    ) -> None:
        self._projects = projects
        self._operations = operations
        self._inventory = inventory
        self._lifetimes = lifetimes
        self._networks = networks
        #: Ids of projects whose removal is under way.
        self._leaving: set[str] = set()
        self._tasks = Tasks()

    async def open(self) -> None:
        """Remove what an earlier service left: half-made projects, and ephemeral projects without machines.

        Call after the machines and switches were adopted.
        """
        for record in list(self._projects.store):
            is_empty = record.ephemeral and not self._inventory.machines_of(record.id)
            if not record.made or is_empty:
                log.info("project %s was not completed, and is removed", record.name)
                await self._try_to_remove(record)
        await self._delete_orphaned_networks()

    async def _delete_orphaned_networks(self) -> None:
        """Delete networks of deleted projects: a standby machine may have kept a network in use."""
        projects = self._projects.store
        for network in list(self._networks.store):
            owner = network.project
            if owner is None or projects.get(owner) is not None or owner in projects.unreadable:
                continue
            with contextlib.suppress(BoughError, OSError):  # still in use: the next service tries again
                await self._networks.delete(network.id)

    async def close(self) -> None:
        await self._tasks.end()

    async def remove(self, record: ProjectRecord) -> None:
        """Delete a project with its machines, disks and networks. A cancelled call completes the removal.

        Raises BoughError, OSError: a part could not be removed.
        """
        await finish(self._remove(record))

    async def discard(self, record: ProjectRecord) -> None:
        """Delete an ephemeral project at once.

        Raises:
            Conflict: the project is kept, or an operation is under way.
        """
        if not record.ephemeral:
            raise Conflict(
                f"project '{record.name}' is kept", hint=f"bough down --volumes --project {record.name}"
            )
        with self._operations.run(record.name, "being deleted"):
            await self.remove(record)

    async def end_standby(self, record: ProjectRecord) -> None:
        """Delete the machines that wait for later forks of a project's machines, on the project's networks.

        A machine that cannot be deleted now keeps its networks, which are deleted with the machine.
        """
        members = [one.record for one in self._inventory if one.record.project == record.id]
        waiting = [one.id for one in members if one.standby and not one.throw_away]
        with contextlib.suppress(BoughError):
            await all_or_first_error(
                self._delete(machine) for machine in map(self._inventory.get, waiting) if machine is not None
            )

    def follow(self, machine: Machine) -> None:
        """Remove an ephemeral project after the removal of one of its machines, and the networks of a deleted
        project after the removal of the last machine on them.
        """
        project = machine.record.project
        record = self._projects.store.get(project)
        if record is None and project is not None:
            self._tasks.begin(self._delete_orphaned_networks(), "delete networks of deleted projects")
        if record is None or not record.ephemeral or machine.record.role is None:
            return
        if record.id not in self._leaving and not self._operations.is_busy(record.name):
            self._tasks.begin(self._try_to_remove(record), f"remove {record.name}")

    async def _try_to_remove(self, record: ProjectRecord) -> None:
        try:
            await self.remove(record)
        except (BoughError, OSError) as error:
            log.warning("project %s is not removed, the next service tries again: %s", record.name, error)

    async def _remove(self, record: ProjectRecord) -> None:
        if record.id in self._leaving:
            return
        self._leaving.add(record.id)
        try:
            if record.made:
                # With a full disk, the files are deleted all the same.
                with contextlib.suppress(BoughError, OSError):
                    record = self._projects.store.update(record, made=False)
            members = [one for one in self._inventory if one.record.project == record.id]
            await all_or_first_error(self._delete(machine) for machine in members)
            for network in self._projects.networks(record):
                await self._networks.delete(network.id)
            self._projects.store.remove(record)
        finally:
            self._leaving.discard(record.id)

    async def _delete(self, machine: Machine) -> None:
        try:
            async with asyncio.timeout(_MOST_S):
                while True:
                    try:
                        await self._lifetimes.delete(machine, force=True)
                    except NotFound:
                        return
                    except Conflict:  # another operation, perhaps another deletion
                        await asyncio.sleep(_AGAIN_S)
                    else:
                        return
        except TimeoutError as error:
            raise DeadlineExceeded(f"machine '{machine.name}' was busy for {_MOST_S:g} s") from error
