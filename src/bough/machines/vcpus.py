"""The state of an x86 guest's vCPUs, as QEMU reports it. Untrusted: used for hints only."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass

from bough.errors import BoughError
from bough.qemu.qmp import Qmp

_TIMEOUT_S = 2.0
_MOST = 16
_LINE = re.compile(r"^[RE]IP=([0-9a-f]{8,16}) [RE]FL=([0-9a-f]{8}) [^\n]{0,80}", re.MULTILINE)
_RING = re.compile(r" CPL=([0-3]) ")
_BYTE = re.compile(r": 0x([0-9a-f]{2})\s*$")
#: Flag of a processor that accepts interrupts (Intel SDM, volume 1, 3.4.3).
_IF = 1 << 9


@dataclass(frozen=True)
class Vcpu:
    """The state of a vCPU.

    Attributes:
        text: QEMU's line.
        ring: 0 is the kernel's.
    """

    text: str
    address: int
    ring: int
    is_halted: bool
    takes_interrupts: bool


async def read_vcpus(qmp: Qmp | None) -> list[Vcpu]:
    """Return the state of each vCPU, without stopping the guest; empty if unknown."""
    with contextlib.suppress(BoughError, TimeoutError):
        async with asyncio.timeout(_TIMEOUT_S):
            return parse_vcpus(await qmp.monitor("info registers -a") if qmp is not None else "")
    return []


def parse_vcpus(told: str) -> list[Vcpu]:
    found = []
    for match in list(_LINE.finditer(told))[:_MOST]:
        text, ring = match[0].strip(), _RING.search(match[0])
        vcpu = Vcpu(
            text,
            int(match[1], 16),
            int(ring[1]) if ring else 3,
            "HLT=1" in text,
            bool(int(match[2], 16) & _IF),
        )
        found.append(vcpu)
    return found


async def read_byte(qmp: Qmp, vcpu: int, address: int) -> int | None:
    """Return the byte at a virtual address of the vCPU, or None if the address is unmapped. Raises
    BoughError.
    """
    match = _BYTE.search(await qmp.monitor(f"x/1xb {address:#x}", vcpu=vcpu))
    return int(match[1], 16) if match else None
