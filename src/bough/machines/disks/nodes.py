"""QEMU's block nodes: the file of each node, and its backing file.

QEMU's answers are untrusted. A QEMU with false answers damages only its own disks.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.errors import MachineFailed
from bough.machines.record import MachineDisk
from bough.qemu.disk_bus import disk_of
from bough.qemu.qmp import MAX_LISTED, Qmp


@dataclass(frozen=True)
class Node:
    """A node of a disk format (qcow2, raw), not of a file. `backing` is the name of the backing
    file's node.
    """

    name: str
    file: str
    backing: str | None


async def read_tops(qmp: Qmp) -> dict[str, Node]:
    """Return disk ("disk0") -> the node to which the guest writes. Raises MachineFailed: as `read_nodes`."""
    nodes = await read_nodes(qmp)
    tops = {}
    for device in await qmp.query_list("query-block"):
        disk, inserted = disk_of(device.get("qdev")), device.get("inserted")
        if disk is not None and disk.startswith("disk") and isinstance(inserted, dict):
            name = str(inserted.get("node-name"))
            if name not in nodes:
                raise MachineFailed(f"QEMU reports an unknown block node for {disk}")
            tops[disk] = nodes[name]
    return tops


async def read_nodes(qmp: Qmp) -> dict[str, Node]:
    """Return the qcow2 and raw nodes by name. Raises MachineFailed: QEMU's answer is malformed."""
    told = await qmp.query_list("query-named-block-nodes", flat=True)
    try:
        listed = [node for node in told if node["drv"] in ("qcow2", "raw")]
        by_file = {_file_of(node["file"]): str(node["node-name"]) for node in listed}
        nodes = {}
        for node in listed:
            below = node.get("backing_file")
            backing = by_file[_file_of(below)] if below else None
            nodes[str(node["node-name"])] = Node(str(node["node-name"]), _file_of(node["file"]), backing)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise MachineFailed(f"QEMU's list of its disk files is malformed: {str(error)[:200]!r}") from error
    return nodes


async def find_file_node(qmp: Qmp, file: str) -> str:
    """Return the node of the file itself, below the node of its format. Raises MachineFailed: no
    such node.
    """
    for node in await qmp.query_list("query-named-block-nodes", flat=True):
        if node.get("drv") == "file" and node.get("file") == file:
            return str(node["node-name"])
    raise MachineFailed(f"QEMU reports no block node for {Path(file).name}")


def chain_below(nodes: dict[str, Node], top: str) -> list[Node]:
    """Return the chain of backing files below `top`, nearest first."""
    chain: list[Node] = []
    name = nodes[top].backing
    while name is not None and len(chain) < MAX_LISTED:
        chain.append(nodes[name])
        name = nodes[name].backing
    return chain


async def writes(qmp: Qmp, disks: Collection[MachineDisk]) -> bool:
    """Return whether the guest writes to all of these files."""
    files = {Path(top.file).name for top in (await read_tops(qmp)).values()}
    return all(disk.file in files for disk in disks)


def _file_of(name: Any) -> str:
    """Return the file name of a node. A node with an explicit backing file is named by its whole chain, in
    JSON (QEMU's block.c, bdrv_refresh_filename).
    """
    if str(name).startswith("json:"):
        return str(json.loads(name[5:])["file"]["filename"])
    return str(name)
