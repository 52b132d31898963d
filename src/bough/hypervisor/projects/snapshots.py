"""Snapshots of projects: all machines at one moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from bough.errors import Conflict
from bough.hypervisor.networks import Networks
from bough.hypervisor.projects.operations import ProjectOperations
from bough.hypervisor.projects.registry import Projects
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.machines.booted import wait_boot_end
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.machines.record import now as time_now
from bough.machines.state import State
from bough.progress import Progress, Report, ignore_progress
from bough.projects.record import ProjectRecord
from bough.projects.snapshot import ProjectSnapshot, ProjectSnapshotStore, new_project_snapshot_id
from bough.snapshots.store import SnapshotManifest
from bough.spec import check_name
from bough.tasks import Tasks

#: Role -> snapshot of the machine.
Parts = dict[str, SnapshotManifest]


class ProjectSnapshots:
    """Takes and deletes snapshots of projects.

    Attributes:
        store: the records. The snapshots of the machines are in the snapshot tree.
    """

    def __init__(
        self,
        store: ProjectSnapshotStore,
        projects: Projects,
        operations: ProjectOperations,
        networks: Networks,
        keeper: SnapshotKeeper,
        events: Events,
    ) -> None:
        self.store = store
        self._projects = projects
        self._operations = operations
        self._networks = networks
        self._keeper = keeper
        self._events = events
        #: Called with the parts of each new snapshot.
        self.on_taken: list[Callable[[Parts], None]] = []
        self._tasks = Tasks()

    def open(self) -> None:
        """Delete the parts of snapshots that were never completed."""
        self.store.open()
        tree = self._keeper.tree
        self._keeper.drop_all(part for part in tree.store.parts() if part.part_of not in self.store)

    async def close(self) -> None:
        """Cancel snapshots under way. They leave nothing."""
        await self._tasks.end()

    async def take(
        self,
        record: ProjectRecord,
        *,
        label: str | None = None,
        message: str = "",
        memory: bool = True,
        now: bool = False,
        report: Report = ignore_progress,
    ) -> ProjectSnapshot:
        """Take a snapshot of all machines of a project. The snapshot is completed if the caller is cancelled.

        Args:
            memory: include the memory of running machines.
            now: do not wait for the end of the guests' boots.

        Raises:
            Conflict: the project has no machine, or an operation is under way.
            NameTaken, WrongState, HostLacks, NoSpace, MachineFailed: a machine cannot be captured. No
                snapshot is left, and each machine is as before.
        """
        if label is not None:
            check_name(label)
            self._keeper.tree.store.check_label(label)
            self.store.check_label(label)
        work = self._take(record, label, message, memory, now, report)
        return await asyncio.shield(self._tasks.begin(work, f"take a snapshot of {record.name}"))

    async def _take(
        self, record: ProjectRecord, label: str | None, message: str, memory: bool, now: bool, report: Report
    ) -> ProjectSnapshot:
        with self._operations.run(record.name, "being snapshotted"):
            draft = self._draft(record, label, message, memory=memory)
            parts = await self._capture(record, draft, memory=memory, now=now, keep=True, report=report)
            snapshot = _completed(draft, parts)
            try:
                self.store.add(snapshot)
            except BaseException:
                self._keeper.drop_all(parts.values())
                raise
        for offer in self.on_taken:
            offer(parts)
        self._events.emit("project snapshotted", machine="", name=record.name, detail=snapshot.id)
        return snapshot

    @contextmanager
    def used(self, parts: Parts) -> Iterator[None]:
        """Keep the files of the parts until the block ends."""
        with contextlib.ExitStack() as stack:
            for part in parts.values():
                stack.enter_context(self._keeper.used_in_background(part))
            yield

    async def take_passing(
        self, record: ProjectRecord, *, now: bool, report: Report
    ) -> tuple[ProjectSnapshot, Parts]:
        """Take a snapshot that is not written, for forks that start at once. Call `release` afterwards.

        Raises: as `take`.
        """
        with self._operations.run(record.name, "being forked"):
            draft = self._draft(record, None, "", memory=True)
            parts = await self._capture(record, draft, memory=True, now=now, keep=False, report=report)
            return _completed(draft, parts), parts

    def release(self, parts: Parts) -> None:
        """Release a snapshot that was not written."""
        for part in parts.values():
            self._keeper.release(part)

    def parts_of(self, snapshot: ProjectSnapshot) -> Parts:
        """Return the snapshots of the machines. Raises Conflict: a part is missing or damaged."""
        store, parts = self._keeper.tree.store, {}
        for role, part in snapshot.machines.items():
            if not store.has(part) or store.get(part).state != "whole":
                raise Conflict(
                    f"snapshot '{snapshot.name}' lacks the part of machine '{role}'",
                    hint="bough doctor --store shows what is damaged",
                )
            parts[role] = store.get(part)
        return parts

    def delete(self, reference: str) -> None:
        """Delete a snapshot. Forks and other snapshots are unaffected. Raises NotFound, Conflict."""
        snapshot = self.store.find(reference)
        tree = self._keeper.tree.store
        parts = [tree.get(part) for part in snapshot.machines.values() if tree.has(part)]
        self.store.remove(snapshot)
        self._keeper.drop_all(parts)

    def describe(self, snapshot: ProjectSnapshot) -> dict[str, Any]:
        """Return the API's description of a snapshot."""
        tree = self._keeper.tree.store
        return {
            "id": snapshot.id,
            "label": snapshot.label,
            "message": snapshot.message,
            "created": snapshot.created,
            "project": snapshot.project.id,
            "project_name": snapshot.project.name,
            "machines": snapshot.machines,
            "networks": [network.name for network in snapshot.networks],
            "memory": snapshot.memory,
            "pause_ms": snapshot.pause_ms,
            "disk_bytes": sum(
                tree.bytes_on_disk(part) for part in snapshot.machines.values() if tree.has(part)
            ),
        }

    def _draft(
        self, record: ProjectRecord, label: str | None, message: str, *, memory: bool
    ) -> ProjectSnapshot:
        return ProjectSnapshot(
            id=new_project_snapshot_id(),
            label=label,
            message=message,
            created=time_now(),
            project=record,
            networks=tuple(self._projects.networks(record)),
            memory=memory,
        )

    async def _capture(
        self,
        record: ProjectRecord,
        draft: ProjectSnapshot,
        *,
        memory: bool,
        now: bool,
        keep: bool,
        report: Report,
    ) -> Parts:
        machines = self._projects.machines(record)
        if not machines:
            raise Conflict(
                f"project '{record.name}' has no machines", hint=f"bough up --project {record.name}"
            )
        if memory and not now:
            await self._wait_boots(machines.values(), report)
        report(Progress("taking a snapshot of all machines"))
        taken = await self._keeper.take_together(
            list(machines.values()),
            lambda: self._networks.holding([network.id for network in draft.networks]),
            keep=keep,
            memory=memory,
            part_of=draft.id if keep else None,
            report=report,
        )
        return dict(zip(machines, taken, strict=True))

    async def _wait_boots(self, machines: Iterable[Machine], report: Report) -> None:
        async with asyncio.TaskGroup() as group:
            for machine in machines:
                if machine.state is State.RUNNING:
                    group.create_task(wait_boot_end(machine, report))


def _completed(draft: ProjectSnapshot, parts: Parts) -> ProjectSnapshot:
    """Return the record of a snapshot with its parts."""
    pauses = [part.pause_ms for part in parts.values() if part.pause_ms is not None]
    return draft.model_copy(
        update={
            "machines": {role: part.id for role, part in parts.items()},
            "memory": any(part.memory is not None or part.consistency == "memory" for part in parts.values()),
            "pause_ms": max(pauses, default=None),
        }
    )
