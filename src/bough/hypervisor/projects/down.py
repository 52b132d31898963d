"""`down` and `restart` of projects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from bough.errors import BoughError, InUse, InvalidSpec
from bough.hypervisor.lifecycle import Lifecycle
from bough.hypervisor.projects.failures import project_failed
from bough.hypervisor.projects.machines import ProjectMachines
from bough.hypervisor.projects.networks import ProjectNetworks
from bough.hypervisor.projects.operations import ProjectOperations
from bough.hypervisor.projects.registry import Projects
from bough.hypervisor.projects.removal import ProjectRemoval
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.machines.state import State
from bough.progress import Progress, Report, about, ignore_progress
from bough.projects.record import ProjectRecord
from bough.spec.project.model import ProjectSpec
from bough.spec.project.order import start_order
from bough.spec.project.parse import parse_project


class ProjectDown:
    """Stops, restarts and deletes projects."""

    def __init__(
        self,
        projects: Projects,
        networks: ProjectNetworks,
        machines: ProjectMachines,
        lifecycle: Lifecycle,
        operations: ProjectOperations,
        removal: ProjectRemoval,
        events: Events,
    ) -> None:
        self._projects = projects
        self._networks = networks
        self._machines = machines
        self._lifecycle = lifecycle
        self._operations = operations
        self._removal = removal
        self._events = events

    async def down(
        self,
        record: ProjectRecord,
        *,
        volumes: bool = False,
        force: bool = False,
        deadline_s: float | None = None,
        report: Report = ignore_progress,
    ) -> None:
        """Stop the machines of a project: each after all machines that depend on it.

        Args:
            volumes: delete machines, disks, networks and the project itself.
            force: cut the power.
            deadline_s: see Machine.stop.

        Raises:
            InUse: a machine of no role uses the project's networks; nothing was changed.
            ProjectFailed: machines could not be stopped or deleted. Another `down` goes on.
        """
        if volumes:
            self._check_unused(record)

        async def end(role: str, machine: Machine) -> None:
            told = about(role, report)
            if volumes:
                told(Progress("deleting"))
                await self._machines.delete(machine)
                told(Progress("deleted"))
                return
            # The memory of a suspended machine is kept: `up` resumes the machine.
            if machine.state is not State.SUSPENDED:
                told(Progress("stopping"))
                await self._lifecycle.stop(machine, force=force, deadline_s=deadline_s, report=told)
            told(Progress(str(machine.state)))

        with self._operations.run(record.name, "being stopped"):
            await self._each(record, self._order(record)[::-1], end, "down")
            if volumes:
                await self._removal.end_standby(record)
                await self._networks.delete_unused(record, None)
                self._projects.store.remove(record)
            self._events.emit("project down", machine="", name=record.name)

    async def restart(
        self,
        record: ProjectRecord,
        roles: Sequence[str] = (),
        *,
        deadline_s: float | None = None,
        report: Report = ignore_progress,
    ) -> None:
        """Restart machines in order: each after the machines that it depends on are healthy again.

        Raises:
            NotFound: no machine has such a role. ProjectFailed: machines did not come up again.
        """
        self._projects.choose(record, list(roles))
        spec = self._spec(record)

        async def again(role: str, machine: Machine) -> None:
            if roles and role not in roles:
                return
            told = about(role, report)
            await self._lifecycle.restart(machine, deadline_s=deadline_s, report=told)
            await machine.wait_ready(report=told)
            wanted = spec.machines.get(role) if spec is not None else None
            await self._machines.wait_healthy(record, role, wanted, told)
            told(Progress("up"))

        with self._operations.run(record.name, "being restarted"):
            await self._each(record, self._order(record), again, "up")

    def _check_unused(self, record: ProjectRecord) -> None:
        forks = [machine.name for machine in self._projects.forks_of_machines(record)]
        if forks:
            raise InUse(
                f"the networks of project '{record.name}' are in use by {', '.join(forks[:3])}",
                hint=f"delete it first: bough delete --force {forks[0]}",
                machines=forks,
            )

    def _order(self, record: ProjectRecord) -> list[list[str]]:
        """Return the roles of the present machines in generations, in the order of their start."""
        present, spec = self._projects.machines(record), self._spec(record)
        order = [] if spec is None else start_order(spec)
        known = {role for generation in order for role in generation}
        # Machines that the file does not name any more depend on no other.
        return [[role for role in present if role not in known], *order]

    def _spec(self, record: ProjectRecord) -> ProjectSpec | None:
        """Return the project's file; None: this version of bough does not accept it, so the order is lost."""
        try:
            return parse_project(record.spec, name=record.name)
        except InvalidSpec:
            return None

    async def _each(
        self,
        record: ProjectRecord,
        order: list[list[str]],
        work: Callable[[str, Machine], Awaitable[None]],
        what: str,
    ) -> None:
        """Do the work for all machines of a generation at once, one generation after the other."""
        failures: dict[str, BoughError] = {}

        async def one(role: str, machine: Machine) -> None:
            try:
                await work(role, machine)
            except BoughError as error:
                failures[role] = error

        for generation in order:
            present = self._projects.machines(record)
            chosen = [(role, present[role]) for role in generation if role in present]
            await asyncio.gather(*(one(role, machine) for role, machine in chosen))
        self._projects.settle(record)
        if failures:
            raise project_failed(record, what, failures)
