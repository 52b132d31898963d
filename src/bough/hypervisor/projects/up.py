"""`up`: bring the machines and networks of a file up, and change only what has changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bough.errors import BoughError, Conflict, DeadlineExceeded
from bough.hypervisor.projects.failures import project_failed
from bough.hypervisor.projects.holds import ProjectHolds
from bough.hypervisor.projects.images import ProjectImages
from bough.hypervisor.projects.machines import ProjectMachines, StartOptions
from bough.hypervisor.projects.networks import ProjectNetworks
from bough.hypervisor.projects.operations import ProjectOperations
from bough.hypervisor.projects.plan import ProjectPlanner, Step, Wish
from bough.hypervisor.projects.registry import Projects
from bough.hypervisor.projects.removal import ProjectRemoval
from bough.hypervisor.projects.startup import Startup, completing_roles
from bough.machines.events import Events
from bough.machines.record import now
from bough.progress import Progress, Report, about, ignore_progress
from bough.projects.loopback import choose_loopback
from bough.projects.record import ProjectRecord, new_project_id
from bough.spec import check_name
from bough.spec.project.order import choose_roles
from bough.spec.project.parse import parse_project

#: More starts at once only wait for each other.
_STARTS_AT_ONCE = 8


@dataclass(frozen=True)
class UpOrder:
    """A request of `up`.

    Attributes:
        data: content of the file, as `parse_project` takes it.
        name: of the project in the home; None: the name in the file.
        file: the file's path on the client's host, for display.
        roles, profiles: see `choose_roles`.
        recreate, remove_orphans: see Wish.
        ephemeral: the new project is deleted when no client holds it any more.
        timeout_s: a user's bound; None: as long as each guest makes progress.
    """

    data: dict[str, Any]
    name: str | None = None
    file: str | None = None
    roles: Sequence[str] = ()
    profiles: Sequence[str] = ()
    recreate: bool = False
    remove_orphans: bool = False
    ephemeral: bool = False
    start: StartOptions = field(default_factory=StartOptions)
    timeout_s: float | None = None


class ProjectUp:
    def __init__(
        self,
        projects: Projects,
        planner: ProjectPlanner,
        images: ProjectImages,
        networks: ProjectNetworks,
        machines: ProjectMachines,
        operations: ProjectOperations,
        removal: ProjectRemoval,
        holds: ProjectHolds,
        events: Events,
    ) -> None:
        self._projects = projects
        self._planner = planner
        self._images = images
        self._networks = networks
        self._machines = machines
        self._operations = operations
        self._removal = removal
        self._holds = holds
        self._events = events

    def plan(self, order: UpOrder) -> tuple[ProjectRecord, list[Step]]:
        """Return what `up` would do, and the project's record, which a new project does not have yet.

        Raises:
            InvalidSpec, Conflict: as `up`.
        """
        wish = _read(order)
        record = self._record(order, wish)
        return record, self._planner.plan(wish, record)

    async def up(self, order: UpOrder, report: Report = ignore_progress) -> ProjectRecord:
        """Bring a project up. Return when all its machines have answered and are healthy.

        Raises:
            InvalidSpec: the file makes no sense, or `up` would lose data; nothing was changed.
            Conflict: another operation on the project is under way, or a network is in use.
            BuildFailed, NotFound, DownloadFailed: an image cannot be made; no machine was changed.
            ProjectFailed: machines did not come up. All that was made stays; another `up` goes on.
            DeadlineExceeded: not all machines were up in time; likewise.
            After an error nothing of a new ephemeral project is left.
        """
        wish = _read(order)
        with self._operations.run(wish.name, "being brought up"):
            record = self._record(order, wish)
            is_new = self._projects.store.get(record.id) is None
            try:
                await self._bring_up(order, wish, record, report)
            except BaseException:
                if is_new and record.ephemeral:
                    with contextlib.suppress(BoughError, OSError):  # the next service tries again
                        await self._removal.remove(record)
                raise
            self._events.emit("project up", machine="", name=record.name)
        record = self._projects.settle(record)
        return self._projects.store.update(record, made=True) if is_new else record

    async def _bring_up(self, order: UpOrder, wish: Wish, record: ProjectRecord, report: Report) -> None:
        with contextlib.ExitStack() as holds:
            steps = self._planner.plan(wish, record)
            made = [step for step in steps if step.noun == "machine"]
            fresh = [(one.name, wish.spec.machines[one.name]) for one in made if one.action in _NEW]
            await self._images.prepare(fresh, report)
            record = self._keep(record, order)
            await self._networks.make(record, wish.spec)
            await self._delete_orphans(record, made, report)
            await self._start(record, order, wish, made, report, holds)
            await self._networks.delete_unused(record, wish.spec)

    def _record(self, order: UpOrder, wish: Wish) -> ProjectRecord:
        found = self._projects.store.named(wish.name)
        if found is not None and order.ephemeral and not found.ephemeral:
            raise Conflict(
                f"project '{found.name}' is kept: it was brought up before",
                hint=f"give the ephemeral copy another name: bough up --ephemeral --project {found.name}-2",
                project=found.name,
            )
        if found is not None:
            return found
        project_id = new_project_id()
        return ProjectRecord(
            id=project_id,
            name=wish.name,
            domain=wish.spec.name,
            file=order.file,
            spec=order.data,
            loopback=choose_loopback(project_id, self._projects.store.loopbacks()),
            ephemeral=order.ephemeral,
            made=not order.ephemeral,
            created=now(),
        )

    def _keep(self, record: ProjectRecord, order: UpOrder) -> ProjectRecord:
        return self._projects.store.update(record, spec=order.data, file=order.file or record.file)

    async def _delete_orphans(self, record: ProjectRecord, steps: list[Step], report: Report) -> None:
        for step in steps:
            machine = self._machines.find(record, step.name)
            if step.action == "delete" and machine is not None:
                about(step.name, report)(Progress("deleting: the file does not name it any more"))
                await self._machines.delete(machine)
        self._projects.settle(record)

    async def _start(
        self,
        record: ProjectRecord,
        order: UpOrder,
        wish: Wish,
        steps: list[Step],
        report: Report,
        holds: contextlib.ExitStack,
    ) -> None:
        by_role = {step.name: step for step in steps if step.name in wish.roles}
        completing, limit = completing_roles(wish.spec), asyncio.Semaphore(_STARTS_AT_ONCE)

        async def bring_up(role: str) -> None:
            wanted, told = wish.spec.machines[role], about(role, report)
            async with limit:
                await self._machines.bring_up(
                    record, by_role[role], wanted, order.start, told, completes=role in completing
                )
            machine = self._machines.find(record, role)
            if record.ephemeral and machine is not None:
                holds.enter_context(self._holds.keep(record, machine))

        async def wait_healthy(role: str) -> None:
            wanted, told = wish.spec.machines[role], about(role, report)
            await self._machines.wait_healthy(record, role, wanted, told, completes=role in completing)
            told(Progress("up"))

        async def wait_completed(role: str) -> None:
            await self._machines.wait_completed(record, role, about(role, report))
            about(role, report)(Progress("done"))

        startup = Startup(
            wish.spec,
            list(by_role),
            bring_up=bring_up,
            wait_healthy=wait_healthy,
            wait_completed=wait_completed,
        )
        await _run(startup, record, order.timeout_s)


_NEW = ("create", "recreate")


def _read(order: UpOrder) -> Wish:
    spec = parse_project(order.data, name=order.name)
    return Wish(
        spec,
        check_name(order.name or spec.name),
        choose_roles(spec, order.roles, order.profiles),
        recreate=order.recreate,
        remove_orphans=order.remove_orphans,
    )


async def _run(startup: Startup, record: ProjectRecord, timeout_s: float | None) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await startup.run()
    except TimeoutError:
        left = startup.unfinished()
        raise DeadlineExceeded(
            f"project '{record.name}' is not up after {timeout_s:g} s: {', '.join(left)}",
            hint="what was made stays; bough up goes on",
            project=record.name,
        ) from None
    if startup.failures:
        raise project_failed(record, "up", startup.failures, startup.blocked)
