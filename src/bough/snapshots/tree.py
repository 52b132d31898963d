"""The tree of snapshots: take, fork, restore, verify, delete.

This module works on single machines. The hypervisor keeps the list of machines.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

from bough.errors import Conflict, SnapshotDamaged
from bough.images.confined import Confinement
from bough.images.overlays import check_disk
from bough.machines.machine import Machine
from bough.machines.nics import renew_mac_addresses
from bough.machines.record import (
    FirstBoot,
    Hardware,
    MachineDisk,
    MachineRecord,
    PortForward,
    agent_port_of,
    disk_bus_of,
    new_uuid,
    now,
)
from bough.machines.saved_state import SavedState
from bough.machines.seed import renew_seed
from bough.machines.state import LIVE, State
from bough.paths import Home, MachinePaths
from bough.progress import Progress, Report
from bough.qemu.binary import find_qemu
from bough.qemu.jail import machine_uid
from bough.qemu.jail_probe import probe_jail
from bough.qemu.ram import Extent, Template, different_extents, intersect, size_of, subtract, union
from bough.snapshots.capture import (
    Captured,
    Memory,
    capture,
    copy_companions,
    take_over_layer,
)
from bough.snapshots.fork_overlays import install_overlays
from bough.snapshots.memory import (
    MAX_CHAIN,
    Templates,
    load_template,
    memory_chain,
    read_devices,
    remove_memory,
    verify_memory,
    write_memory,
)
from bough.snapshots.moment import Meeting
from bough.snapshots.store import SnapshotManifest, SnapshotStore, new_snapshot_id
from bough.spec import MachineSpec
from bough.spec.model import needs_set_up
from bough.storage import no_space_is_told, sync_directory

#: Largest share of the host's memory for templates that wait for the next fork.
_TEMPLATE_SHARE = 0.25

Identity = Literal["new", "keep"]


class SnapshotTree:
    def __init__(self, home: Home) -> None:
        self.store = SnapshotStore(home)
        self._home = home
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.templates = Templates(self.store, int(memory_bytes * _TEMPLATE_SHARE))
        #: The state of unwritten snapshots, while forks start from them.
        self._passing: dict[str, SavedState] = {}
        #: How often each snapshot is in use (`using`).
        self._used: Counter[str] = Counter()

    # -- taking -----------------------------------------------------------------------------------

    async def take(
        self,
        machine: Machine,
        *,
        label: str | None = None,
        message: str = "",
        memory: bool = True,
        keep: bool = True,
        booted_key: str | None = None,
        captured: Callable[[SnapshotManifest], None] = lambda _: None,
        part_of: str | None = None,
        moment: Meeting | None = None,
        report: Report,
    ) -> SnapshotManifest:
        """Take a snapshot of a running or stopped machine.

        The operation continues if the caller is cancelled.

        Args:
            memory: include the memory of a running machine; otherwise take the disks alone.
            keep: write the snapshot to disk. Otherwise it exists until `forget`, for forks that start at
                once.
            booted_key: makes a booted snapshot, with this key; each fork has its own first boot.
            captured: called when the machine runs again, before its memory is written: forks can start.
            part_of: id of a project's snapshot.
            moment: shared with the snapshots of other machines.

        Raises:
            NameTaken, WrongState, Conflict, HostLacks, NoSpace: nothing was changed.
            MachineFailed: QEMU refused or ended.
        """
        self.store.check_label(label)
        names = {"label": label, "message": message, "booted_key": booted_key, "part_of": part_of}
        work = self._take(machine, names, memory, keep, captured, moment, report)
        return await asyncio.shield(machine.own(work, "take a snapshot"))

    async def _take(
        self,
        machine: Machine,
        names: Mapping[str, Any],
        memory: bool,
        keep: bool,
        captured: Callable[[SnapshotManifest], None],
        moment: Meeting | None,
        report: Report,
    ) -> SnapshotManifest:
        allowed = (State.RUNNING, State.PAUSED, State.STOPPED, State.FAILED)
        async with machine.operation("being snapshotted", *allowed):
            record = machine.record
            draft = SnapshotManifest(
                id=new_snapshot_id(),
                state="layers",
                parent=record.snapshot,
                machine=record.id,
                machine_name=record.name,
                spec=record.spec,
                image_digest=record.image_digest,
                image_agent=record.image_agent,
                agent_disk=record.agent_disk,
                container=record.container,
                program=record.program,
                hardware=record.hardware,
                domain=record.domain,
                project=record.project,
                first_boot=record.first_boot if names["booted_key"] is None else FirstBoot(),
                booted_boot=record.booted_boot,
                media=record.media,
                disks=(),
                **names,
            )
            with self.using(draft):  # nothing depends on the draft yet
                found = await capture(machine, self.store, draft, memory=memory, moment=moment, report=report)
                if found.memory is not None:
                    self.templates.put(draft.id, found.memory.template)
                    self._passing[draft.id] = SavedState(
                        found.memory.template, found.memory.devices, accelerator=machine.record.accelerator
                    )
                    captured(found.manifest)
                manifest = await self._keep(machine, found, keep, report)
            await self._merge(machine, report)
            return manifest

    async def _merge(self, machine: Machine, report: Report) -> None:
        """Merge chains that have become too long. Each snapshot adds an overlay."""
        if machine.state in LIVE:
            machine.chains.look()
        elif machine.chains.is_too_long:
            report(Progress("merging disk overlays"))
            jail = await probe_jail(find_qemu(machine.record.hardware.arch), self._home)
            await machine.chains.merge_at_rest(jail)

    async def _keep(
        self, machine: Machine, captured: Captured, keep: bool, report: Report
    ) -> SnapshotManifest:
        manifest, memory = captured.manifest, captured.memory
        try:
            if not keep:
                self.store.update(manifest)
                return manifest
            base = self._base(manifest) if memory is not None else None
            # Until the manifest names the base, a deletion of the base would remove the base's memory.
            with self.using(base) if base is not None else nullcontext():
                if memory is not None:
                    report(Progress("writing memory"))
                    accelerator = machine.record.accelerator
                    kept = await asyncio.to_thread(self._write, manifest, memory, base, accelerator)
                    manifest = manifest.model_copy(update={"memory": kept})
                whole = manifest.model_copy(update={"state": "whole"})
                self.store.update(whole)
        except BaseException:
            # The snapshot is not listed. The machine still needs the disk files.
            remove_memory(self.store.paths(manifest.id))
            self.forget(manifest)
            raise
        self._passing.pop(manifest.id, None)
        return whole

    def _write(
        self,
        manifest: SnapshotManifest,
        memory: Memory,
        base: SnapshotManifest | None,
        accelerator: str | None,
    ) -> Any:
        paths = self.store.paths(manifest.id)
        everything = memory.template.extents()
        if base is not None:
            old = self.templates.peek(base.id) or load_template(self.store, base)
            changed = _changes(memory.template, everything, old)
            if size_of(changed) <= size_of(everything) // 2:
                told = {"base": base.id, "accelerator": accelerator}
                return write_memory(paths, memory.template, changed, memory.devices, **told)
        return write_memory(paths, memory.template, everything, memory.devices, accelerator=accelerator)

    def _base(self, manifest: SnapshotManifest) -> SnapshotManifest | None:
        """Return the nearest ancestor with memory of the same size.

        None without such an ancestor, or if the chain of bases is too long.
        """
        parent = manifest.parent
        while parent is not None and self.store.has(parent):
            found = self.store.get(parent)
            if found.memory is not None and found.memory.size_bytes == manifest.spec.memory:
                return found if len(memory_chain(self.store, found)) < MAX_CHAIN else None
            parent = found.parent
        return None

    # -- forking and restoring ----------------------------------------------------------------------

    async def saved_state(self, manifest: SnapshotManifest) -> SavedState | None:
        """Return the state that a fork starts from; None if the snapshot has no memory.

        Raises:
            SnapshotDamaged
        """
        passing = self._passing.get(manifest.id)
        if passing is not None:
            return passing
        if manifest.memory is None:
            return None
        template = await self.templates.get(manifest)
        devices = await asyncio.to_thread(read_devices, self.store, manifest)
        return SavedState(template, devices, accelerator=manifest.memory.accelerator)

    @contextmanager
    def using(self, manifest: SnapshotManifest) -> Iterator[None]:
        """Keep the snapshot's files and memory until the block ends, even after a deletion."""
        self._used[manifest.id] += 1
        try:
            yield
        finally:
            self._used[manifest.id] -= 1

    def forget(self, manifest: SnapshotManifest) -> None:
        """Release the state of an unwritten snapshot: the forks have started."""
        self._passing.pop(manifest.id, None)
        self.templates.drop(manifest.id)

    def fork_record(
        self,
        manifest: SnapshotManifest,
        *,
        machine_id: str,
        name: str,
        taken_uids: Collection[int],
        identity: Identity,
        ephemeral: bool,
        spec: MachineSpec | None = None,
    ) -> MachineRecord:
        """Return the record of a new machine on the snapshot's hardware.

        Args:
            identity: "new", or "keep": the fork has the parent's identity.
            spec: the user's request, if `run` makes the machine: the user does not see a fork.
        """
        # A new vmgenid, whatever the identity: no two machines may continue with the same random numbers.
        uid = machine_uid(machine_id, taken_uids) if os.geteuid() == 0 else None
        hardware = manifest.hardware.model_copy(update={"uid": uid, "vmgenid": new_uuid()})
        if identity == "new":
            hardware = hardware.model_copy(
                update={
                    "uuid": new_uuid(),
                    "nics": renew_mac_addresses(hardware.nics, spec),
                }
            )
        asked: dict[str, Any] = {}
        if spec is not None:
            asked = {
                "spec": spec,
                "forked_from": None,
                "ports": [PortForward(**p.model_dump()) for p in spec.ports],
                "domain": None,
            }
            asked["first_boot"] = FirstBoot(done=not needs_set_up(spec), instance=machine_id)
        # The parent keeps the ports of the spec; the fork gets any free ports.
        ports = [PortForward(host=p.host, host_port=0, guest_port=p.guest_port) for p in manifest.spec.ports]
        return MachineRecord(
            id=machine_id,
            name=name,
            spec=_spec_of_fork(manifest, identity),
            domain=(manifest.spec.hostname or "").partition(".")[2] or manifest.domain,
            project=manifest.project,
            image_digest=manifest.image_digest,
            image_agent=manifest.image_agent,
            agent_disk=manifest.agent_disk,
            container=manifest.container,
            program=manifest.program,
            hardware=hardware,
            created=now(),
            ephemeral=ephemeral,
            ports=ports,
            first_boot=manifest.first_boot,
            booted_boot=manifest.booted_boot,
            media=manifest.media,
            snapshot=manifest.id,
            forked_from=manifest.id,
            identity="new" if identity == "new" else "clock",
            macs_before=manifest.hardware.mac_addresses,
        ).model_copy(update=asked)

    def make_files(self, record: MachineRecord, manifest: SnapshotManifest, made: MachinePaths) -> None:
        """Create the disks and the record of a fork below `made`."""
        with no_space_is_told("a fork", self._home.root):
            for directory in (made.root, made.disks, made.log):
                directory.mkdir(mode=0o711)
            source = self.store.paths(manifest.id)
            record.disks = install_overlays(
                source, manifest, made, record.hardware.uid, durable=not record.ephemeral
            )
            copy_companions(source.disks, made.disks)
            if record.identity == "new":
                renew_seed(made.disks, record)
            record.write(made)

    def fresh_overlays(self, manifest: SnapshotManifest, fork: Machine) -> list[MachineDisk]:
        """Create further empty overlays for an ephemeral fork.

        The fork's record does not name the overlays.
        """
        source, uid = self.store.paths(manifest.id), fork.record.hardware.uid
        return install_overlays(source, manifest, fork.paths, uid, durable=False)

    def check_own(self, machine: Machine, manifest: SnapshotManifest) -> None:
        """Check that the machine can be restored to the snapshot. Raises Conflict."""
        if manifest.machine != machine.id and machine.record.forked_from != manifest.id:
            raise Conflict(
                f"snapshot {manifest.label or manifest.id} belongs to machine '{manifest.machine_name}', "
                f"not to '{machine.name}'",
                hint=f"create a new machine from it: bough fork {manifest.label or manifest.id}",
            )
        # The memory contains the state of each card.
        if manifest.memory is not None and _cards(manifest.hardware) != _cards(machine.record.hardware):
            label = manifest.label or manifest.id
            raise Conflict(
                f"machine '{machine.name}' had other network cards in snapshot {label}",
                hint=f"attach and detach networks as then, or create a new machine: bough fork {label}",
            )
        other = [] if manifest.memory is None else _other_settings(manifest, machine.record)
        if other:
            label = manifest.label or manifest.id
            raise Conflict(
                f"machine '{machine.name}' had other settings in snapshot {label}: {', '.join(other)}",
                hint=f"set them as then (bough set --help), or create a new machine: bough fork {label}",
            )

    async def put_back(self, machine: Machine, manifest: SnapshotManifest) -> None:
        """Restore the disks and settings of a stopped machine. The present disks are deleted.

        Raises:
            WrongState: the machine runs.
            Conflict: the snapshot belongs to another machine.
        """
        self.check_own(machine, manifest)
        async with machine.operation("being restored", State.STOPPED, State.FAILED):
            record = machine.record
            disks = await asyncio.to_thread(
                install_overlays,
                self.store.paths(manifest.id),
                manifest,
                machine.paths,
                record.hardware.uid,
            )
            # A machine of a forked project has the identity of the snapshot.
            is_own = manifest.machine == machine.id or manifest.part_of is not None
            machine.change(
                disks=disks,
                snapshot=manifest.id,
                agent_disk=manifest.agent_disk,
                program=manifest.program,
                state=State.STOPPED,
                failure=None,
                identity="clock" if is_own else "new",
                macs_before=manifest.hardware.mac_addresses,
                hardware=record.hardware.model_copy(update={"vmgenid": new_uuid()}),
                # The guest in the restored memory has these directories mounted.
                spec=record.spec.model_copy(update={"mounts": manifest.spec.mounts}),
            )
            copy_companions(self.store.paths(manifest.id).disks, machine.paths.disks)
            sync_directory(machine.paths.disks)
            for disk in record.disks:
                (machine.paths.disks / disk.file).unlink(missing_ok=True)

    # -- maintenance --------------------------------------------------------------------------------

    async def verify(self, manifest: SnapshotManifest) -> dict[str, Any]:
        """Read and check all files of the snapshot, in a block of `using`. Raises SnapshotDamaged."""
        jail = await probe_jail(find_qemu(manifest.hardware.arch), self._home)
        # After an interrupted snapshot, a file may still belong to the machine's user.
        confinement = Confinement(jail, manifest.hardware.uid)
        for disk in manifest.disks:
            for layer in disk.layers:
                if not (self._home.root / layer).is_file():
                    raise SnapshotDamaged(
                        f"snapshot {manifest.id} needs {layer}, which is missing", snapshot=manifest.id
                    )
            own = self._home.root / disk.layers[0]
            found = await check_disk(own, confinement)
            if found.status not in (0, 3):
                raise SnapshotDamaged(f"{own} is damaged: {found.why}", snapshot=manifest.id)
        for part in memory_chain(self.store, manifest) if manifest.memory else ():
            await asyncio.to_thread(verify_memory, self.store, part)
        return {"id": manifest.id, "whole": True}

    def settle(self) -> None:
        """Complete interrupted snapshots, when the service starts.

        Make the disk files read-only, and remove partial memory. Stray files of machines were removed before,
        so no machine can write to a disk file with only one name.
        """
        for manifest in self.store.every():
            paths = self.store.paths(manifest.id)
            for number in range(len(manifest.disks)):
                take_over_layer(paths.disk(number))
            if manifest.memory is None:
                remove_memory(paths)

    def delete(self, manifest: SnapshotManifest, records: Iterable[MachineRecord]) -> None:
        """Delete a snapshot. Forks and other snapshots are unaffected."""
        self.templates.drop(manifest.id)
        self.store.retire(manifest.id)
        self.collect(records)

    def collect(self, records: Iterable[MachineRecord]) -> list[str]:
        """Remove unneeded files. Return the ids of the removed snapshots."""
        in_use = [
            layer
            for record in records
            for disk in (*record.disks, *(record.disks_before or ()))
            for layer in disk.layers
        ]
        used = {*self._passing, *(name for name, count in self._used.items() if count)}
        removed = self.store.collect([*in_use, *(f"snapshots/{name}/" for name in used)])
        for manifest in self.store.without_dependents():
            if manifest.id in used:
                continue
            remove_memory(self.store.paths(manifest.id))
            self.store.update(manifest.model_copy(update={"memory": None}))
        return removed

    def describe(self, manifest: SnapshotManifest) -> dict[str, Any]:
        parent = manifest.parent
        listed = {known.id for known in self.store.all()}
        while parent is not None and parent not in listed:
            parent = self.store.get(parent).parent if self.store.has(parent) else None
        return {
            "id": manifest.id,
            "label": manifest.label,
            "message": manifest.message,
            "created": manifest.created,
            "machine": manifest.machine,
            "machine_name": manifest.machine_name,
            "parent": parent,
            "consistency": manifest.consistency,
            "memory": manifest.memory.model_dump() if manifest.memory else None,
            "pause_ms": manifest.pause_ms,
            "disk_bytes": self.store.bytes_on_disk(manifest.id),
            "image": manifest.spec.image,
            "spec": manifest.spec.model_dump(mode="json"),
        }

    async def close(self) -> None:
        await self.templates.close()


def _changes(new: Template, new_extents: list[Extent], old: Template) -> list[Extent]:
    """Return the extents where `new` differs from `old`, also where only `old` has content."""
    old_extents = old.extents()
    shared = list(intersect(new_extents, old_extents))
    differing = different_extents(new, old, shared)
    alone = union(list(subtract(new_extents, old_extents)), list(subtract(old_extents, new_extents)))
    return union(differing, alone)


def _other_settings(manifest: SnapshotManifest, record: MachineRecord) -> list[str]:
    """Return the settings with another value than in the snapshot, on which its memory depends."""
    names = ["vcpus", "memory", "hyperv"]
    other = [name for name in names if getattr(manifest.spec, name) != getattr(record.spec, name)]
    if disk_bus_of(manifest.spec, manifest.hardware) != record.disk_bus:
        other.append("disk_bus")
    if agent_port_of(manifest.spec, manifest.hardware) != record.agent_port:
        other.append("agent_port")
    return other


def _cards(hardware: Hardware) -> list[tuple[int, str]]:
    return [(nic.place, nic.model) for nic in hardware.nics]


def _spec_of_fork(manifest: SnapshotManifest, identity: Identity) -> MachineSpec:
    """Return the parent's spec without the parent's own names."""
    spec = manifest.spec.model_copy(update={"hostname": None})
    if identity == "keep":
        return spec
    nics = tuple(card.model_copy(update={"mac": None, "ipv4": None, "aliases": ()}) for card in spec.nics)
    return spec.model_copy(update={"nics": nics})
