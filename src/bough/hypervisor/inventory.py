"""The machines of one home: looked up by name or id, added, removed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from difflib import get_close_matches

from bough.errors import Conflict, NotFound
from bough.hypervisor.references import machine_by_role
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.machines.nics import Networks
from bough.machines.plan import resolve_plan
from bough.machines.record import MachineRecord
from bough.machines.state import State
from bough.machines.vm.start import AgentDiskChoice, keep_agent_disk
from bough.paths import Home, MachinePaths
from bough.projects.store import ProjectStore
from bough.qemu.plan import Plan
from bough.snapshots.tree import SnapshotTree

_LEAST_PREFIX = 4


class Inventory:
    """Every machine of a home, standby machines included.

    Attributes:
        leaving: ids of discarded machines, not listed any more; the deletion is under way.
        after_removal: called with a machine that was deleted.
        after_collect: called when unused backing files were removed.
        choose_agent_disk: see bough.machines.vm.start.
        before_start: called before the QEMU of a machine starts. An error refuses the start.
        unreadable: id -> error of each unreadable record.
    """

    def __init__(
        self,
        home: Home,
        events: Events,
        snapshots: SnapshotTree,
        networks: Networks,
        projects: ProjectStore,
    ) -> None:
        self.home = home
        self.leaving: set[str] = set()
        self.after_removal: list[Callable[[Machine], None]] = []
        self.after_collect: list[Callable[[], None]] = []
        self.choose_agent_disk: AgentDiskChoice = keep_agent_disk
        self.before_start: list[Callable[[MachineRecord], Awaitable[None]]] = []
        self.unreadable: dict[str, str] = {}
        self._events = events
        self._snapshots = snapshots
        self._networks = networks
        self._projects = projects
        self._machines: dict[str, Machine] = {}

    def __iter__(self) -> Iterator[Machine]:
        return iter(list(self._machines.values()))

    def __contains__(self, machine_id: str) -> bool:
        return machine_id in self._machines

    def get(self, machine_id: str) -> Machine | None:
        return self._machines.get(machine_id)

    def present(self) -> list[Machine]:
        """Every machine that is not leaving."""
        return [machine for machine in self if machine.id not in self.leaving]

    def listed(self) -> list[Machine]:
        """The machines that users see, oldest first: neither leaving nor standby."""
        return sorted(self._listed(), key=lambda machine: machine.record.created)

    def _listed(self) -> list[Machine]:
        return [machine for machine in self.present() if not machine.record.standby]

    def machines_of(self, project_id: str) -> list[Machine]:
        """Return the machines of a project, oldest first, with forks of its single machines."""
        return [machine for machine in self.listed() if machine.record.project == project_id]

    def find(self, reference: str) -> Machine:
        """Return the machine with the name, id, or unique prefix of an id (4 digits or more). A standby
        machine is found by the whole id alone. A machine of a project is also "role.project", or the role
        alone if only one project has the role.

        Raises:
            NotFound: no machine matches.
            Conflict: the role or the prefix is ambiguous, or the machine's record is damaged.
        """
        machine = self._find_exactly(reference)
        return machine if machine is not None else self._find_prefix(reference)

    def _find_exactly(self, reference: str) -> Machine | None:
        if reference in self._machines and reference not in self.leaving:
            return self._machines[reference]
        listed = self._listed()
        for machine in listed:
            if reference == machine.name:
                return machine
        return machine_by_role(reference, listed, self._projects)

    def _find_prefix(self, reference: str) -> Machine:
        listed = self._listed()
        if reference in self.unreadable:
            raise Conflict(
                f"the record of machine {reference} cannot be read: {self.unreadable[reference][:300]}",
                hint="bough doctor --store says which repair is safe",
                machine=reference,
            )
        found = [m for m in listed if len(reference) >= _LEAST_PREFIX and m.id.startswith(reference)]
        if len(found) == 1:
            return found[0]
        if found:
            raise Conflict(f"{reference!r} is ambiguous: {len(found)} ids match", hint="use more characters")
        close = get_close_matches(reference, [machine.name for machine in listed], n=1)
        hint = f"did you mean '{close[0]}'?" if close else "bough list shows all machines"
        raise NotFound(
            f"no machine is called {reference[:80]!r}", hint=hint, kind="machine", name=reference[:80]
        )

    def find_source(self, reference: str) -> Machine | None:
        """Return the machine named by `reference`, or None for a snapshot. An exact name or id has precedence
        over a prefix.

        Raises:
            NotFound: neither a machine nor a snapshot matches.
            Conflict: both match equally well.
        """
        store = self._snapshots.store
        try:
            machine = self.find(reference)
        except NotFound:
            if not store.knows(reference):
                raise
            return None
        if not store.knows(reference):
            return machine
        manifest = store.resolve(reference)
        is_whole = self._find_exactly(reference) is machine
        if is_whole == (reference in (manifest.label, manifest.id)):
            raise Conflict(
                f"{reference!r} is ambiguous: machine '{machine.name}' and snapshot "
                f"'{manifest.label or manifest.id}' match",
                hint=f"use an id: {machine.id} is the machine, {manifest.id} the snapshot",
                machine=machine.id,
                snapshot=manifest.id,
            )
        return machine if is_whole else None

    def add(self, record: MachineRecord) -> Machine:
        """Add a machine whose directory exists."""
        paths = self.home.machine(record.id)
        machine = Machine(
            record,
            paths,
            self._events,
            self.plan_of,
            self.collect,
            choose_agent_disk=self.choose_agent_disk,
        )
        self._machines[record.id] = machine
        return machine

    def remove(self, machine: Machine) -> None:
        del self._machines[machine.id]
        for forget in self.after_removal:
            forget(machine)

    def records(self) -> list[MachineRecord]:
        return [machine.record for machine in self]

    def taken_uids(self) -> set[int]:
        """The user ids of all QEMUs."""
        uids = (machine.record.hardware.uid for machine in self)
        return {uid for uid in uids if uid is not None}

    async def plan_of(self, record: MachineRecord, paths: MachinePaths) -> Plan:
        """Return the plan of a machine's next start, as data."""
        if record.state is State.STARTING:
            for prepare in self.before_start:
                await prepare(record)
        return await resolve_plan(record, paths, self.home, self._networks)

    def collect(self) -> None:
        """Remove unused backing files."""
        self._snapshots.collect(self.records())
        for collect in self.after_collect:
            collect()
