"""Suspend a machine to disk and end QEMU; resume a suspended machine.

After a crash between any two steps, the machine either runs or is suspended:

    suspend     1. The vCPUs stop, which flushes the disks.
                2. Memory and devices are written below incoming/ and synced.
                3. Both are moved to the machine's directory.
                4. The record says "suspended" and has their checksum.
                5. QEMU is ended.
    resume      1. A new QEMU starts while the memory is read, and loads the devices. No vCPU runs yet.
                2. The record says that no memory is on disk.
                3. The vCPUs run.

If QEMU or the service dies before the second step of a resume, the machine stays suspended: see
`Recovery.adopt`. Saved memory that no record names is removed when the service starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from bough.errors import BoughError, HostLacks, MachineFailed, WrongState
from bough.machines.disks.buses import check_saved
from bough.machines.identity import prepare_guest, settle_identity
from bough.machines.machine import Machine
from bough.machines.memory import find_ram, find_video
from bough.machines.record import MachineRecord, Suspended, now
from bough.machines.saved_state import SavedState
from bough.machines.state import State
from bough.machines.video import Video, join_devices
from bough.paths import Home, MachinePaths, SnapshotPaths
from bough.progress import Progress, Report
from bough.qemu.arch import architecture
from bough.qemu.qmp import Qmp
from bough.qemu.ram import GuestRam, MemoryFile, size_of, subtract
from bough.snapshots.capture import device_state
from bough.snapshots.memory import lay_over, read_template, write_pages
from bough.storage import sync_directory
from bough.tasks import finish


async def suspend(machine: Machine, home: Home, report: Report) -> None:
    """Suspend a machine. The operation continues if the caller is cancelled.

    Raises:
        WrongState, Conflict, HostLacks, NoSpace: the machine still runs.
        MachineFailed: QEMU refused, and the machine still runs; or QEMU ended, and the machine is `failed`.
    """
    await asyncio.shield(machine.own(_suspend(machine, home, report), "suspend"))


async def _suspend(machine: Machine, home: Home, report: Report) -> None:
    async with machine.operation("being suspended", State.RUNNING, State.PAUSED):
        machine.condition.check_awake("suspending")
        check_saved(machine.record, "suspending")
        report(Progress("writing memory to disk"))
        machine.faults.check_none("its memory on disk")
        qmp = machine.qmp()
        await machine.chains.give_way()
        await _prepare(machine)
        ran = machine.state is State.RUNNING
        made = SnapshotPaths(home.incoming / f"{machine.id}.suspended")
        try:
            if ran:
                await qmp.execute("stop")
            suspended = await _write(machine, qmp, made)
            sweep_suspended(machine.paths, None)
            made.root.rename(machine.paths.suspended.root)
            sync_directory(machine.paths.root)
            await machine.stopping.leave_suspended(suspended)
        except BaseException as error:
            if machine.record.suspended is None:
                shutil.rmtree(made.root, ignore_errors=True)
                sweep_suspended(machine.paths, None)
                if ran:
                    with contextlib.suppress(BoughError, OSError):
                        await finish(qmp.execute("cont"))
            if isinstance(error, BoughError) and machine.state not in (State.RUNNING, State.PAUSED):
                raise machine.ended_error("while it was being suspended") from error
            raise


async def _prepare(machine: Machine) -> None:
    """Have the guest prepare for a quick resume, and write a new identity to the disk.

    Both are optional. With an older agent or a slow disk, the guest gets the identity again after the resume.
    """
    channel = machine.channel()
    if channel is None:
        return
    with contextlib.suppress(BoughError):
        await prepare_guest(channel)
        if machine.record.identity == "new":
            await settle_identity(channel, machine.record)
            machine.change(identity="known", mac_before=None)


async def _write(machine: Machine, qmp: Qmp, made: SnapshotPaths) -> Suspended:
    record = machine.record
    start = architecture(record.hardware.arch).ram_start
    ram = await find_ram(qmp, machine.pid, record.spec.memory, start)
    version = (await qmp.query("query-version")).get("qemu")
    numbers = version if isinstance(version, dict) else {}
    async with device_state(qmp) as state:
        await state.save()
        devices = state.read()
    video = await find_video(qmp, machine.pid) if record.media.display else None
    stored_bytes, digest = await asyncio.to_thread(_write_ram, ram, video, devices, made)
    return Suspended(
        since=now(),
        size_bytes=ram.size_bytes,
        stored_bytes=stored_bytes,
        sha256=digest,
        accelerator=record.accelerator,
        qemu_version=".".join(str(numbers.get(part))[:8] for part in ("major", "minor", "micro")),
    )


def _write_ram(ram: GuestRam, video: GuestRam | None, devices: bytes, made: SnapshotPaths) -> tuple[int, str]:
    made.root.mkdir(mode=0o700)
    written = ram.private_extents()
    template = ram.open_template()
    rest = list(subtract(template.extents(), written)) if template is not None else []

    def pages() -> Iterator[bytes | memoryview]:
        yield from ram.read(written)
        if template is not None:
            yield from read_template(template, rest)

    devices = join_devices(devices, Video.read(video) if video is not None else None)
    digest = write_pages(made, [*written, *rest], pages(), devices)
    sync_directory(made.root)
    return size_of(written) + size_of(rest), digest


async def resume(machine: Machine, report: Report) -> None:
    """Resume a suspended machine: the vCPUs run. The operation continues if the caller is cancelled.

    Raises:
        WrongState: the machine is not suspended.
        HostLacks, MachineFailed: this host cannot continue from the memory; the machine stays suspended,
        nothing is lost.
    """
    await asyncio.shield(machine.own(_resume(machine, report), "resume"))


async def _resume(machine: Machine, report: Report) -> None:
    if machine.record.suspended is None:
        raise machine.wrong_state("resuming", State.SUSPENDED)
    report(Progress("reading memory from disk"))
    try:
        async with _being_loaded(machine.record, machine.paths) as saved:
            await machine.start(report, saved=saved)
    except (MachineFailed, HostLacks) as error:
        if machine.state is not State.SUSPENDED:
            raise
        error.message = f"machine '{machine.name}' cannot resume from its memory: {error.message}"
        error.hint = f"{_way_out(machine.name)}; nothing is lost, the machine is still suspended"
        raise
    await asyncio.to_thread(sweep_suspended, machine.paths, machine.record)


async def load_suspended(record: MachineRecord, paths: MachinePaths) -> SavedState:
    """Return the saved state of a suspended machine.

    Raises:
        WrongState: the machine is not suspended.
        MachineFailed: the saved memory is incomplete.
    """
    async with _being_loaded(record, paths) as saved:
        assert saved.loading is not None
        await saved.loading
    return replace(saved, loading=None)


@asynccontextmanager
async def _being_loaded(record: MachineRecord, paths: MachinePaths) -> AsyncIterator[SavedState]:
    """Load the saved memory while the block runs.

    The memory is complete at the end of the block, or when `loading` is done.
    """
    suspended = record.suspended
    if suspended is None:
        raise WrongState(f"machine '{record.name}' is {record.state}, not suspended", machine=record.name)
    with _told_unreadable(record):
        devices = await asyncio.to_thread(paths.suspended.devices.read_bytes)
    with MemoryFile(suspended.size_bytes) as file:

        def load() -> None:
            with _told_unreadable(record):
                lay_over(paths.suspended, file)
                file.seal().close()

        loading = asyncio.ensure_future(asyncio.to_thread(load))
        try:
            yield SavedState(file.promise(), devices, loading)
        finally:
            await finish(asyncio.wait({loading}))  # the thread cannot be cancelled
            if not loading.cancelled():
                loading.exception()  # the caller that waited for `loading` has the error


@contextlib.contextmanager
def _told_unreadable(record: MachineRecord) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise MachineFailed(
            f"the memory of machine '{record.name}' cannot be read: {error}",
            hint=_way_out(record.name),
            machine=record.name,
        ) from error


def _way_out(name: str) -> str:
    return f"`bough start {name} --cold` discards its memory and boots from its disks"


def sweep_suspended(paths: MachinePaths, record: MachineRecord | None) -> None:
    """Remove unnamed saved memory: of an incomplete suspend, or after a resume."""
    root: Path = paths.suspended.root
    if (record is None or record.suspended is None) and root.exists():
        shutil.rmtree(root)
