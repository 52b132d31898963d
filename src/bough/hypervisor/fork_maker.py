"""Make a fork: record, overlays, and the start from a snapshot's state."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from bough.errors import BoughError
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.lifetimes import Lifetimes
from bough.hypervisor.names import Names
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.machines.record import MachineRecord, Membership, PortForward, new_machine_id
from bough.machines.saved_state import SavedState
from bough.paths import Home, MachinePaths
from bough.snapshots.store import SnapshotManifest
from bough.snapshots.tree import Identity, SnapshotTree
from bough.spec import MachineSpec
from bough.storage import remove_tree, sync_directory
from bough.tasks import finish


@dataclass(frozen=True)
class ForkOrder:
    """Properties of a fork to make.

    Attributes:
        saved: the state to start from; None: the fork is stopped.
        name: None: a generated one.
        spec: the spec given to `run`; None: the snapshot's spec.
        standby: no user has requested the fork yet.
        hold: QEMU loads the state, and the vCPUs wait (Machine.start).
        member: the fork's place in a project; None: the snapshot's project, without a role.
        loopback: address of a project on which the fork publishes the ports of its spec. Other forks publish
            on any free ports.
    """

    manifest: SnapshotManifest
    saved: SavedState | None
    identity: Identity = "new"
    name: str | None = None
    ephemeral: bool = False
    spec: MachineSpec | None = None
    standby: bool = False
    hold: bool = False
    member: Membership | None = None
    loopback: str | None = None

    @property
    def stem(self) -> str:
        """Return the start of a generated name."""
        return self.manifest.machine_name if self.spec is None else self.spec.image


class ForkMaker:
    def __init__(
        self,
        home: Home,
        events: Events,
        tree: SnapshotTree,
        inventory: Inventory,
        names: Names,
        lifetimes: Lifetimes,
    ) -> None:
        self._home = home
        self._events = events
        self._tree = tree
        self._inventory = inventory
        self._names = names
        self._lifetimes = lifetimes

    async def make(self, order: ForkOrder) -> Machine:
        """Create a fork and start the fork from the saved state. A failure leaves nothing behind.

        Raises:
            NameTaken, NoSpace, MachineFailed
        """
        machine = await self._create(order)
        if not order.standby:
            kind, detail = ("forked", f"from {order.manifest.id}") if order.spec is None else ("created", "")
            self._events.emit(kind, machine=machine.id, name=machine.name, detail=detail)
        if order.ephemeral:
            self._lifetimes.expire_unless_held(machine.id)
        if order.saved is not None:
            await self._start(machine, order.saved, hold=order.hold)
        return machine

    async def _start(self, machine: Machine, saved: SavedState, *, hold: bool) -> None:
        try:
            await machine.start(saved=saved, hold=hold)
        except BaseException:
            self._lifetimes.expire_unless_held(machine.id, grace_s=0)
            with contextlib.suppress(BoughError):
                await finish(self._lifetimes.delete(machine, force=True))
            raise

    async def _create(self, order: ForkOrder) -> Machine:
        machine_id = new_machine_id()
        with self._names.reserve(self._name(order, machine_id)) as name:
            record = self._record(order, machine_id, name)
            made = MachinePaths(self._home.incoming / machine_id, self._home.runtime / machine_id)
            try:
                await finish(asyncio.to_thread(self._tree.make_files, record, order.manifest, made))
                made.root.rename(self._home.machine(machine_id).root)
            except BaseException:
                remove_tree(made.root)
                raise
            if not order.ephemeral:
                sync_directory(self._home.machines)
            return self._inventory.add(record)

    def _name(self, order: ForkOrder, machine_id: str) -> str:
        if order.name is not None:
            return order.name
        # A held fork gets the real name when a user takes the fork.
        return f"fork-{machine_id}" if order.hold else self._names.free_name(order.stem)

    def _record(self, order: ForkOrder, machine_id: str, name: str) -> MachineRecord:
        record = self._tree.fork_record(
            order.manifest,
            machine_id=machine_id,
            name=name,
            taken_uids=self._inventory.taken_uids(),
            identity=order.identity,
            ephemeral=order.ephemeral,
            spec=order.spec,
        )
        record.standby = order.standby
        if order.member is not None:
            record.project, record.role = order.member
        if order.loopback is not None:
            _publish_on(record, order.manifest.spec, order.loopback)
        if order.saved is not None and order.saved.prewarm is not None:
            record.ports, record.throw_away = [], True  # a pre-warm is reachable by nobody
        return record


def _publish_on(record: MachineRecord, source: MachineSpec, loopback: str) -> None:
    """Give the fork of a project the host name of its source, and the ports on another address."""
    ports = tuple(port.model_copy(update={"host": loopback}) for port in source.ports)
    record.spec = record.spec.model_copy(update={"hostname": source.hostname, "ports": ports})
    record.ports = [PortForward(**port.model_dump()) for port in ports]
