"""Faults of a disk of a running machine: a node of QEMU in front of the disk's nodes.

    blkdebug    fails requests
    throttle    slows requests down
    blklogwrites  logs writes and flushes, for a power cut

The disk's device is switched to the node and back (qom-set). **Setting the node that is already there aborts
QEMU 7.2**, so the present node is read first. blkdebug fails requests that touch a given sector: a share of
the disk, or a range, is a rule for each block of 4 KiB.
"""

from __future__ import annotations

import contextlib
import errno
from random import Random
from typing import Any

from bough.errors import Conflict, InvalidInput, MachineFailed, QmpRefused
from bough.machines.record import MachineRecord
from bough.qemu.disk_bus import disk_of, path_of
from bough.qemu.qmp import Qmp
from bough.tasks import finish

OPERATIONS = ("read", "write", "flush")
_SECTOR_BYTES = 512
_BLOCK_BYTES = 4096
#: QEMU walks through all rules at each request, and takes 2 s to read 2048 rules.
MOST_BLOCKS = 2048
_LEAST_BYTES_PER_S = 4096


def disk_name(record: MachineRecord, number: int) -> str:
    """Return QEMU's name of a disk ("disk0"). Raises InvalidInput: no such disk."""
    count = len(record.disks)
    if not 0 <= number < count:
        raise InvalidInput(
            f"machine '{record.name}' has {count} disks: 0 to {count - 1}"
            if count
            else f"machine '{record.name}' has no disk"
        )
    return f"disk{number + (1 if record.media.root == 'none' else 0)}"


def render_failure(
    operation: str,
    *,
    error: str,
    once: bool,
    rate: float | None,
    area: tuple[int, int] | None,
    size_bytes: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return blkdebug's rules.

    Args:
        error: name of the error ("EIO").
        rate: percentage of the blocks of the area, or of the disk, that fail; the seed chooses them.
        area: first byte, and the byte behind the last one.

    Raises:
        InvalidInput: the values make no sense.
    """
    number = getattr(errno, error.upper(), None)
    if not isinstance(number, int) or not error.upper().startswith("E"):
        raise InvalidInput(f"{error[:20]!r} is no error of Linux", hint="EIO, ENOSPC, ETIMEDOUT, ...")
    rule = {"event": "none", "iotype": operation, "errno": number, "once": once}
    if rate is None and area is None:
        return [rule]
    if operation == "flush":
        raise InvalidInput("a flush has no place on the disk: leave out range and rate")
    if rate is not None and not 0 < rate <= 100:
        raise InvalidInput(f"rate is above 0 and at most 100 percent, not {rate:g}")
    start, end = area or (0, size_bytes)
    if not 0 <= start < end <= size_bytes:
        raise InvalidInput(f"a range lies within the disk, 0 to {size_bytes} bytes")
    blocks = range(start // _BLOCK_BYTES, -(-end // _BLOCK_BYTES))
    count = len(blocks) if rate is None else max(1, round(len(blocks) * rate / 100))
    if count > MOST_BLOCKS:
        raise InvalidInput(
            f"{count} blocks of 4 KiB would fail; the most is {MOST_BLOCKS}",
            hint="give a smaller range, or a lower rate",
        )
    chosen = blocks if rate is None else sorted(Random(seed).sample(blocks, count))
    step = _BLOCK_BYTES // _SECTOR_BYTES
    return [{**rule, "sector": block * step} for block in chosen]


def render_limits(bytes_per_s: int, iops: int) -> dict[str, int]:
    """Return the limits of a throttle group. Raises InvalidInput."""
    if bytes_per_s and bytes_per_s < _LEAST_BYTES_PER_S:
        raise InvalidInput(f"a disk is throttled to at least {_LEAST_BYTES_PER_S} bytes per second")
    if bytes_per_s < 0 or iops < 0 or not (bytes_per_s or iops):
        raise InvalidInput("give a limit", hint="--rate 1MiB, --iops 50")
    limits = {"bps-total": bytes_per_s, "iops-total": iops}
    return {name: value for name, value in limits.items() if value}


async def put_failure(qmp: Qmp, disk: str, node: str, rules: list[dict[str, Any]]) -> str:
    """Put a node that fails requests in front of a disk. Return the name of the disk's node.

    Raises:
        Conflict: another fault is there. QmpRefused: the disk is unchanged.
    """
    top = await _top(qmp, disk)
    options = {"driver": "blkdebug", "node-name": node, "image": top, "inject-error": rules}
    await _put(qmp, disk, node, options)
    return top


async def put_throttle(qmp: Qmp, disk: str, node: str, limits: dict[str, int]) -> str:
    """Put a node that slows requests down in front of a disk. Return and raise as `put_failure`."""
    top, group = await _top(qmp, disk), f"{node}-group"
    made: dict[str, Any] = {"qom-type": "throttle-group", "id": group, "limits": limits}
    await qmp.execute("object-add", **made)
    options = {"driver": "throttle", "node-name": node, "throttle-group": group, "file": top}
    try:
        await _put(qmp, disk, node, options)
    except BaseException:
        with contextlib.suppress(QmpRefused):
            await finish(qmp.execute("object-del", id=group))
        raise
    return top


async def put_log(qmp: Qmp, disk: str, node: str, log: str) -> str:
    """Put a node that logs all writes and flushes in front of a disk. Return and raise as `put_failure`.

    Args:
        log: path of an empty file.
    """
    top = await _top(qmp, disk)
    file = {"driver": "file", "filename": log}
    options = {"driver": "blklogwrites", "node-name": node, "file": top, "log": file, "log-sector-size": 512}
    await _put(qmp, disk, node, options)
    return top


async def take_off(qmp: Qmp, disk: str, node: str, top: str) -> None:
    """Remove a fault's node. Does nothing if the node is not there."""
    if await present_node(qmp, disk) == node:
        await _set_node(qmp, disk, top)
    which: dict[str, Any] = {"node-name": node}
    with contextlib.suppress(QmpRefused):
        await qmp.execute("blockdev-del", **which)
    with contextlib.suppress(QmpRefused):
        await qmp.execute("object-del", id=f"{node}-group")


async def present_node(qmp: Qmp, disk: str) -> str:
    """Return the node to which a disk's device sends its requests. Raises MachineFailed."""
    return (await _find_device(qmp, disk))[1]


async def _find_device(qmp: Qmp, disk: str) -> tuple[str, str]:
    """Return the place of a disk's device in QEMU's object tree, and its node. Raises MachineFailed."""
    for device in await qmp.query_list("query-block"):
        inserted = device.get("inserted")
        if disk_of(device.get("qdev")) == disk and isinstance(inserted, dict):
            return path_of(device.get("qdev")), str(inserted.get("node-name"))
    raise MachineFailed(f"QEMU reports no {disk}")


async def _top(qmp: Qmp, disk: str) -> str:
    top = await present_node(qmp, disk)
    if top.startswith("fault-"):
        raise Conflict(f"{disk} has a fault already", hint="bough fault list")
    return top


async def _put(qmp: Qmp, disk: str, node: str, options: dict[str, Any]) -> None:
    await qmp.execute("blockdev-add", **options)
    try:
        await _set_node(qmp, disk, node)
    except BaseException:
        which: dict[str, Any] = {"node-name": node}
        with contextlib.suppress(QmpRefused):
            await finish(qmp.execute("blockdev-del", **which))
        raise


async def _set_node(qmp: Qmp, disk: str, node: str) -> None:
    path, _ = await _find_device(qmp, disk)
    await qmp.execute("qom-set", path=path, property="drive", value=node)
