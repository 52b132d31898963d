"""Rewind a pre-warmed fork to the snapshot.

The process keeps the code translated by QEMU for the first work of each fork. The steps of a pre-warm:

    1. the fork starts like any other fork, with an uplink that leads nowhere
    2. the fork answers, gets an identity and settles: the caller waits
    3. its vCPUs stop; it gets empty overlays; QEMU is reset and loads the device state once more
    4. QEMU writes back the changed guest memory, and drops the code translated from this memory
    5. its process is captured (capture_fork.py) and ended

This file prepares the state for step 1, and does steps 3 and 4.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from bough.errors import MachineFailed
from bough.forks.process_image.device_state import TAG, CpuWords, mark_cpus, render_state_file, split_cpus
from bough.forks.process_image.vcpu_words import find_words, put_words
from bough.forks.urgency import Urgency
from bough.machines.debugger import debugger
from bough.machines.disks.nodes import Node, chain_below, read_nodes, read_tops
from bough.machines.memory import HIGH_START, find_low_bytes, find_ram
from bough.machines.record import MachineDisk
from bough.machines.video import split_devices
from bough.paths import MachinePaths
from bough.qemu.arch import architecture
from bough.qemu.block import DiskNode, overlay_node
from bough.qemu.gdb import WRITE_BYTES, write_physical
from bough.qemu.pid import Pid
from bough.qemu.qmp import Qmp
from bough.qemu.ram import PAGE_BYTES, Extent, GuestRam, MemoryFile, Template, different_extents

_SMALLEST_BYTES = 256
_POLL_S = 0.01
_TIMEOUT_S = 30.0
#: An idle guest wakes up now and then for a moment.
_LOOK_EVERY_S = 0.05
_QUIET_LOOKS = 8
_MOST_BUSY_S = 4.0
#: A continuing guest opens the guest's end of the agent's port. QEMU reports the close at the earliest one
#: second after the open.
_MOST_BUSY_IF_URGENT_S = 1.0


@dataclass
class Rewind:
    """The data for the rewind of one fork. Made by `prepare_rewind`.

    Attributes:
        stream: the device state without the sections that make QEMU drop its translated code.
        urgency: whether a user waits for the result.
        words: the content of the removed sections.
        marks: the values that QEMU loads instead of `words`.
        places: the addresses of the marks in QEMU's memory.
    """

    stream: bytes
    urgency: Urgency
    words: tuple[CpuWords, ...]
    marks: tuple[CpuWords, ...]
    places: tuple[CpuWords, ...] = ()

    @property
    def is_urgent(self) -> bool:
        return self.urgency.is_set

    async def state_loaded(self, pid: int | None) -> None:
        """Restore the words: the process has loaded the state, and the vCPUs do not run yet.

        Raises MachineFailed, HostLacks.
        """
        if pid is None:
            raise MachineFailed("QEMU ended")
        self.places = await asyncio.to_thread(find_words, pid, self.marks)
        await asyncio.to_thread(put_words, pid, self.places, self.words)


def prepare_rewind(devices: bytes, urgency: Urgency) -> tuple[bytes, Rewind]:
    """Return the device state for the start of a pre-warm, and the data for its rewind.

    Raises MachineFailed: this state cannot be restored.
    """
    try:
        stream, video = split_devices(devices)
    except ValueError as error:
        raise MachineFailed(f"the state of its devices is damaged: {error}") from error
    if video is not None:
        raise MachineFailed("a machine with a screen cannot be pre-warmed")
    marked = mark_cpus(stream)
    rest, words = split_cpus(stream)
    return marked.stream, Rewind(rest, urgency, words, marked.marks)


async def wait_quiet(pid: int, *, began: float, urgency: Urgency) -> None:
    """Wait until the guest has done the work after the start, but no longer than such work usually takes.

    Args:
        began: when the guest continued (time.monotonic).
    """
    process, quiet = Pid.of(pid), 0
    while process is not None and quiet < _QUIET_LOOKS:
        if time.monotonic() - began >= (_MOST_BUSY_IF_URGENT_S if urgency.is_set else _MOST_BUSY_S):
            return
        await asyncio.sleep(_LOOK_EVERY_S)
        quiet = 0 if process.wants_processor() else quiet + 1


async def rewind_fork(
    rewind: Rewind,
    qmp: Qmp,
    pid: int,
    paths: MachinePaths,
    overlays: list[MachineDisk],
    memory: Template,
    *,
    arch: str,
    vmgenid: str,
    uid: int | None,
    port_closed: asyncio.Event,
) -> dict[str, tuple[int, ...]]:
    """Do steps 3 and 4. The vCPUs must be paused, and no client may be connected to the guest.

    Args:
        overlays: empty overlays among its disks, one for each disk, with the same backing files.
        uid: user of QEMU's process under a root service.
        port_closed: set when QEMU has reported that the guest closed the agent's port.

    Returns the addresses at which a fork's vmgenid must be written, by form (see Identifiers.forms).

    Raises BoughError, TimeoutError: the process is useless.
    """
    await _change_disks(qmp, paths, overlays)
    # The new status "prelaunch" distinguishes this process from a paused machine, for a later service.
    await qmp.execute("system_reset")
    async with asyncio.timeout(_TIMEOUT_S):
        while (await qmp.query("query-status")).get("status") != "prelaunch":  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        # Otherwise each fork's process would report the close, although the fork's port is open.
        await port_closed.wait()
    ram = await find_ram(qmp, pid, memory.size_bytes, architecture(arch).ram_start)
    await _write_back(qmp, ram, memory)  # the devices read queues in guest memory
    await _load(qmp, rewind.stream, paths, uid)
    await asyncio.to_thread(put_words, pid, rewind.places, rewind.words)
    place = await asyncio.to_thread(_find_vmgenid, ram, memory, vmgenid)
    await _write_back(qmp, ram, memory)  # loading the devices has written to the memory
    if await asyncio.to_thread(_differs, ram, memory):
        raise MachineFailed("its memory could not be rewound to the snapshot")
    return {"vmgenid_le": (place,)}


async def _change_disks(qmp: Qmp, paths: MachinePaths, overlays: list[MachineDisk]) -> None:
    tops, nodes = await read_tops(qmp), await read_nodes(qmp)
    for number, overlay in enumerate(overlays):
        old: Node = tops[f"disk{number}"]
        file = overlay.file
        if len(chain_below(nodes, old.name)) != len(overlay.layers):
            raise MachineFailed(f"QEMU does not report {len(overlay.layers)} backing files of {file}")
        node = overlay_node(str(paths.disks / file), file, backing=nodes[old.name].backing)
        await qmp.execute("blockdev-add", **node.qmp_options())
        device = f"/machine/peripheral/disk{number}-device"
        await qmp.execute("qom-set", path=device, property="drive", value=node.name)
        for gone in (old.name, f"{old.name}-file"):
            named: dict[str, Any] = {"node-name": gone}
            await qmp.execute("blockdev-del", **named)


async def _load(qmp: Qmp, stream: bytes, paths: MachinePaths, uid: int | None) -> None:
    # Not by descriptor: QEMU keeps a passed descriptor open while its vCPUs are paused.
    file = paths.disks / "state.qcow2"
    file.write_bytes(render_state_file(stream))
    if uid is not None:
        os.chown(file, uid, uid)
    await qmp.execute("blockdev-add", **DiskNode("state", str(file), "qcow2").qmp_options())
    job: dict[str, Any] = {"job-id": "state", "tag": TAG, "vmstate": "state", "devices": ["state"]}
    await qmp.execute("snapshot-load", **job)
    async with asyncio.timeout(_TIMEOUT_S):
        while (found := await _find_job(qmp)).get("status") != "concluded":  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
    await qmp.execute("job-dismiss", id="state")
    if "error" in found:
        raise MachineFailed(f"QEMU did not load the state again: {str(found['error'])[:200]}")
    named: dict[str, Any] = {"node-name": "state"}
    await qmp.execute("blockdev-del", **named)
    file.unlink()


async def _find_job(qmp: Qmp) -> dict[str, object]:
    for job in await qmp.query_list("query-jobs"):
        if job.get("id") == "state":
            return job
    raise MachineFailed("QEMU's job is gone")


def _find_vmgenid(ram: GuestRam, memory: Template, vmgenid: str) -> int:
    """Return the address of the vmgenid in the process. QEMU wrote the vmgenid to the guest's memory when it
    loaded the state.
    """
    form = UUID(vmgenid).bytes_le
    now, differing = _differing(ram, memory, PAGE_BYTES)
    places = [
        ram.address + start + at
        for start, length in differing
        if (at := os.pread(now.fileno(), length, start).find(form)) >= 0
    ]
    if len(places) != 1:
        raise MachineFailed("its vmgenid was not found in its guest's memory")
    return places[0]


async def _write_back(qmp: Qmp, ram: GuestRam, memory: Template) -> None:
    low_bytes = await find_low_bytes(qmp, ram)
    async with debugger(qmp) as connection:
        await asyncio.to_thread(write_physical, connection, _pieces(ram, memory, low_bytes))


def _pieces(ram: GuestRam, memory: Template, low_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield the pieces to write. The pieces cover only differences, so that QEMU keeps the code translated
    from the rest.
    """
    _, differing = _differing(ram, memory, _SMALLEST_BYTES)
    for start, length in differing:
        at, end = start, start + length
        while at < end:
            size = min(WRITE_BYTES, end - at, low_bytes - at if at < low_bytes else WRITE_BYTES)
            physical = at if at < low_bytes else HIGH_START + at - low_bytes
            yield physical, os.pread(memory.fileno(), size, at)
            at += size


def _differing(ram: GuestRam, memory: Template, piece_bytes: int) -> tuple[Template, list[Extent]]:
    """Return the current memory of the guest, and the parts that differ from the snapshot's."""
    with MemoryFile(ram.size_bytes) as file:
        extents = ram.private_extents()
        file.read_process(ram.pid, ram.address, extents)
        now = file.promise()
        return now, different_extents(now, memory, extents, piece_bytes=piece_bytes)


def _differs(ram: GuestRam, memory: Template) -> bool:
    return bool(_differing(ram, memory, PAGE_BYTES)[1])
