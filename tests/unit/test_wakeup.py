"""Registers of a sleeping guest's board that are restored when the guest wakes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from bough.machines.workarounds.wakeup import wake
from bough.qemu.qmp import Qmp


class _Qemu:
    """A board whose registers a wake-up resets, some time after the command."""

    def __init__(self) -> None:
        self.registers = {0x8000F840: 0x601, 0x8000F844: 0x80, 0x80000060: 0xB0000001}
        self.woken = asyncio.Event()
        self.done: list[str] = []
        self._address = 0

    async def execute(self, command: str, **_: Any) -> None:
        self.done.append(command)
        if command == "system_wakeup":
            asyncio.get_running_loop().call_later(0.05, self._reset)

    def _reset(self) -> None:
        self.registers = dict.fromkeys(self.registers, 0)
        self.woken.set()

    async def monitor(self, line: str) -> str:
        what, _, port, *value = line.split()
        if what == "i":
            return f"portl[{port}] = {self.registers.get(self._address, 0):#010x}\r\n"
        if int(port, 16) == 0xCF8:
            self._address = int(value[0], 16)
        else:
            self.registers[self._address] = int(value[0], 16)
        return ""


@pytest.mark.parametrize(("machine_type", "kept"), [("pc-q35-7.2", True), ("pc-i440fx-7.2", False)])
async def test_registers_outlive_the_reset(machine_type: str, kept: bool) -> None:
    qemu = _Qemu()
    before = dict(qemu.registers)
    await wake(cast(Qmp, qemu), machine_type, qemu.woken)
    assert {address: qemu.registers[address] for address in before} == (
        before if kept else dict.fromkeys(before, 0)
    )
    assert qemu.done == ["system_wakeup", "stop", "cont"]
