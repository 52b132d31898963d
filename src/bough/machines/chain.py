"""Keeps the chains that disks stand on short.

Each snapshot puts an overlay on each disk, and each layer costs a read that goes through it some time. So
the nearest layers of a long chain are merged: what they hold is copied up into the file that the machine
writes, which then stands on what is below them. No layer is changed: snapshots, forks and exports read
them on; one that nobody names any more is removed.

The file that is written reads the same with and without what was copied into it, at every moment: over
the long chain until all is copied, over both then. So nothing has to be undone, whatever dies:

    1. QEMU copies (block-stream), or qemu-img does while the machine is off
    2. QEMU lets go of the merged layers by itself and says so in the file's header
    3. what it has not written out yet is written and synced
    4. the record says that the chain is short

A service that comes to a QEMU of an earlier one that is past 2 goes on with 3; before, it begins again,
and finds copied what was copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bough.errors import BoughError, MachineFailed, QmpRefused
from bough.images.confined import Confinement, find_program, run_confined
from bough.images.overlays import layer_format, read_backing
from bough.machines.blocks import Node, chain_below, find_file_node, read_nodes, read_tops
from bough.machines.disks import disk_chain
from bough.machines.record import MachineDisk
from bough.paths import Home
from bough.qemu.block import DiskNode
from bough.qemu.jail import Jail
from bough.qemu.qmp import Qmp

if TYPE_CHECKING:
    from bough.machines.machine import Machine

log = logging.getLogger("bough.chain")

#: Layers that a disk may stand on, its image included, until the nearest are merged.
MOST_LAYERS = 8
#: ... until a snapshot waits for that; and until a fork merges those that it came with.
TOO_MANY_LAYERS = 12
#: How many are left of more than MOST_LAYERS.
_FEW_LAYERS = 5
#: Beside what the guest does; unbounded while somebody waits.
_SPEED_BYTES_PER_S = 64 << 20
#: Left free on the host's disk.
_SPARE_BYTES = 1 << 30
_POLL_S = 0.1
_PATIENCE_S = 300.0
_CANCEL_TIMEOUT_S = 20.0
_JOB = "merge-"


def layers_to_merge(sizes: Sequence[int], most: int = MOST_LAYERS) -> int:
    """How many of the nearest layers of a chain are merged; `sizes` of all of them, nearest first, in bytes.

    As many as leave few, and then each that is smaller than what is merged anyway: so a large old layer is
    not copied for each few small ones on it, and what is written is copied few times, however many
    snapshots there are. The last one stays: what is discarded on a disk that stands on nothing would be
    what it was before, if the merge were lost.
    """
    if len(sizes) <= most:
        return 0
    count = len(sizes) - _FEW_LAYERS
    while count < len(sizes) - 1 and sizes[count] < sum(sizes[:count]):
        count += 1
    return count


class Chains:
    """Of all disks of one machine.

    Args:
        merged: is called when layers are not needed any more.
    """

    def __init__(self, machine: Machine, merged: Callable[[], None]) -> None:
        self._machine = machine
        self._merged = merged
        self._home = Home(machine.paths.root.parent.parent)
        self._merging: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        """Of the longest: on how many layers it stands."""
        return max((len(disk.layers) for disk in self._machine.record.disks), default=0)

    @property
    def is_too_long(self) -> bool:
        record = self._machine.record
        # A fork costs what it writes: a copy of layers that it came with, in each of many, would cost more.
        is_as_forked = record.forked_from is not None and record.snapshot == record.forked_from
        return self.depth > (TOO_MANY_LAYERS if is_as_forked else MOST_LAYERS)

    # -- of a machine that runs ---------------------------------------------------------------------

    def look(self) -> None:
        """Begin to merge what is too long, in the background."""
        if self.is_too_long and (self._merging is None or self._merging.done()):
            self._merging = self._machine.own(self._merge(), "merge layers")

    def take_up(self) -> None:
        """Its QEMU is of an earlier service, which may have been merging."""
        self._merging = self._machine.own(self._take_up(), "merge layers")

    async def give_way(self) -> None:
        """Nothing is merged from here on, until `look`; a chain that is far too long is merged first.

        Raises:
            MachineFailed: QEMU does not let go of it.
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
            await self._settle(self._machine.qmp())  # it may just have come to its end

    async def _hurry(self, qmp: Qmp) -> None:
        for job in await _our_jobs(qmp):
            with contextlib.suppress(QmpRefused):
                await qmp.execute("block-job-set-speed", device=job["id"], speed=0)

    async def _take_up(self) -> None:
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
        if self._machine.pid is not None:  # otherwise it has ended meanwhile, and that is told
            log.warning("the layers of machine %s are not merged: %s", self._machine.name, error)

    def _disks(self) -> list[tuple[str, int]]:
        record = self._machine.record
        first = 1 if record.media.root == "none" else 0
        return [(f"disk{number + first}", number) for number in range(len(record.disks))]

    async def _merge_disk(self, qmp: Qmp, name: str, number: int) -> None:
        """Step 1, and the rest."""
        disk = self._machine.record.disks[number]
        count = choose(disk, self._home)
        if not count:
            return
        top = _find(await read_tops(qmp), name)
        chain = chain_below(await read_nodes(qmp), top.name)
        if len(chain) != len(disk.layers):
            raise MachineFailed(f"QEMU has {len(chain)} layers of {disk.file}, not {len(disk.layers)}")
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
        """Steps 3 and 4, for every disk of which QEMU has let layers go."""
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
        """How many of its layers are not below it any more by what its header says."""
        own, *layers = disk_chain(disk, self._machine.paths, self._home)
        try:
            return layers.index(read_backing(own))  # type: ignore[arg-type]
        except ValueError:
            raise MachineFailed(f"{disk.file} does not say that it stands on one of its layers") from None

    def _shorten(self, number: int, count: int) -> None:
        """Step 4."""
        disks = [disk.model_copy() for disk in self._machine.record.disks]
        disks[number] = disks[number].model_copy(update={"layers": disks[number].layers[count:]})
        self._machine.change(disks=disks)

    # -- of one that is off ---------------------------------------------------------------------------

    async def merge_at_rest(self, jail: Jail) -> None:
        """The same, while the caller holds a transition of a machine that does not run."""
        try:
            for _, number in self._disks():
                disk = self._machine.record.disks[number]
                count = choose(disk, self._home)
                if count:
                    await self._rebase(disk, count, jail)
                    self._shorten(number, count)
            self._merged()
        except (BoughError, OSError, ValueError) as error:
            log.warning("the layers of machine %s are not merged: %s", self._machine.name, error)

    async def _rebase(self, disk: MachineDisk, count: int, jail: Jail) -> None:
        """qemu-img finds out what differs only where it finds the layers by the headers. They lead nowhere
        else: nobody writes them now."""
        own, *layers = disk_chain(disk, self._machine.paths, self._home)
        for above, below in zip((own, *layers), (*layers, None), strict=False):
            if read_backing(above) != below:
                raise MachineFailed(f"{above} does not say that it stands on {below}")
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
    """How many layers of it are merged now; none where that would fill the host's disk."""
    sizes = [(home.root / layer).stat().st_blocks * 512 for layer in disk.layers]
    count = layers_to_merge(sizes)
    free = os.statvfs(home.machines)
    if count and free.f_bavail * free.f_frsize < sum(sizes[:count]) + _SPARE_BYTES:
        log.warning("%s has too many layers, and the host no space to merge them", disk.file)
        return 0
    return count


def _find(tops: dict[str, Node], name: str) -> Node:
    if name not in tops:
        raise MachineFailed(f"QEMU says that it has no {name}")
    return tops[name]


# -- QEMU's jobs --------------------------------------------------------------------------------------


async def _our_jobs(qmp: Qmp) -> list[dict[str, Any]]:
    jobs = await qmp.query_list("query-jobs")
    return [job for job in jobs if str(job.get("id", "")).startswith(_JOB)]


async def _end_jobs(qmp: Qmp) -> None:
    """No merge is going on afterwards. Raises MachineFailed."""
    for job in await _our_jobs(qmp):
        with contextlib.suppress(QmpRefused):  # it has come to its end
            await qmp.execute("job-cancel", id=job["id"])
        try:
            async with asyncio.timeout(_CANCEL_TIMEOUT_S):
                await _wait_concluded(qmp, job["id"])
        except TimeoutError:
            raise MachineFailed(f"QEMU does not end the merging of layers ({job['id']})") from None
        with contextlib.suppress(QmpRefused):
            await qmp.execute("job-dismiss", id=job["id"])


async def _wait_concluded(qmp: Qmp, job_id: str) -> str | None:
    """What it failed of. Raises MachineFailed: there is no such job."""
    while True:
        job = next((job for job in await _our_jobs(qmp) if job["id"] == job_id), None)
        if job is None:
            raise MachineFailed(f"QEMU has forgotten the merging of layers ({job_id})")
        if job.get("status") == "concluded":
            return str(job["error"])[:500] if job.get("error") else None
        await asyncio.sleep(_POLL_S)


async def _flush(qmp: Qmp, node: str, file: str, backing: str) -> None:
    """Reopened as it is, which writes everything out and syncs it, and says when that fails."""
    disk = DiskNode(node, file, "qcow2", discard=True, backing=backing)
    options = disk.format_options(await find_file_node(qmp, file))
    await qmp.execute("blockdev-reopen", options=[options])


async def _drop(qmp: Qmp, names: list[str]) -> None:
    """Nodes that nothing stands on: QEMU has the files open, and removed they would take space."""
    while names:
        left = []
        for name in names:
            try:
                await _delete(qmp, name)
            except QmpRefused:  # something stands on it still, which is in the list too
                left.append(name)
                continue
            with contextlib.suppress(QmpRefused):  # it went with it
                await _delete(qmp, f"{name}-file")
        if len(left) == len(names):
            return
        names = left


async def _delete(qmp: Qmp, node: str) -> None:
    which: dict[str, Any] = {"node-name": node}
    await qmp.execute("blockdev-del", **which)
