"""Restore, suspend and resume of projects.

A restore notes where it leads before it changes the first machine. A service that is killed leaves this note,
and the next service restores all machines once more, because they must be at the same moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any

from bough.errors import BoughError, Conflict, WrongState
from bough.forks.saved_states import SavedStates
from bough.hypervisor.lifecycle import Lifecycle
from bough.hypervisor.projects.operations import ProjectOperations
from bough.hypervisor.projects.registry import Projects
from bough.hypervisor.projects.snapshots import Parts, ProjectSnapshots
from bough.machines.machine import Machine
from bough.machines.saved_state import SavedState
from bough.machines.state import LIVE, State
from bough.progress import Progress, Report, ignore_progress
from bough.projects.record import ProjectRecord
from bough.projects.restore_notes import RestoreNotes
from bough.projects.snapshot import ProjectSnapshot
from bough.snapshots.tree import SnapshotTree
from bough.tasks import Tasks, all_or_first_error, finish

log = logging.getLogger("bough.hypervisor")


class ProjectBranches:
    """Moves all machines of a project to another point of time at once."""

    def __init__(
        self,
        projects: Projects,
        snapshots: ProjectSnapshots,
        operations: ProjectOperations,
        lifecycle: Lifecycle,
        tree: SnapshotTree,
        states: SavedStates,
        notes: RestoreNotes,
        collect: Callable[[], None],
    ) -> None:
        self._projects = projects
        self._snapshots = snapshots
        self._operations = operations
        self._lifecycle = lifecycle
        self._tree = tree
        self._states = states
        self._notes = notes
        self._collect = collect
        self._tasks = Tasks()

    def open(self) -> None:
        """Begin to complete the restores that an outage has interrupted.

        Call after the machines were adopted, and before any machine is started.
        """
        self._notes.sweep()
        for record in list(self._projects.store):
            snapshot_id = self._notes.read(record.id)
            if snapshot_id is not None:
                self._tasks.begin(self._complete(record, snapshot_id), f"restore {record.name}")

    async def close(self) -> None:
        await self._tasks.end()

    # -- restore ----------------------------------------------------------------------------------

    async def restore(
        self, record: ProjectRecord, reference: str, *, keep: bool = False, report: Report = ignore_progress
    ) -> None:
        """Return all machines of a project to a snapshot. A cancelled call does not interrupt the restore.

        Args:
            keep: take a snapshot of the present state first.

        Raises:
            NotFound: no such snapshot.
            Conflict: the snapshot is another project's, or has other machines.
        """
        snapshot = self._snapshots.store.find(reference)
        parts = self._check_own(record, snapshot)
        work = self._keep_and_restore(record, snapshot, parts, keep, report)
        await self._run(work, f"restore {record.name}")

    async def _keep_and_restore(
        self,
        record: ProjectRecord,
        snapshot: ProjectSnapshot,
        parts: Parts,
        keep: bool,
        report: Report,
    ) -> None:
        if keep:
            await self._snapshots.take(
                record, message=f"before a restore to {snapshot.id}", now=True, report=report
            )
        await self._restore(record, snapshot, parts, report)

    async def _complete(self, record: ProjectRecord, snapshot_id: str) -> None:
        """Complete a restore of an earlier service."""
        log.info("the interrupted restore of project %s to %s is completed", record.name, snapshot_id)
        try:
            snapshot = self._snapshots.store.find(snapshot_id)
            await self._restore(record, snapshot, self._check_own(record, snapshot), ignore_progress)
        except (BoughError, OSError) as error:
            log.error("project %s is restored only in part: %s", record.name, error)
            self._notes.remove(record.id)

    async def _restore(
        self, record: ProjectRecord, snapshot: ProjectSnapshot, parts: Parts, report: Report
    ) -> None:
        machines = self._projects.machines(record)
        with self._operations.run(record.name, "being restored"), contextlib.ExitStack() as claims:
            for machine in machines.values():
                claims.enter_context(machine.claim("being restored"))
            with self._snapshots.used(parts):
                # Read all memory before the first machine is changed.
                saved = {role: await self._states.get(part) for role, part in parts.items()}
                self._notes.write(record.id, snapshot.id)
                try:
                    await all_or_first_error(_stop(machine) for machine in machines.values())
                    report(Progress("restoring"))
                    for role, machine in machines.items():
                        await self._tree.put_back(machine, parts[role])
                    await self._start(machines, saved, report)
                except (BoughError, OSError):  # the user sees why, and decides
                    self._notes.remove(record.id)
                    raise
                self._notes.remove(record.id)
            self._collect()

    async def _start(
        self, machines: Mapping[str, Machine], saved: Mapping[str, SavedState | None], report: Report
    ) -> None:
        """Start the machines that ran in the snapshot. Wait until they have answered."""

        async def start(machine: Machine, state: SavedState) -> None:
            await machine.start(report, saved=state)
            await machine.wait_ready(report=report)

        states = [(machine, saved[role]) for role, machine in machines.items()]
        await all_or_first_error(start(machine, state) for machine, state in states if state is not None)

    def _check_own(self, record: ProjectRecord, snapshot: ProjectSnapshot) -> Parts:
        """Return the parts of the snapshot. Raises Conflict: the project cannot be restored."""
        machines, parts = self._projects.machines(record), self._snapshots.parts_of(snapshot)
        if record.id != snapshot.project.id and record.snapshot != snapshot.id:
            raise Conflict(
                f"snapshot '{snapshot.name}' belongs to project '{snapshot.project.name}', "
                f"not to '{record.name}'",
                hint=f"create a new project from it: bough fork {snapshot.name}",
            )
        if machines.keys() != parts.keys():
            other = ", ".join(sorted(machines.keys() ^ parts.keys()))
            raise Conflict(
                f"project '{record.name}' had other machines in snapshot '{snapshot.name}': {other}",
                hint=f"create a new project from it: bough fork {snapshot.name}",
            )
        for role, machine in machines.items():
            self._tree.check_own(machine, parts[role])
        return parts

    # -- suspend and resume -----------------------------------------------------------------------

    async def suspend(self, record: ProjectRecord, *, report: Report = ignore_progress) -> None:
        """Write the memory of all running machines to disk, and end their QEMUs.

        If a machine cannot be suspended, the others run on.

        Raises:
            WrongState: no machine runs. Conflict, HostLacks, NoSpace, MachineFailed: all run on.
        """
        await self._run(self._suspend(record, report), f"suspend {record.name}")

    async def _suspend(self, record: ProjectRecord, report: Report) -> None:
        with self._operations.run(record.name, "being suspended"):
            running = self._in(record, LIVE, "runs")
            report(Progress("writing memory to disk"))
            try:
                await all_or_first_error(self._lifecycle.suspend(machine) for machine in running)
            except BaseException:
                for machine in running:
                    if machine.state is State.SUSPENDED:
                        with contextlib.suppress(BoughError):  # suspended: nothing is lost
                            await finish(self._lifecycle.resume(machine))
                raise

    async def resume(self, record: ProjectRecord, *, report: Report = ignore_progress) -> None:
        """Let all suspended and paused machines run again.

        Raises:
            WrongState: no machine is suspended. HostLacks, MachineFailed: a machine stays suspended.
        """
        await self._run(self._resume(record, report), f"resume {record.name}")

    async def _resume(self, record: ProjectRecord, report: Report) -> None:
        with self._operations.run(record.name, "being resumed"):
            waiting = self._in(record, (State.SUSPENDED, State.PAUSED), "is suspended")
            report(Progress("reading memory from disk"))

            async def resume(machine: Machine) -> None:
                await self._lifecycle.resume(machine, report=report)
                await machine.wait_ready(report=report)

            await all_or_first_error(resume(machine) for machine in waiting)

    def _in(self, record: ProjectRecord, states: Collection[State], what: str) -> list[Machine]:
        """Return the machines in these states. Raises WrongState: there is none."""
        found = [one for one in self._projects.machines(record).values() if one.state in states]
        if not found:
            raise WrongState(
                f"no machine of project '{record.name}' {what}", hint=f"bough ps --project {record.name}"
            )
        return found

    async def _run(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Complete the work even if the caller is cancelled."""
        await asyncio.shield(self._tasks.begin(work, what))


async def _stop(machine: Machine) -> None:
    if machine.state in LIVE or machine.state is State.SUSPENDED:
        await machine.stop(force=True)
