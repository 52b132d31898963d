"""Where in its process QEMU holds the memory of its guest: it says so itself.

A QEMU that lies shows us, and has us write to, another part of its own memory, no more.
"""

from __future__ import annotations

import re
from typing import Any

from bough.errors import MachineFailed, QmpRefused
from bough.qemu.qmp import Qmp
from bough.qemu.ram import GuestRam
from bough.units import MIB

MOST_VIDEO_BYTES = 64 * MIB
#: The adapter's id; see qemu/arch.py.
_VIDEO = "video"
#: Where that part of a PC's memory is that its devices leave no room for below.
HIGH_START = 1 << 32


async def find_ram(qmp: Qmp, pid: int | None, size_bytes: int, ram_start: int) -> GuestRam:
    """Raises MachineFailed: it does not say."""
    told, address = await _address_of(qmp, ram_start)
    if pid is None or address is None:
        raise MachineFailed(f"QEMU does not say where its guest's memory is: {told[:200]!r}")
    return GuestRam(pid, address, size_bytes)


async def find_low_bytes(qmp: Qmp, ram: GuestRam) -> int:
    """How much of a PC's memory lies below HIGH_START; the rest begins there."""
    try:
        _, address = await _address_of(qmp, HIGH_START)
    except QmpRefused:
        return ram.size_bytes
    if address is None or not ram.address < address < ram.address + ram.size_bytes:
        return ram.size_bytes
    return address - ram.address


async def find_video(qmp: Qmp, pid: int | None) -> GuestRam | None:
    """The memory of a PC's display adapter, in which its guest draws: lines, pictures, letters.

    None where there is none, or no firmware has given it a place yet: nothing is in it then.
    """
    bar = _find_bar(await qmp.query_list("query-pci"))
    if pid is None or bar is None:
        return None
    start, size = bar
    told, address = await _address_of(qmp, start)
    if address is None or "vga.vram" not in told:
        return None
    return GuestRam(pid, address, size)


def _find_bar(buses: list[dict[str, Any]]) -> tuple[int, int] | None:
    """Guest-physical address and size of the adapter's memory, as far as what QEMU tells makes sense."""
    devices = [device for bus in buses for device in _objects(bus.get("devices"))]
    for device in devices:
        for region in _objects(device.get("regions")):
            if device.get("qdev_id") == _VIDEO and region.get("bar") == 0:
                start, size = region.get("address"), region.get("size")
                if isinstance(start, int) and isinstance(size, int):
                    # One that has no place yet is told to be at the end of all addresses.
                    return (start, size) if 0 < start < 1 << 52 and 0 < size <= MOST_VIDEO_BYTES else None
    return None


def _objects(listed: Any) -> list[dict[str, Any]]:
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []


async def _address_of(qmp: Qmp, guest_address: int) -> tuple[str, int | None]:
    """What QEMU says, and the address in its process that it names."""
    told = (await qmp.monitor(f"gpa2hva {guest_address:#x}"))[:500]
    match = re.search(r" is (?:0x)?([0-9a-f]{4,16})\b", told)
    return told, int(match[1], 16) if match else None
