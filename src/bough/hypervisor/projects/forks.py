"""Forks of projects: machines and networks of their own, with the addresses and names of the source.

The record of a project is written first, with `made` false. A kill of the service before the end leaves such
a record, and the next service removes the project whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bough.errors import BoughError, HostLacks, NameTaken
from bough.forks.fork_kind import ForkKind
from bough.forks.prewarm import Prewarming
from bough.forks.saved_states import SavedStates
from bough.hypervisor.fork_maker import ForkMaker, ForkOrder
from bough.hypervisor.lifetimes import EPHEMERAL_GRACE_S, Lifetimes
from bough.hypervisor.names import Names
from bough.hypervisor.projects.registry import Projects
from bough.hypervisor.projects.removal import ProjectRemoval
from bough.hypervisor.projects.snapshots import Parts, ProjectSnapshots
from bough.machines.demand import DEMAND
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.machines.record import Membership, now
from bough.machines.saved_state import SavedState
from bough.machines.state import State
from bough.networks.record import new_network_id
from bough.networks.store import NetworkStore
from bough.progress import Progress, Report, ignore_progress
from bough.projects.loopback import choose_loopback
from bough.projects.record import ProjectRecord, machine_name, new_project_id
from bough.projects.snapshot import ProjectSnapshot
from bough.spec import check_name
from bough.tasks import all_or_first_error, finish


@dataclass(frozen=True)
class _Source:
    """What the forks of one call continue from.

    Attributes:
        saved: role -> state; None: the machine was off, and so is the fork.
        is_kept: the snapshot is on disk.
    """

    snapshot: ProjectSnapshot
    parts: Parts
    saved: dict[str, SavedState | None]
    is_kept: bool


class ProjectForks:
    def __init__(
        self,
        projects: Projects,
        snapshots: ProjectSnapshots,
        networks: NetworkStore,
        removal: ProjectRemoval,
        states: SavedStates,
        maker: ForkMaker,
        names: Names,
        lifetimes: Lifetimes,
        prewarming: Prewarming,
        events: Events,
    ) -> None:
        self._projects = projects
        self._snapshots = snapshots
        self._networks = networks
        self._removal = removal
        self._states = states
        self._maker = maker
        self._names = names
        self._lifetimes = lifetimes
        self._prewarming = prewarming
        self._events = events

    async def fork(
        self,
        reference: str,
        names: Sequence[str | None],
        *,
        ephemeral: bool = False,
        now: bool = False,
        timeout_s: float | None = None,
        report: Report = ignore_progress,
    ) -> list[ProjectRecord | BoughError]:
        """Fork a project, or a snapshot of a project, once for each of `names`.

        Each fork succeeds or fails by itself. The machines of a fork have answered, unless they were off.

        Args:
            names: None generates one.
            now: do not wait for the end of the guests' boots.

        Raises:
            NotFound, Conflict, WrongState, ...: the source cannot be forked; nothing was made.
        """
        project = self._projects.store.named(reference)
        if project is None:
            snapshot = self._snapshots.store.find(reference)
            return await self._fork_kept(snapshot, names, ephemeral, timeout_s, report)
        snapshot, parts = await self._snapshots.take_passing(project, now=now, report=report)
        try:
            return await self._fork(snapshot, parts, names, False, ephemeral, timeout_s, report)
        finally:
            self._snapshots.release(parts)

    async def _fork_kept(
        self,
        snapshot: ProjectSnapshot,
        names: Sequence[str | None],
        ephemeral: bool,
        timeout_s: float | None,
        report: Report,
    ) -> list[ProjectRecord | BoughError]:
        parts = self._snapshots.parts_of(snapshot)
        for kind in _kinds(parts) * len(names):
            self._prewarming.forked(kind)
        return await self._fork(snapshot, parts, names, True, ephemeral, timeout_s, report)

    def offer(self, parts: Parts) -> None:
        """Pre-warm the machines of a snapshot that may be forked."""
        for kind in _kinds(parts):
            self._prewarming.offer(kind)

    async def _fork(
        self,
        snapshot: ProjectSnapshot,
        parts: Parts,
        names: Sequence[str | None],
        is_kept: bool,
        ephemeral: bool,
        timeout_s: float | None,
        report: Report,
    ) -> list[ProjectRecord | BoughError]:
        report(Progress("forking"))
        with self._snapshots.used(parts), DEMAND.holding():
            saved = {role: await self._states.get(part) for role, part in parts.items()}
            source = _Source(snapshot, parts, saved, is_kept)
            with contextlib.ExitStack() as holds:
                return [await self._try_one(source, name, ephemeral, timeout_s, holds) for name in names]

    async def make_from(
        self,
        snapshot: ProjectSnapshot,
        parts: Parts,
        saved: dict[str, SavedState | None],
        name: str,
        timeout_s: float | None,
        report: Report,
    ) -> ProjectRecord:
        """Make a project of a moment that is not in the store: of a bundle.

        Raises: NameTaken, NoSpace, MachineFailed: nothing is left.
        """
        report(Progress("making the machines"))
        with contextlib.ExitStack() as holds:
            return await self._make(_Source(snapshot, parts, saved, False), name, False, timeout_s, holds)

    async def _try_one(
        self,
        source: _Source,
        name: str | None,
        ephemeral: bool,
        timeout_s: float | None,
        holds: contextlib.ExitStack,
    ) -> ProjectRecord | BoughError:
        try:
            return await self._make(source, name, ephemeral, timeout_s, holds)
        except BoughError as error:
            return error
        except OSError as error:  # EMFILE, EIO: other forks may succeed
            return HostLacks(f"the host failed: {error}")

    async def _make(
        self,
        source: _Source,
        name: str | None,
        ephemeral: bool,
        timeout_s: float | None,
        holds: contextlib.ExitStack,
    ) -> ProjectRecord:
        record = self._begin(source, name, ephemeral)
        try:
            self._copy_networks(source.snapshot, record)
            machines = await self._make_machines(source, record, holds)
            await self._wait_ready(machines, timeout_s)
            record = self._projects.store.update(self._projects.settle(record), made=True)
        except BaseException:
            with contextlib.suppress(BoughError, OSError):  # the next service tries again
                await finish(self._removal.remove(record))
            raise
        self._events.emit("project forked", machine="", name=record.name, detail=f"from {source.snapshot.id}")
        return record

    def _begin(self, source: _Source, name: str | None, ephemeral: bool) -> ProjectRecord:
        """Write the record of a fork that is being made. Raises NameTaken, InvalidInput, NoSpace."""
        store, of = self._projects.store, source.snapshot.project
        if name is None:
            name = self._free_name(of.name)
        self.check_name(name, source.parts)
        project_id = new_project_id()
        record = of.model_copy(
            update={
                "id": project_id,
                "name": name,
                "machines": {},
                "networks": {},
                "loopback": choose_loopback(project_id, store.loopbacks()),
                "snapshot": source.snapshot.id if source.is_kept else None,
                "ephemeral": ephemeral,
                "made": False,
                "created": now(),
            }
        )
        store.add(record)
        return record

    def _free_name(self, stem: str) -> str:
        taken, number = set(self._projects.store.names()), 1
        while f"{stem}-{number}" in taken:
            number += 1
        return f"{stem}-{number}"

    def check_name(self, name: str, roles: Iterable[str]) -> None:
        """Check that a new project and its machines may have their names. Raises NameTaken, InvalidInput."""
        check_name(name)
        if self._projects.store.named(name) is not None:
            raise NameTaken(
                f"a project named '{name}' exists already",
                hint=f"choose another name, or delete it: bough down --volumes --project {name}",
                name=name,
            )
        for role in roles:
            self._names.check_free(machine_name(name, role))

    def _copy_networks(self, snapshot: ProjectSnapshot, record: ProjectRecord) -> None:
        """Make segments with the addresses of the source. They are apart, so nothing collides."""
        for network in snapshot.networks:
            update = {"id": new_network_id(), "project": record.id, "created": now()}
            self._networks.add(network.model_copy(update=update))

    async def _make_machines(
        self, source: _Source, record: ProjectRecord, holds: contextlib.ExitStack
    ) -> list[Machine]:
        async def make(role: str) -> Machine:
            order = ForkOrder(
                source.parts[role],
                source.saved[role],
                "keep",
                name=machine_name(record.name, role),
                ephemeral=record.ephemeral,
                member=Membership(record.id, role),
                loopback=record.loopback,
            )
            machine = await self._maker.make(order)
            holds.enter_context(self._lifetimes.hold(machine, grace_s=EPHEMERAL_GRACE_S))
            return machine

        return await all_or_first_error([make(role) for role in source.parts])

    async def _wait_ready(self, machines: Sequence[Machine], timeout_s: float | None) -> None:
        started = [machine for machine in machines if machine.state is State.RUNNING]
        await all_or_first_error([machine.wait_ready(timeout_s=timeout_s) for machine in started])


def _kinds(parts: Parts) -> list[ForkKind]:
    """Return the forks of the machines that ran."""
    return [ForkKind(part, "keep") for part in parts.values() if part.memory is not None]
