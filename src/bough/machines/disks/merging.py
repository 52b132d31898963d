"""Keep the chains of backing files short.

Each snapshot adds an overlay to each disk, and each backing file makes reads slower. So bough merges the
nearest backing files of a long chain: their content is copied into the machine's own overlay. The overlay
then gets the next file below as its backing file. Backing files never change: snapshots, forks and exports
still read them. A file that no record names any more is removed.

The guest reads the same content at every moment of a merge: through the long chain until the copy is
complete, afterwards through either chain. So a merge that dies at any moment needs no undo:

    1. QEMU copies (block-stream), or qemu-img does while the machine is off
    2. QEMU drops the merged files by itself and writes that to the file's header
    3. cached data is written and synced
    4. the record gets the short chain

A new service that adopts a QEMU after step 2 continues with step 3. Before step 2 the service starts the
merge again; blocks that were copied are not copied twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from bough.errors import BoughError, MachineFailed, QmpRefused
from bough.images.confined import Confinement, find_program, run_confined
from bough.images.overlays import layer_format, read_backing
from bough.machines.disks.creation import disk_chain
from bough.machines.disks.nodes import Node, chain_below, find_file_node, read_nodes, read_tops
from bough.machines.record import MachineDisk, MachineRecord
from bough.paths import Home, MachinePaths
from bough.qemu.block import DiskNode
from bough.qemu.jail import Jail
from bough.qemu.qmp import Qmp

log = logging.getLogger("bough.chain")

#: Length of a chain, with its image, above which the nearest backing files are merged.
MOST_LAYERS = 8
#: Length above which a snapshot waits for the merge. A fork merges the parent's files only above this length.
TOO_MANY_LAYERS = 12
#: Length of a chain after a merge.
_FEW_LAYERS = 5
#: Speed of the copy while the guest works; no bound while a user waits.
_SPEED_BYTES_PER_S = 64 << 20
#: Free space that a merge leaves on the host's disk.
_SPARE_BYTES = 1 << 30
_POLL_S = 0.1
_PATIENCE_S = 300.0
_CANCEL_TIMEOUT_S = 20.0
_JOB = "merge-"


def layers_to_merge(sizes: Sequence[int], most: int = MOST_LAYERS) -> int:
    """Return how many of the nearest backing files to merge.

    The merge leaves few files, and includes each file smaller than the sum of the files above. So a large old
    file is not copied again for each few small files above it. Data is copied few times, however many
    snapshots exist. The last file stays. A guest's discard on a disk without a backing file would bring back
    old content if the merge were lost.

    Args:
        sizes: sizes of all backing files in bytes, nearest first.
        most: merge nothing up to this length.
    """
    if len(sizes) <= most:
        return 0
    count = len(sizes) - _FEW_LAYERS
    while count < len(sizes) - 1 and sizes[count] < sum(sizes[:count]):
        count += 1
    return count


class Host(Protocol):
    """The parts of a machine that Chains uses."""

    @property
    def record(self) -> MachineRecord: ...
    @property
    def paths(self) -> MachinePaths: ...
    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    def qmp(self) -> Qmp: ...
    def change(self, **fields: Any) -> None: ...
    def own(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]: ...


class Chains:
    """The chains of all disks of one machine.

    Args:
        merged: called when some files are not needed any more.
    """

    def __init__(self, machine: Host, merged: Callable[[], None]) -> None:
        self._machine = machine
        self._merged = merged
        self._home = Home(machine.paths.root.parent.parent)
        self._merging: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        """Return the length of the longest chain."""
        return max((len(disk.layers) for disk in self._machine.record.disks), default=0)

    @property
    def is_too_long(self) -> bool:
        record = self._machine.record
        # A fork occupies only its own changes. Copies of the parent's files in many forks would cost more.
        is_as_forked = record.forked_from is not None and record.snapshot == record.forked_from
        return self.depth > (TOO_MANY_LAYERS if is_as_forked else MOST_LAYERS)

    # -- while the machine runs ---------------------------------------------------------------------

    def look(self) -> None:
        """Start to merge chains that are too long, in the background."""
        if self.is_too_long and (self._merging is None or self._merging.done()):
            self._merging = self._machine.own(self._merge(), "merge layers")

    def adopt(self) -> None:
        """Settle a merge that an earlier service has started in this QEMU."""
        self._merging = self._machine.own(self._adopt(), "merge layers")

    async def give_way(self) -> None:
        """End all merges until `look` is called. A chain above TOO_MANY_LAYERS is merged first.

        Raises:
            MachineFailed: QEMU does not end a merge.
        """
        merging = self._merging
        if merging is None:
            return
        if not merging.done() and self.depth > TOO_MANY_LAYERS:
            with contextlib.suppress(BoughError):
                await self._hurry(self._machine.qmp())
            await asyncio.wait([merging], timeout=_PATIENCE_S)
        if not merging.done():
            merging.cancel()
            await asyncio.wait([merging])
            await _end_jobs(self._machine.qmp())
            await self._settle(self._machine.qmp())  # the merge may just have completed

    async def _hurry(self, qmp: Qmp) -> None:
        for job in await _our_jobs(qmp):
            with contextlib.suppress(QmpRefused):
                await qmp.execute("block-job-set-speed", device=job["id"], speed=0)

    async def _adopt(self) -> None:
        try:
            await _end_jobs(self._machine.qmp())
            await self._settle(self._machine.qmp())
        except (BoughError, OSError) as error:
            self._tell(error)
            return
        if self.is_too_long:
            await self._merge()

    async def _merge(self) -> None:
        try:
            qmp = self._machine.qmp()
            for name, number in self._disks():
                await self._merge_disk(qmp, name, number)
        except (BoughError, OSError) as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        if self._machine.pid is not None:  # otherwise the machine has ended, which is reported
            log.warning("the backing files of machine %s are not merged: %s", self._machine.name, error)

    def _disks(self) -> list[tuple[str, int]]:
        record = self._machine.record
        first = 1 if record.media.root == "none" else 0
        return [(f"disk{number + first}", number) for number in range(len(record.disks))]

    async def _merge_disk(self, qmp: Qmp, name: str, number: int) -> None:
        """Do all steps for one disk."""
        disk = self._machine.record.disks[number]
        count = choose(disk, self._home)
        if not count:
            return
        top = _find(await read_tops(qmp), name)
        chain = chain_below(await read_nodes(qmp), top.name)
        if len(chain) != len(disk.layers):
            raise MachineFailed(
                f"QEMU reports {len(chain)} backing files of {disk.file}, not {len(disk.layers)}"
            )
        limit = self._machine.record.spec.limits.disk
        job = f"{_JOB}{name}"
        how: dict[str, Any] = {
            "job-id": job,
            "device": top.name,
            "base-node": chain[count].name,
            "backing-file": f"../../../{disk.layers[count]}",
            "speed": _SPEED_BYTES_PER_S if limit is None else max(1, limit // 2),
            "auto-dismiss": False,
        }
        await qmp.execute("block-stream", **how)
        error = await _wait_concluded(qmp, job)
        await qmp.execute("job-dismiss", id=job)
        if error is not None:
            raise MachineFailed(error)
        await self._settle(qmp)

    async def _settle(self, qmp: Qmp) -> None:
        """Do steps 3 and 4 for each disk whose merged files QEMU has dropped."""
        tops, nodes = await read_tops(qmp), await read_nodes(qmp)
        used: set[str] = set()
        for name, number in self._disks():
            disk = self._machine.record.disks[number]
            top = _find(tops, name).name
            chain = chain_below(nodes, top)
            used |= {top, *(node.name for node in chain)}
            gone = len(disk.layers) - len(chain)
            if gone <= 0 or gone != self._merged_layers(disk):
                continue
            await _flush(qmp, top, nodes[top].file, chain[0].name)
            self._shorten(number, gone)
        await _drop(qmp, [name for name in nodes if name.startswith("disk") and name not in used])
        self._merged()

    def _merged_layers(self, disk: MachineDisk) -> int:
        """Return how many backing files the disk's header has dropped."""
        own, *layers = disk_chain(disk, self._machine.paths, self._home)
        try:
            return layers.index(read_backing(own))  # type: ignore[arg-type]
        except ValueError:
            raise MachineFailed(f"the header of {disk.file} names none of its backing files") from None

    def _shorten(self, number: int, count: int) -> None:
        """Do step 4."""
        disks = [disk.model_copy() for disk in self._machine.record.disks]
        disks[number] = disks[number].model_copy(update={"layers": disks[number].layers[count:]})
        self._machine.change(disks=disks)

    # -- while the machine is off ---------------------------------------------------------------------

    async def merge_at_rest(self, jail: Jail) -> None:
        """Merge while the machine is off. The caller holds an operation of the machine."""
        try:
            for _, number in self._disks():
                disk = self._machine.record.disks[number]
                count = choose(disk, self._home)
                if count:
                    await self._rebase(disk, count, jail)
                    self._shorten(number, count)
            self._merged()
        except (BoughError, OSError, ValueError) as error:
            log.warning("the backing files of machine %s are not merged: %s", self._machine.name, error)

    async def _rebase(self, disk: MachineDisk, count: int, jail: Jail) -> None:
        """Merge with qemu-img, which finds the backing files through the headers. The headers are checked
        first; while the machine is off, no process can change them.
        """
        own, *layers = disk_chain(disk, self._machine.paths, self._home)
        for above, below in zip((own, *layers), (*layers, None), strict=False):
            if read_backing(above) != below:
                raise MachineFailed(f"the header of {above} does not name {below} as its backing file")
        base = disk.layers[count]
        words = [find_program("qemu-img"), "rebase", "-q", "-f", "qcow2", "-F", layer_format(base)]
        done = await run_confined(
            Confinement(jail, self._machine.record.hardware.uid),
            [*words, "-b", f"../../../{base}", str(own)],
            read_only=tuple(layers),
            writable=(own,),
        )
        if done.status != 0:
            raise MachineFailed(f"qemu-img could not merge: {done.output[-500:]}")
        descriptor = os.open(own, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            await asyncio.to_thread(os.fsync, descriptor)
        finally:
            os.close(descriptor)


def choose(disk: MachineDisk, home: Home) -> int:
    """Return how many backing files of the disk to merge now; 0 if the merge would fill the host's disk."""
    sizes = [(home.root / layer).stat().st_blocks * 512 for layer in disk.layers]
    count = layers_to_merge(sizes)
    free = os.statvfs(home.machines)
    if count and free.f_bavail * free.f_frsize < sum(sizes[:count]) + _SPARE_BYTES:
        log.warning("%s has too many backing files, and the host has no space to merge them", disk.file)
        return 0
    return count


def _find(tops: dict[str, Node], name: str) -> Node:
    if name not in tops:
        raise MachineFailed(f"QEMU reports no {name}")
    return tops[name]


# -- QEMU's jobs --------------------------------------------------------------------------------------


async def _our_jobs(qmp: Qmp) -> list[dict[str, Any]]:
    jobs = await qmp.query_list("query-jobs")
    return [job for job in jobs if str(job.get("id", "")).startswith(_JOB)]


async def _end_jobs(qmp: Qmp) -> None:
    """End all merges. Raises MachineFailed."""
    for job in await _our_jobs(qmp):
        with contextlib.suppress(QmpRefused):  # the job has just ended
            await qmp.execute("job-cancel", id=job["id"])
        try:
            async with asyncio.timeout(_CANCEL_TIMEOUT_S):
                await _wait_concluded(qmp, job["id"])
        except TimeoutError:
            raise MachineFailed(f"QEMU does not end the merge of backing files ({job['id']})") from None
        with contextlib.suppress(QmpRefused):
            await qmp.execute("job-dismiss", id=job["id"])


async def _wait_concluded(qmp: Qmp, job_id: str) -> str | None:
    """Wait for the end of a job. Return the error, or None. Raises MachineFailed: no such job."""
    while True:
        job = next((job for job in await _our_jobs(qmp) if job["id"] == job_id), None)
        if job is None:
            raise MachineFailed(f"QEMU has no merge of backing files any more ({job_id})")
        if job.get("status") == "concluded":
            return str(job["error"])[:500] if job.get("error") else None
        await asyncio.sleep(_POLL_S)


async def _flush(qmp: Qmp, node: str, file: str, backing: str) -> None:
    """Reopen the node with the same options. QEMU then writes and syncs all data, and reports a failure."""
    disk = DiskNode(node, file, "qcow2", discard=True, backing=backing)
    options = disk.format_options(await find_file_node(qmp, file))
    await qmp.execute("blockdev-reopen", options=[options])


async def _drop(qmp: Qmp, names: list[str]) -> None:
    """Remove unused nodes. QEMU keeps their files open, so removed files would still take space."""
    while names:
        left = []
        for name in names:
            try:
                await _delete(qmp, name)
            except QmpRefused:  # another node in the list still uses this node
                left.append(name)
                continue
            with contextlib.suppress(QmpRefused):  # QEMU removed the file's node with its format's node
                await _delete(qmp, f"{name}-file")
        if len(left) == len(names):
            return
        names = left


async def _delete(qmp: Qmp, node: str) -> None:
    which: dict[str, Any] = {"node-name": node}
    await qmp.execute("blockdev-del", **which)
