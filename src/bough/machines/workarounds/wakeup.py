"""Wake a guest that sleeps (ACPI S3).

QEMU resets the devices at a wake-up. SeaBIOS does not restore the registers of a Q35 board's chipset. Without
these registers the ACPI timer stops, and the guest's time with it, and neither the power button nor a
power-off works. So the registers are read while the guest sleeps, and written before its vCPUs run again.
"""

from __future__ import annotations

import asyncio
import re

from bough.qemu.qmp import Qmp
from bough.tasks import finish

#: Registers of 32 bits in the configuration space of devices on bus 0: Intel's datasheets of the 82Q35 and
#: the ICH9; QEMU's hw/pci-host/q35.c and hw/isa/lpc_ich9.c.
_HOST_BRIDGE, _LPC = (0, 0), (31, 0)
_REGISTERS = (
    (*_HOST_BRIDGE, 0x60),  # PCIEXBAR, the memory address of the configuration space
    (*_HOST_BRIDGE, 0x64),
    (*_LPC, 0x40),  # PMBASE, the port address of ACPI's power management registers
    (*_LPC, 0x44),  # ACPI_CNTL
    (*_LPC, 0x60),  # routes of the PCI interrupts
    (*_LPC, 0x68),
    (*_LPC, 0xF0),  # RCBA
)
_WAKE_S = 30.0
_ADDRESS, _DATA = 0xCF8, 0xCFC
_VALUE = re.compile(r"= (?:0x)?([0-9a-fA-F]{1,8})\s*$")


async def wake(qmp: Qmp, machine_type: str, woken: asyncio.Event) -> None:
    """Have QEMU wake the guest.

    Args:
        woken: set when QEMU reports that it has reset the devices.

    Raises:
        BoughError: QEMU refused.
        TimeoutError: no report.
    """
    wanted = _REGISTERS if "q35" in machine_type else ()
    registers = [(register, await _read(qmp, *register)) for register in wanted]
    # Both at once: QEMU executes the second before the guest has left the firmware.
    await asyncio.gather(qmp.execute("system_wakeup"), qmp.execute("stop"))
    try:
        async with asyncio.timeout(_WAKE_S):
            await woken.wait()
        for register, value in registers:
            if value is not None:
                await _write(qmp, *register, value)
    finally:
        await finish(qmp.execute("cont"))


def _address(device: int, function: int, register: int) -> int:
    return 1 << 31 | device << 11 | function << 8 | register


async def _read(qmp: Qmp, device: int, function: int, register: int) -> int | None:
    await qmp.monitor(f"o /w {_ADDRESS:#x} {_address(device, function, register):#x}")
    match = _VALUE.search(await qmp.monitor(f"i /w {_DATA:#x}"))
    return int(match[1], 16) if match else None


async def _write(qmp: Qmp, device: int, function: int, register: int, value: int) -> None:
    await qmp.monitor(f"o /w {_ADDRESS:#x} {_address(device, function, register):#x}")
    await qmp.monitor(f"o /w {_DATA:#x} {value:#x}")
