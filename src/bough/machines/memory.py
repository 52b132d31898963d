"""Find the guest's memory in the QEMU process, by QEMU's own answer.

A hostile QEMU can only make bough read and write other parts of that QEMU's own memory.
"""

from __future__ import annotations

import re
from typing import Any

from bough.errors import MachineFailed, QmpRefused
from bough.qemu.qmp import Qmp
from bough.qemu.ram import GuestRam
from bough.units import MIB

MOST_VIDEO_BYTES = 64 * MIB
#: Id of the display adapter; see qemu/arch.py.
_VIDEO = "video"
#: Address of the upper part of a PC's memory, above the devices.
HIGH_START = 1 << 32


async def find_ram(qmp: Qmp, pid: int | None, size_bytes: int, ram_start: int) -> GuestRam:
    """Return the guest's RAM. Raises MachineFailed: QEMU's answer is malformed."""
    told, address = await _address_of(qmp, ram_start)
    if pid is None or address is None:
        raise MachineFailed(f"QEMU does not report where its guest's memory is: {told[:200]!r}")
    return GuestRam(pid, address, size_bytes)


async def find_low_bytes(qmp: Qmp, ram: GuestRam) -> int:
    """Return how many bytes of a PC's memory are below HIGH_START; the rest begins at HIGH_START."""
    try:
        _, address = await _address_of(qmp, HIGH_START)
    except QmpRefused:
        return ram.size_bytes
    if address is None or not ram.address < address < ram.address + ram.size_bytes:
        return ram.size_bytes
    return address - ram.address


async def find_video(qmp: Qmp, pid: int | None) -> GuestRam | None:
    """Return the memory of a PC's display adapter, with the guest's screen.

    None without an adapter, or before firmware has assigned an address: the memory is empty then.
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
    """Return the guest-physical address and size of the adapter's memory; None if QEMU's answer is
    implausible.
    """
    devices = [device for bus in buses for device in _objects(bus.get("devices"))]
    for device in devices:
        for region in _objects(device.get("regions")):
            if device.get("qdev_id") == _VIDEO and region.get("bar") == 0:
                start, size = region.get("address"), region.get("size")
                if isinstance(start, int) and isinstance(size, int):
                    # Memory without an address is reported at the end of all addresses.
                    return (start, size) if 0 < start < 1 << 52 and 0 < size <= MOST_VIDEO_BYTES else None
    return None


def _objects(listed: Any) -> list[dict[str, Any]]:
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []


async def _address_of(qmp: Qmp, guest_address: int) -> tuple[str, int | None]:
    """Return QEMU's answer, and the address in QEMU's process."""
    told = (await qmp.monitor(f"gpa2hva {guest_address:#x}"))[:500]
    match = re.search(r" is (?:0x)?([0-9a-f]{4,16})\b", told)
    return told, int(match[1], 16) if match else None
