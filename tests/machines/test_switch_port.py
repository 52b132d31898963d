"""A real QEMU whose network cards are at ports of switches, and at no network."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bough.networks.switch_port import SwitchPort
from bough.paths import Home, MachinePaths
from bough.qemu.jail import Jail
from bough.qemu.plan import NicPlan, Plan
from bough.qemu.process_start import start_process
from bough.qemu.qmp import Qmp

FIRST, SECOND = "52:54:00:00:00:01", "52:54:00:00:00:02"


@pytest.fixture
def port(home: Home, paths: MachinePaths) -> SwitchPort:
    network = home.root / "network"
    network.mkdir(mode=0o711, exist_ok=True)
    return SwitchPort(str(network / paths.root.name))


@pytest.fixture
def plan(plan: Plan, port: SwitchPort) -> Plan:
    cards = (
        NicPlan(FIRST, "isolated"),
        NicPlan(SECOND, "switch", id="nic2", place=2, port=port),
        NicPlan("52:54:00:00:00:03", "isolated", id="nic3", place=3, model="e1000e"),
        NicPlan("52:54:00:00:00:04", "isolated", id="nic4", place=4, model="rtl8139"),
    )
    return replace(plan, nics=cards)


@contextmanager
def switch(port: SwitchPort) -> Iterator[socket.socket]:
    """Yield the socket of the switch. The name is free again afterwards."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        # A short name: an address holds 107 bytes.
        directory = os.open(port.directory, os.O_PATH)
        try:
            end.bind(f"/proc/self/fd/{directory}/switch.sock")
            Path(port.switch_socket).chmod(0o666)
            end.setblocking(False)
            yield end
        finally:
            os.close(directory)
            Path(port.switch_socket).unlink()


@asynccontextmanager
async def running(plan: Plan, paths: MachinePaths) -> AsyncIterator[Qmp]:
    process = await start_process(plan, paths)
    try:
        qmp = await Qmp.connect(paths.qmp_socket)
        yield qmp
        await qmp.close()
    finally:
        process.kill()
        await process.wait()


async def announced(qmp: Qmp, end: socket.socket) -> bytes:
    """Return a frame that the card at the switch sends: QEMU announces all cards."""
    timing = {"initial": 50, "max": 50, "rounds": 1, "step": 10}
    await qmp.execute("announce-self", **timing)
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(end, 1 << 16)


@pytest.mark.parametrize("jailed", [True, False])
async def test_frames_survive_the_end_of_a_switch(
    plan: Plan, paths: MachinePaths, port: SwitchPort, jailed: bool
) -> None:
    if not jailed:
        plan = replace(plan, jail=Jail(), uid=None)
    async with running(plan, paths) as qmp:
        for _ in range(2):  # the second switch binds the name of the first
            with switch(port) as end:
                frame = await announced(qmp, end)
                assert frame[6:12].hex(":") == SECOND
        assert stat.S_ISSOCK(Path(port.nic_socket).lstat().st_mode)


async def test_a_port_is_open_to_the_user_of_the_switch_alone(
    plan: Plan, paths: MachinePaths, port: SwitchPort
) -> None:
    async with running(plan, paths):
        directory, nic = Path(port.directory).stat(), Path(port.nic_socket).lstat()
        assert directory.st_mode & 0o007 == 0, "no other user can send there"
        if plan.uid is not None:
            assert directory.st_uid == plan.uid
            assert nic.st_mode & 0o666 == 0o666


async def test_a_start_replaces_the_socket_of_the_last_start(
    plan: Plan, paths: MachinePaths, port: SwitchPort
) -> None:
    for _ in range(2):
        async with running(plan, paths) as qmp:
            with switch(port) as end:
                assert (await announced(qmp, end))[6:12].hex(":") == SECOND


async def test_the_places_of_the_cards(plan: Plan, paths: MachinePaths) -> None:
    """A card's place is part of the device state: it must never change."""
    async with running(plan, paths) as qmp:
        buses = await qmp.query_list("query-pci")
        devices = {device["qdev_id"]: device for bus in buses for device in bus["devices"]}  # type: ignore[attr-defined]
        assert devices["nic1-port"]["slot"] == devices["nic4-port"]["slot"] == 0x1E
        assert [devices[f"nic{n}-port"]["function"] for n in (1, 2, 3, 4)] == [0, 1, 2, 3]
        assert devices["uplink-device"]["slot"] < 0x1E
        assert devices["uplink-device"]["function"] == 0
        for number in (2, 3, 4):
            path = f"/machine/peripheral/nic{number}-device"
            bus = await qmp.execute("qom-get", path=path, property="parent_bus")
            assert str(bus).endswith(f"nic{number}-port/nic{number}-port")
