"""A power cut that loses what the guest had not flushed.

QEMU's end alone loses nothing: the host's page cache has each write. So a machine is *armed* before:

    arm      while the vCPUs are paused, a snapshot of the disks freezes their content, and a node of QEMU is
             put in front, which writes each later write and flush to a log (blklogwrites)
    cut      QEMU is killed. Each disk gets a new overlay on the frozen content, with the logged writes up to
             the last flush. The record names the new overlays last: a crash before loses nothing
    disarm   the logs are removed
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from pathlib import Path
from typing import Protocol

from bough.errors import BoughError, Conflict, MachineFailed
from bough.hypervisor.faults import Faults
from bough.hypervisor.inventory import Inventory
from bough.images.confined import Confinement, find_program, run_confined
from bough.images.overlays import layer_format
from bough.machines.disks.creation import create_disk
from bough.machines.faults.disk import disk_name, present_node, put_log, take_off
from bough.machines.faults.record import FaultRecord, new_fault_id
from bough.machines.faults.sector_overlay import write_overlay
from bough.machines.faults.write_log import read_synced
from bough.machines.machine import Machine
from bough.machines.plan import host_arch
from bough.machines.record import MachineDisk
from bough.machines.state import State
from bough.paths import Home
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from bough.snapshots.store import SnapshotManifest
from bough.storage import sync_directory, sync_file
from bough.tasks import finish

ARMED = "armed"
_ANY = (State.RUNNING, State.PAUSED)


class Snapshots(Protocol):
    """The use case of snapshots, as far as it is needed here."""

    async def take(self, machine: Machine, *, message: str, memory: bool) -> SnapshotManifest: ...
    def delete(self, reference: str) -> None: ...


class PowerLoss:
    """Arms machines, and cuts their power."""

    def __init__(self, home: Home, faults: Faults, inventory: Inventory, snapshots: Snapshots) -> None:
        self._home = home
        self._faults = faults
        self._inventory = inventory
        self._snapshots = snapshots
        #: Ids of machines whose logs are being read.
        self._cutting: set[str] = set()
        faults.undo[ARMED] = self._disarm

    async def arm(self, machine: Machine, *, held: bool = False, for_s: float | None = None) -> FaultRecord:
        """Make a machine ready for `cut`. All writes are logged from now on, in as much space again.

        Raises:
            WrongState. Conflict: the machine is armed, or has another fault.
            NoSpace, MachineFailed
        """
        if machine.state not in _ANY:
            raise machine.wrong_state("being armed", *_ANY)
        machine.faults.check_none("being armed")
        fault = FaultRecord(
            id=new_fault_id(),
            kind=ARMED,
            summary=f"{machine.name} armed for a power cut",
            machines=[machine.id],
            pid=machine.pid,
            held=held,
        )
        return await self._faults.begin(fault, lambda: self._begin(machine, fault), for_s=for_s)

    async def _begin(self, machine: Machine, fault: FaultRecord) -> None:
        with machine.claim("being armed"):
            # No write may come between the snapshot and the log.
            was_running = machine.state is State.RUNNING
            if was_running:
                await machine.pause()
            try:
                await self._freeze_and_log(machine, fault)
            finally:
                if was_running and machine.state is State.PAUSED:
                    await finish(machine.resume())

    async def _freeze_and_log(self, machine: Machine, fault: FaultRecord) -> None:
        taken = await self._snapshots.take(machine, message="armed for a power cut", memory=False)
        self._snapshots.delete(taken.id)  # its files stay: the machine's disks continue from them
        async with machine.operation("being armed", *_ANY):
            await machine.chains.give_way()
            qmp, disks = machine.qmp(), machine.paths.disks
            logs: list[dict[str, str]] = []
            for number in range(len(machine.record.disks)):
                name = disk_name(machine.record, number)
                top, log = await present_node(qmp, name), f"{number}-{fault.id}.log"
                logs.append({"disk": name, "node": f"fault-{fault.id}-{number}", "log": log, "top": top})
            fault.settings["logs"] = logs
            self._faults.write()  # before the first log is made: a crash leaves no unknown log
            for one in logs:
                _make_log(disks / one["log"], machine.record.hardware.uid)
                await put_log(qmp, one["disk"], one["node"], str(disks / one["log"]))

    async def _disarm(self, fault: FaultRecord) -> None:
        for machine in map(self._inventory.get, fault.machines):
            if machine is None or machine.id in self._cutting:
                continue
            if machine.pid is not None and machine.pid == fault.pid:
                async with machine.operation("being disarmed", *_ANY):
                    for one in fault.settings.get("logs", ()):
                        await take_off(machine.qmp(), one["disk"], one["node"], one["top"])
                machine.chains.look()
            _remove_logs(machine, fault)

    async def cut(self, machine: Machine, *, seed: int | None = None) -> None:
        """Cut the power of an armed machine. The machine is stopped, and not armed any more.

        Args:
            seed: chooses unsynced writes that are kept, as a disk may have done; None: all are lost.

        Raises:
            Conflict: the machine is not armed.
            MachineFailed, NoSpace: the power was cut, and the disks have all that the guest has written.
        """
        armed = self._faults.of_machine(machine, ARMED)
        if not armed or armed[0].pid != machine.pid:
            raise Conflict(
                f"machine '{machine.name}' is not armed: the host has all that its guest has written",
                hint=f"before the test: bough fault power-arm {machine.name}",
                machine=machine.name,
            )
        (fault,) = armed
        machine.tell("fault", "power-cut, unsynced writes are lost")
        work = self._cut(machine, fault, seed)
        await asyncio.shield(machine.own(work, "lose unsynced writes"))

    async def _cut(self, machine: Machine, fault: FaultRecord, seed: int | None) -> None:
        self._cutting.add(machine.id)
        try:
            with machine.claim("losing its power"):
                await machine.stop(force=True, flush=False)
                async with machine.operation("losing unsynced writes", State.STOPPED):
                    await self._rebuild(machine, fault, seed)
        finally:
            self._cutting.discard(machine.id)
            with contextlib.suppress(BoughError):
                await self._faults.heal(fault, "its power was cut")
            _remove_logs(machine, fault)

    async def _rebuild(self, machine: Machine, fault: FaultRecord, seed: int | None) -> None:
        before = machine.record.disks
        after: list[MachineDisk] = []
        try:
            for number, disk in enumerate(before):
                log = machine.paths.disks / fault.settings["logs"][number]["log"]
                name = f"{number}-{secrets.token_hex(4)}.qcow2"
                after.append(disk.model_copy(update={"file": name}))
                await self._replay(machine, disk, log, machine.paths.disks / name, seed)
            sync_directory(machine.paths.disks)
            machine.change(disks=after)
        except BaseException:
            _remove_disks(machine, after)
            raise
        _remove_disks(machine, before)

    async def _replay(
        self, machine: Machine, disk: MachineDisk, log: Path, target: Path, seed: int | None
    ) -> None:
        """Make an overlay on the frozen content with the logged writes."""
        base, home = disk.layers[0], self._home
        written = target.with_name(f"w{target.name}")

        def write() -> None:
            write_overlay(
                written,
                log,
                read_synced(log, seed),
                size_bytes=disk.size_bytes,
                backing=f"../../../{base}",
                backing_format=layer_format(base),
            )

        try:
            await asyncio.to_thread(write)
            await create_disk(target, disk.size_bytes, str(written.relative_to(home.root)))
            await self._merge(machine, disk, written, target, base)
            await asyncio.to_thread(sync_file, target)
        finally:
            written.unlink(missing_ok=True)

    async def _merge(
        self, machine: Machine, disk: MachineDisk, written: Path, target: Path, base: str
    ) -> None:
        """Copy the written sectors into the overlay, which then continues from the frozen content."""
        jail = await probe_jail(find_qemu(host_arch()), self._home)
        uid = machine.record.hardware.uid
        if uid is not None:
            for path in (written, target):
                os.chown(path, uid, uid)
        words = [find_program("qemu-img"), "rebase", "-q", "-f", "qcow2", "-F", layer_format(base)]
        layers = tuple(self._home.root / layer for layer in disk.layers)
        done = await run_confined(
            Confinement(jail, uid),
            [*words, "-b", f"../../../{base}", str(target)],
            read_only=(written, *layers),
            writable=(target,),
        )
        if done.status != 0:
            raise MachineFailed(
                f"the disk of machine '{machine.name}' could not be set back: {str(done.output)[-500:]}",
                machine=machine.name,
            )


def _make_log(path: Path, uid: int | None) -> None:
    path.touch(0o600)
    if uid is not None:
        os.chown(path, uid, uid)


def _remove_logs(machine: Machine, fault: FaultRecord) -> None:
    for one in fault.settings.get("logs", ()):
        (machine.paths.disks / str(one["log"])).unlink(missing_ok=True)


def _remove_disks(machine: Machine, disks: list[MachineDisk]) -> None:
    for disk in disks:
        (machine.paths.disks / disk.file).unlink(missing_ok=True)
