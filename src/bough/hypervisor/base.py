"""What all use cases stand on: the machines there are, who holds them, how they go, what is reserved."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from operator import is_
from pathlib import Path
from typing import Any

from bough.errors import BoughError, Conflict, NameTaken, NotFound, WrongState
from bough.images.catalogue import Catalogues
from bough.images.store import ImageStore
from bough.machines.demand import DEMAND
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.machines.plan import resolve_plan
from bough.machines.record import LIVE, MachineRecord, State
from bough.machines.rehearsal import Hurry
from bough.paths import Home, MachinePaths
from bough.qemu.frozen.freeze import FrozenProcess
from bough.qemu.plan import Plan
from bough.snapshots.ahead import Ahead, Begun
from bough.snapshots.kind import Kind
from bough.snapshots.prewarm import Prewarming, is_switched_on
from bough.snapshots.spares import Of, Spares
from bough.snapshots.store import SnapshotManifest
from bough.snapshots.tree import SnapshotTree
from bough.spec import check_name
from bough.storage import sync_directory
from bough.tasks import Tasks, finish

log = logging.getLogger("bough.hypervisor")

#: How long an ephemeral machine is kept while nobody holds it: for the client to come back after a
#: restart of the service.
EPHEMERAL_GRACE_S = 30.0
_EXPIRE_AGAIN_S = 1.0
_SEE_OFF_S = 10.0


class Base(ABC):
    """What the other parts share; a Hypervisor is all of them."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.events = Events()
        self.images = ImageStore(home)
        self.catalogues = Catalogues(home)
        self.snapshots = SnapshotTree(home)
        self.spares = Spares(home.spares, self._make_spare, self._rouse_spare, self._discard_spare)
        frozen = self.snapshots.frozen
        self.prewarming = Prewarming(self._rehearse, frozen, DEMAND, is_on=is_switched_on())
        self.ahead = Ahead(self._begin_fork, self._discard_spare, self.prewarming)
        self._machines: dict[str, Machine] = {}
        self._reserved_names: set[str] = set()
        self._creating: dict[str, int] = {}
        self._holders: dict[str, int] = {}
        #: Ephemeral ones whose client is done with them.
        self._leaving: set[str] = set()
        self._all_left = asyncio.Event()
        self._tasks = Tasks()
        self._unreadable: dict[str, str] = {}
        self._making = 0
        #: The service is on its way out: who holds a machine is cut off, and comes back to the next one.
        self.closing = False

    def machines(self) -> list[Machine]:
        shown = (machine for machine in self._present() if not machine.record.spare)
        return sorted(shown, key=lambda machine: machine.record.created)

    def _present(self) -> list[Machine]:
        """All that are not on their way out."""
        return [machine for machine in self._machines.values() if machine.id not in self._leaving]

    def machine(self, reference: str) -> Machine:
        """By name, id, or a prefix of an id that only one has (4 or more digits); a spare by its id alone."""
        if reference in self._machines and reference not in self._leaving:
            return self._machines[reference]
        present = [machine for machine in self._present() if not machine.record.spare]
        for machine in present:
            if reference == machine.name:
                return machine
        if reference in self._unreadable:
            raise Conflict(
                f"the record of machine {reference} cannot be read: {self._unreadable[reference][:300]}",
                hint="bough doctor --store tells what is safe to do",
                machine=reference,
            )
        found = [m for m in present if len(reference) >= 4 and m.id.startswith(reference)]
        if len(found) == 1:
            return found[0]
        if found:
            raise Conflict(f"{reference!r} is the beginning of {len(found)} machines' ids", hint="give more")
        names = [machine.name for machine in present]
        close = get_close_matches(reference, names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "bough list shows them all"
        raise NotFound(
            f"no machine is called {reference[:80]!r}", hint=hint, kind="machine", name=reference[:80]
        )

    def _find_machine(self, reference: str) -> Machine | None:
        """The machine of that name or id; None: it names a snapshot. A whole name or id goes before the
        beginning of one.

        Raises NotFound: neither. Conflict: both alike.
        """
        store = self.snapshots.store
        try:
            machine = self.machine(reference)
        except NotFound:
            if not store.knows(reference):
                raise
            return None
        if not store.knows(reference):
            return machine
        manifest = store.resolve(reference)
        is_whole = reference in (machine.name, machine.id)
        if is_whole == (reference in (manifest.label, manifest.id)):
            raise Conflict(
                f"{reference!r} is ambiguous: machine '{machine.name}' and snapshot "
                f"'{manifest.label or manifest.id}' match",
                hint=f"use an id: {machine.id} is the machine, {manifest.id} the snapshot",
                machine=machine.id,
                snapshot=manifest.id,
            )
        return machine if is_whole else None

    def _records(self) -> list[MachineRecord]:
        return [machine.record for machine in self._machines.values()]

    def _machine_of(self, record: MachineRecord, paths: MachinePaths) -> Machine:
        return Machine(record, paths, self.events, self._plan, self._collect)

    async def plan(self, machine: Machine) -> Plan:
        """What `start` would start, as data."""
        return await self._plan(machine.record, machine.paths)

    async def _plan(self, record: MachineRecord, paths: MachinePaths) -> Plan:
        return await resolve_plan(record, paths, self.home)

    async def delete(self, machine: Machine, *, force: bool = False) -> None:
        """Its disks too. A running one only with `force`, which pulls its plug.

        Raises:
            WrongState: it runs and `force` was not given.
        """
        with machine.claim("being deleted"):
            if machine.state in LIVE:
                if not force:
                    raise WrongState(
                        f"machine '{machine.name}' is {machine.state} and is not deleted while it is",
                        hint=f"bough stop {machine.name}, or delete it with --force",
                        machine=machine.name,
                        state=str(machine.state),
                    )
                with contextlib.suppress(WrongState):  # it ended by itself meanwhile
                    await machine.stop(force=True, flush=False)
            states = (State.STOPPED, State.FAILED, State.SUSPENDED)
            async with machine.transition("being deleted", *states):
                await self._bury(machine)

    @abstractmethod
    async def _make_spare(self, of: Of) -> Machine: ...

    @abstractmethod
    async def _rouse_spare(self, of: Of, machine: Machine) -> None: ...

    @abstractmethod
    async def _begin_fork(self, kind: Kind) -> Begun: ...

    @abstractmethod
    async def _rehearse(self, kind: Kind, hurry: Hurry) -> FrozenProcess: ...

    async def _discard_spare(self, machine: Machine) -> None:
        self._holders.pop(machine.id, None)
        with contextlib.suppress(BoughError):
            await self.delete(machine, force=True)

    def discard(self, machine: Machine) -> None:
        """As `delete` with force, of an ephemeral machine that nobody wants any more: it is shown no longer,
        and goes without anybody waiting for it."""
        if not machine.record.ephemeral:
            raise Conflict(f"machine '{machine.name}' is kept", hint=f"bough delete {machine.name}")
        if machine.id not in self._machines:
            return
        self._leaving.add(machine.id)
        self._all_left.clear()
        self._expire_unless_held(machine.id, grace_s=0)

    async def _bury(self, machine: Machine) -> None:
        machine.cancel_restart()
        with self._half_made():
            grave = self.home.incoming / f"{machine.id}.deleted"
            machine.paths.root.rename(grave)
            if not machine.record.ephemeral:
                sync_directory(self.home.machines)
            del self._machines[machine.id]
            machine.bury()
            machine.tell("deleted")
            try:
                await finish(asyncio.to_thread(_remove_both, grave, machine.paths.runtime))
            finally:
                self._collect()
                self._left(machine.id)

    def _left(self, machine_id: str) -> None:
        self._leaving.discard(machine_id)
        if not self._leaving:
            self._all_left.set()

    async def _see_off(self) -> None:
        """Until the machines that were discarded are gone: whoever did it takes them for gone."""
        if self._leaving:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SEE_OFF_S):
                    await self._all_left.wait()

    @contextmanager
    def hold(self, machine: Machine, *, grace_s: float = 0) -> Iterator[None]:
        """An ephemeral machine lives while somebody is in here, and for `grace_s` after the last."""
        self._holders[machine.id] = self._holders.get(machine.id, 0) + 1
        try:
            yield
        finally:
            self._holders[machine.id] -= 1
            if not self._holders[machine.id]:
                del self._holders[machine.id]
                if machine.record.ephemeral and machine.id in self._machines and not self.closing:
                    self._expire_unless_held(machine.id, grace_s=grace_s)

    def _expire_unless_held(self, machine_id: str, grace_s: float = EPHEMERAL_GRACE_S) -> None:
        async def expire() -> None:
            pause_s = grace_s
            while True:
                await asyncio.sleep(pause_s)
                machine = self._machines.get(machine_id)
                if machine is None or not machine.record.ephemeral:
                    self._left(machine_id)
                    return
                if machine_id in self._holders and machine_id not in self._leaving:
                    return
                try:
                    await self.delete(machine, force=True)
                except (NotFound, Conflict):
                    pass  # it is being snapshotted, say: afterwards
                except (BoughError, OSError) as error:  # and again: nobody else will
                    log.warning("machine %s cannot be deleted: %s", machine.name, error)
                    pause_s = EPHEMERAL_GRACE_S
                    continue
                except BaseException:
                    self._left(machine_id)
                    raise
                pause_s = _EXPIRE_AGAIN_S

        self._tasks.begin(expire(), f"expire {machine_id}")

    def _drop_ready(self, manifests: Iterable[SnapshotManifest]) -> None:
        for manifest in manifests:
            self._delete_snapshot(manifest)

    def _delete_snapshot(self, manifest: SnapshotManifest) -> None:
        self.ahead.forget(manifest.id)
        self.snapshots.delete(manifest, self._records())

    def _image_digests(self) -> list[str]:
        return [entry.manifest.digest for entry in self.images.entries()]

    def _collect(self) -> None:
        """Remove layers that nothing stands on any more."""
        self.snapshots.collect(self._records())

    def image_users(self) -> dict[str, list[str]]:
        """digest -> names of the machines whose disks stand on it."""
        users: dict[str, list[str]] = {digest: ["(a machine being created)"] for digest in self._creating}
        for machine in self._machines.values():
            if self.ahead.has(machine):
                continue
            for digest in {machine.record.image_digest, *machine.record.media.digests}:
                name = "(what stands by: bough spares)" if machine.record.spare else machine.name
                users.setdefault(digest, []).append(name)
        for digest, user in self.snapshots.store.images_in_use():
            users.setdefault(digest, []).append(user)
        return users

    @property
    def _hidden(self) -> tuple[Path, Path]:
        """What no guest may see of the host, whatever is shared with it."""
        return self.home.root, self.home.runtime

    @contextmanager
    def _half_made(self) -> Iterator[None]:
        """What is in incoming/ until the block ends belongs to it."""
        self._making += 1
        try:
            yield
        finally:
            self._making -= 1

    @contextmanager
    def _reserve(self, name: str) -> Iterator[str]:
        """`name`, and nobody else's until the block ends; a spare that has it gives way."""
        check_name(name)
        for machine in self._present():
            if machine.name == name and machine.record.spare:
                self.spares.take(partial(is_, machine))  # none, while it is still being made
                self._holders.pop(machine.id, None)
                self.discard(machine)
        if name in self._reserved_names or any(m.name == name for m in self._present()):
            raise NameTaken(
                f"a machine named '{name}' exists already",
                hint=f"choose another name, or delete it: bough delete {name}",
                name=name,
            )
        self._reserved_names.add(name)
        try:
            yield name
        finally:
            self._reserved_names.discard(name)

    @contextmanager
    def _using(self, digest: str) -> Iterator[None]:
        """The image is not deleted while a machine on it is being made."""
        self._creating[digest] = self._creating.get(digest, 0) + 1
        try:
            yield
        finally:
            self._creating[digest] -= 1
            if not self._creating[digest]:
                del self._creating[digest]

    def _taken_uids(self) -> set[int]:
        uids = (machine.record.hardware.uid for machine in self._machines.values())
        return {uid for uid in uids if uid is not None}

    def _free_name(self, image: str) -> str:
        stem = "".join(c if c.isalnum() else "-" for c in image.lower())[:40].strip("-") or "machine"
        taken = self._reserved_names | {machine.name for machine in self._machines.values()}
        number = 1
        while f"{stem}-{number}" in taken:
            number += 1
        return f"{stem}-{number}"


def _remove_both(one: Path, other: Path) -> None:
    remove_tree(one)
    remove_tree(other)


def remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # A jailed QEMU's user may own what is inside; the directories are ours.
        shutil.rmtree(path, ignore_errors=False, onerror=_make_removable)
    else:
        path.unlink(missing_ok=True)


def _make_removable(function: Any, path: str, error: Any) -> None:
    if isinstance(error[1], FileNotFoundError):
        return
    Path(path).parent.chmod(0o700)
    function(path)
