"""Take a snapshot of a machine. A running machine continues afterwards.

A crash between any two steps loses no acknowledged data:

    1. the machine's disk files get a second name (a hard link) in snapshots/<id>/, with a manifest in the
       state "layers"
    2. empty overlays on these files are made, and the machine's record names the overlays as its disks.
       The record is correct before and after QEMU's switch: an unwritten overlay reads through to its
       backing file. `disks_before` stays in the record until the switch is done, in case it never happens
    3. most of the memory is copied, while the guest runs
    4. pause: vCPUs stop; the device state is saved, QEMU switches to the overlays, changed memory is copied
       again; vCPUs run. Several machines share this moment: see moment.py
    5. memory and devices are written, and the manifest gets the state "whole"
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.errors import BoughError, MachineFailed
from bough.machines.disks.buses import check_saved
from bough.machines.disks.creation import create_disk
from bough.machines.disks.nodes import read_tops, writes
from bough.machines.identity import prepare_guest
from bough.machines.machine import Machine
from bough.machines.memory import find_ram, find_video
from bough.machines.record import MachineDisk
from bough.machines.state import State
from bough.machines.video import Video, join_devices
from bough.paths import SnapshotPaths
from bough.progress import Progress, Report
from bough.qemu.arch import architecture
from bough.qemu.block import overlay_node
from bough.qemu.qmp import Qmp
from bough.qemu.ram import GuestRam, Template
from bough.snapshots.copying import Followed, Outside, copying
from bough.snapshots.fork_overlays import install_overlays, remove_disks
from bough.snapshots.moment import Alone, Meeting
from bough.snapshots.store import SnapshotDisk, SnapshotManifest, SnapshotStore
from bough.storage import copy_holes, no_space_is_told, sync_directory, sync_file
from bough.tasks import finish

_FD_SET = 1
_FREEZE_S = 20.0


@dataclass(frozen=True)
class Memory:
    """The memory and device state of a machine at the moment of the snapshot."""

    template: Template
    devices: bytes


@dataclass(frozen=True)
class Captured:
    """The result of `capture`.

    Attributes:
        manifest: already in the store, still in the state "layers".
        memory: None for a snapshot of disks alone.
    """

    manifest: SnapshotManifest
    memory: Memory | None


async def capture(
    machine: Machine,
    store: SnapshotStore,
    manifest: SnapshotManifest,
    *,
    memory: bool,
    moment: Meeting | None = None,
    report: Report,
) -> Captured:
    """Take a snapshot. `manifest` describes everything except the disks, the consistency and the pause.

    The caller holds the machine's operation, and shields the call from cancellation.

    Args:
        moment: shared with the captures of other machines; None: the machine is captured alone.

    Returns the complete manifest, and the memory.

    Raises:
        MachineFailed: QEMU ended, or refused; the machine is unchanged, or `failed` with the cause.
        NoSpace, HostLacks, WrongState: nothing was changed.
    """
    running = machine.state in (State.RUNNING, State.PAUSED)
    machine.faults.check_none("a snapshot")
    if running and memory:
        machine.condition.check_awake("a snapshot with its memory")
        check_saved(machine.record, "a snapshot with its memory")
    report(Progress("preparing the snapshot"))
    if running:
        await machine.chains.give_way()
    before = [disk.model_copy() for disk in machine.record.disks]
    manifest = await _begin(machine, store, manifest)
    try:
        uid = machine.record.hardware.uid
        after = await asyncio.to_thread(
            install_overlays, store.paths(manifest.id), manifest, machine.paths, uid
        )
        try:
            machine.change(disks=after, disks_before=before)
        except BaseException:
            remove_disks(machine.paths, after)
            raise
        taken = None
        moment = moment or Alone()
        if running:
            manifest, taken = await _capture_running(machine, manifest, after, memory, moment, report)
        else:
            await moment.begin()
            await moment.end()
    except BaseException:
        await finish(_undo(machine, store, manifest, before))
        raise
    machine.change(disks_before=None, snapshot=manifest.id)
    _take_over(machine, store, manifest, before)
    return Captured(manifest, taken)


async def _begin(machine: Machine, store: SnapshotStore, manifest: SnapshotManifest) -> SnapshotManifest:
    """Do step 1."""
    made = SnapshotPaths(store.home.incoming / manifest.id)
    try:
        with no_space_is_told("a snapshot", store.home.root):
            disks = await _make_layers(machine, store, manifest, made)
            manifest = manifest.model_copy(update={"disks": tuple(disks), "state": "layers"})
            store.add(made, manifest)
    except BaseException:
        shutil.rmtree(made.root, ignore_errors=True)
        raise
    return manifest


async def _make_layers(
    machine: Machine, store: SnapshotStore, manifest: SnapshotManifest, made: SnapshotPaths
) -> list[SnapshotDisk]:
    for directory in (made.root, made.disks, made.overlays):
        directory.mkdir(mode=0o711)
    disks = []
    for number, disk in enumerate(machine.record.disks):
        # In the jail of an ordinary user, QEMU can replace the disk by any file.
        os.link(machine.paths.disks / disk.file, made.disk(number), follow_symlinks=False)
        if not stat.S_ISREG(made.disk(number).lstat().st_mode):
            raise MachineFailed(
                f"disk {number} of machine '{machine.name}' is no longer a regular file", machine=machine.name
            )
        if machine.record.ephemeral:  # the disk of an ephemeral machine was never synced
            await asyncio.to_thread(sync_file, made.disk(number))
        own = str(store.paths(manifest.id).disk(number).relative_to(store.home.root))
        disks.append(SnapshotDisk(size_bytes=disk.size_bytes, layers=(own, *disk.layers)))
        await create_disk(made.overlay(number), disk.size_bytes, own)
    for directory in (made.disks, made.overlays):
        sync_directory(directory)
    return disks


async def _undo(
    machine: Machine, store: SnapshotStore, manifest: SnapshotManifest, before: list[MachineDisk]
) -> None:
    """Undo a failed capture.

    The machine returns to its previous disks only if QEMU confirms that the guest still writes to those
    files. If QEMU has ended, the guest may have written to the overlays, so the overlays stay. An unwritten
    overlay reads through to the previous disk.
    """
    if machine.record.disks_before is None:
        return  # the record never named the overlays
    kept = machine.record.disks
    try:
        switched = await writes(machine.qmp(), kept)
    except (BoughError, OSError):
        switched = True
    written = machine.note(disks=kept if switched else before, disks_before=None)
    if switched:
        _take_over(machine, store, manifest, before)
    elif written:
        remove_disks(machine.paths, kept)
    # Otherwise the record on disk still names the overlays. The overlays read through to the previous disks.


def _take_over(
    machine: Machine, store: SnapshotStore, manifest: SnapshotManifest, before: list[MachineDisk]
) -> None:
    """Make the previous disk files the snapshot's own, read-only."""
    paths = store.paths(manifest.id)
    remove_disks(machine.paths, before)
    for number in range(len(before)):
        take_over_layer(paths.disk(number))
    copy_companions(machine.paths.disks, paths.disks)


def take_over_layer(path: Path) -> None:
    """Make a snapshot's disk file read-only and owned by the service.

    If a machine has a second link to the file and writes to it, leave the file unchanged.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.lstat().st_nlink == 1 and stat.S_IMODE(path.lstat().st_mode) != 0o444:
            if os.geteuid() == 0:
                os.chown(path, 0, 0)
            path.chmod(0o444)


def copy_companions(source: Path, target: Path) -> None:
    """Copy the other files beside a machine's disks: the firmware variables and the seed."""
    for path in source.iterdir():
        if path.suffix != ".qcow2" and path.is_file() and not path.is_symlink():
            (target / path.name).unlink(missing_ok=True)
            copy_holes(path, target / path.name)
            (target / path.name).chmod(0o600)


# -- running machines ---------------------------------------------------------------------------------


async def _capture_running(
    machine: Machine,
    manifest: SnapshotManifest,
    after: list[MachineDisk],
    memory: bool,
    moment: Meeting,
    report: Report,
) -> tuple[SnapshotManifest, Memory | None]:
    qmp = machine.qmp()
    tops = await read_tops(qmp)
    nodes = [await _add_overlay(qmp, machine.paths.disks / disk.file, disk.file) for disk in after]
    switch = [
        {"type": "blockdev-snapshot", "data": {"node": tops[f"disk{number}"].name, "overlay": node}}
        for number, node in enumerate(nodes, start=1 if machine.record.media.root == "none" else 0)
    ]
    try:
        if memory:
            taken, pause_ms = await _with_memory(machine, qmp, manifest, switch, moment, report)
            found = {"consistency": "memory", "pause_ms": round(pause_ms, 2)}
        else:
            taken = None
            found = {"consistency": await _disks_only(machine, qmp, switch, moment)}
    except BoughError as error:
        for node in nodes:
            with contextlib.suppress(BoughError):
                await qmp.execute("blockdev-del", **_named(node_name=node))
        if isinstance(error, MachineFailed):
            raise
        raise MachineFailed(
            f"machine '{machine.name}' could not be snapshotted: {error.message}", machine=machine.name
        ) from error
    return manifest.model_copy(update=found), taken


async def _add_overlay(qmp: Qmp, path: Path, name: str) -> str:
    node = overlay_node(str(path), name)  # blockdev-snapshot attaches the backing file
    await qmp.execute("blockdev-add", **node.qmp_options())
    return node.name


async def _disks_only(machine: Machine, qmp: Qmp, switch: list[dict[str, Any]], moment: Meeting) -> str:
    """Switch to the overlays, with quiesced file systems if the agent can quiesce.

    Returns "frozen" if the file systems were quiesced until the switch was done, otherwise "crash".
    """
    channel = machine.channel()
    frozen = False
    if channel is not None and machine.state is State.RUNNING:
        with contextlib.suppress(BoughError):
            await channel.call("freeze", {"timeout_s": _FREEZE_S}, timeout_s=_FREEZE_S, exact=True)
            frozen = True
    try:
        await moment.begin()
        await qmp.execute("transaction", actions=switch)
        await moment.end()
    finally:
        if frozen and channel is not None:
            with contextlib.suppress(BoughError):
                thawed = await finish(channel.call("thaw", {}, timeout_s=_FREEZE_S))
                frozen = bool(thawed.get("held"))
    return "frozen" if frozen else "crash"


async def _with_memory(
    machine: Machine,
    qmp: Qmp,
    manifest: SnapshotManifest,
    switch: list[dict[str, Any]],
    moment: Meeting,
    report: Report,
) -> tuple[Memory, float]:
    """Do steps 3 and 4. Return the memory, and the pause in ms."""
    channel = machine.channel()
    ram = await find_ram(
        qmp, machine.pid, manifest.spec.memory, architecture(manifest.hardware.arch).ram_start
    )
    report(Progress("copying memory"))

    async def prepare() -> None:
        if channel is not None:
            with contextlib.suppress(BoughError):  # an older agent: each fork then prepares itself
                await prepare_guest(channel)

    async with (
        device_state(qmp) as state,
        copying(qmp, ram, runs=machine.state is State.RUNNING, prepare=prepare) as copy,
    ):
        drawn, pause_ms = await _stand_still(machine, qmp, switch, copy, state, moment)
        devices = await asyncio.to_thread(join_devices, state.read(), drawn)
        template = await copy.seal()
    return Memory(template, devices), pause_ms


async def _stand_still(
    machine: Machine,
    qmp: Qmp,
    switch: list[dict[str, Any]],
    copy: Outside | Followed,
    state: DeviceState,
    moment: Meeting,
) -> tuple[Video | None, float]:
    """Do step 4. Return the content of the screen, if the machine has one, and the pause in ms."""
    was_running = machine.state is State.RUNNING
    video = await find_video(qmp, machine.pid) if machine.record.media.display else None
    await moment.begin()
    started = time.monotonic()
    try:
        if was_running:
            await qmp.execute("stop")
        copied, drawn = asyncio.ensure_future(copy.beside()), asyncio.ensure_future(_read_video(video))
        try:
            await state.save()
            await qmp.execute("transaction", actions=switch)
        finally:
            # Finish both before the guest continues, also after an error.
            await finish(asyncio.wait((copied, drawn)))
        copied.result()
        await copy.last()
        await moment.end()
    finally:
        if was_running:
            await finish(qmp.execute("cont"))
        pause_ms = (time.monotonic() - started) * 1000
    return drawn.result(), pause_ms


async def _read_video(video: GuestRam | None) -> Video | None:
    return await asyncio.to_thread(Video.read, video) if video is not None else None


class DeviceState:
    """The memory file for the state of QEMU's devices; see `device_state`."""

    def __init__(self, qmp: Qmp, descriptor: int) -> None:
        self._qmp = qmp
        self._descriptor = descriptor

    async def save(self) -> None:
        """Have QEMU write the state of the devices. The vCPUs are stopped."""
        await self._qmp.execute("xen-save-devices-state", filename=f"/dev/fdset/{_FD_SET}", live=False)

    def read(self) -> bytes:
        size = os.fstat(self._descriptor).st_size
        data = os.pread(self._descriptor, size, 0)
        if len(data) != size:
            raise MachineFailed("the state of the devices could not be read back")
        return data


@contextlib.asynccontextmanager
async def device_state(qmp: Qmp) -> AsyncIterator[DeviceState]:
    """Provide a memory file writable by QEMU. Enter the block before the vCPUs are stopped."""
    state = os.memfd_create("bough-devices", os.MFD_CLOEXEC)
    try:
        # QEMU uses a passed descriptor for a file name only if the access modes are the same.
        descriptor = os.open(f"/proc/self/fd/{state}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            await qmp.add_fd(_FD_SET, descriptor)
        finally:
            os.close(descriptor)
        try:
            yield DeviceState(qmp, state)
        finally:
            with contextlib.suppress(BoughError):
                await qmp.remove_fd(_FD_SET)
    finally:
        os.close(state)


def _named(**arguments: Any) -> dict[str, Any]:
    """Return the arguments with QMP's names: with dashes."""
    return {name.replace("_", "-"): value for name, value in arguments.items()}
