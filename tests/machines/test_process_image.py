"""Process images of a real QEMU in its jail, whose only guest is the firmware."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bough.errors import MachineFailed
from bough.forks.process_image.capture import capture
from bough.forks.process_image.capture_fork import capture_process
from bough.forks.process_image.captured import CapturedProcess
from bough.forks.process_image.identifiers import fit_of, identifiers_of
from bough.forks.process_image.image import ProcessImage
from bough.networks.switch_port import SwitchPort
from bough.paths import Home, MachinePaths
from bough.qemu.jail import machine_uid
from bough.qemu.plan import NicPlan, Plan
from bough.qemu.process import QemuProcess, find_process
from bough.qemu.process_start import start_process
from bough.qemu.qmp import Qmp
from tests.machines.conftest import IS_ROOT
from tests.machines.test_jail import status

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="process images exist on x86_64 alone")


DISK = "0-01234567.qcow2"
#: Fields of /proc/PID/status.
ALIKE = ("Seccomp", "Seccomp_filters", "NoNewPrivs", "Threads", "Name")


@pytest.fixture
def plan(plan: Plan, paths: MachinePaths) -> Plan:
    """Return the plan of a machine that can be captured as a process image."""
    nics = (NicPlan("52:54:00:ab:cd:ef", "isolated"), at_switch("52:54:01:ab:cd:ef", paths))
    disk = replace(plan.disks[0], path=str(Path(plan.disks[0].path).rename(paths.disks / DISK)))
    return replace(plan, cpu_model="Nehalem,rdrand=off,rdseed=off", nics=nics, vcpus=2, disks=(disk,))


def at_switch(mac: str, paths: MachinePaths) -> NicPlan:
    """Return a card at a switch that does not run."""
    return NicPlan(mac, "switch", id="nic1", place=1, port=SwitchPort(str(paths.root / "nic1")))


@pytest.fixture
async def captured(plan: Plan, process: QemuProcess, paths: MachinePaths) -> CapturedProcess:
    """Return the process image of a machine that has run its firmware for a moment."""
    await asyncio.sleep(0.5)
    qmp = await Qmp.connect(paths.qmp_socket)
    await qmp.execute("stop")
    await qmp.close()
    fit = fit_of(plan)
    assert fit is not None
    return await capture_process(process.pid, identifiers_of(plan), fit, process.given, {})


@asynccontextmanager
async def another(
    captured: CapturedProcess, plan: Plan, home: Home
) -> AsyncIterator[tuple[Plan, QemuProcess]]:
    """Yield the process of another machine that continues from the process image. Nothing of it is left
    afterwards.
    """
    number = int.from_bytes(os.urandom(3))
    paths = home.machine(f"{number:0{len(plan.machine_id)}x}")
    for directory in (paths.root, paths.disks):
        directory.mkdir(mode=0o711)
    end = ":".join(f"{byte:02x}" for byte in number.to_bytes(3))
    disk = replace(plan.disks[0], path=str(paths.disks / DISK))
    shutil.copy(plan.disks[0].path, disk.path)
    its = replace(
        plan,
        machine_id=paths.root.name,
        name="other",
        uuid=f"22222222-3333-4444-8555-{number:012x}",
        vmgenid=f"77777777-8888-4999-8aaa-{number:012x}",
        nics=(NicPlan(f"52:54:00:{end}", "isolated"), at_switch(f"52:54:01:{end}", paths)),
        disks=(disk,),
        uid=machine_uid(paths.root.name) if IS_ROOT else None,
    )
    try:
        process = await start_process(its, paths, loader=ProcessImage(captured))
        try:
            yield its, process
        finally:
            process.kill()
            await process.wait()
    finally:
        assert await find_process(paths) is None
        shutil.rmtree(paths.root)


async def test_it_goes_on_as_another_machine(captured: CapturedProcess, plan: Plan, home: Home) -> None:
    async with another(captured, plan, home) as (its, process):
        qmp = await Qmp.connect(home.machine(its.machine_id).qmp_socket)
        assert (await qmp.query("query-status"))["status"] == "paused"
        assert (await qmp.query("query-uuid"))["UUID"] == its.uuid
        assert (await qmp.query("query-vm-generation-id"))["guid"] == its.vmgenid
        (block,) = await qmp.query_list("query-block")
        assert block["inserted"]["file"] == its.disks[0].path
        await qmp.execute("cont")
        await asyncio.sleep(0.2)
        assert (await qmp.query("query-status"))["status"] == "running"
        await qmp.execute("system_reset")  # the firmware starts again, as after power-on
        await asyncio.sleep(0.5)
        assert (await qmp.query("query-status"))["status"] == "running"
        await qmp.close()
        assert process.is_alive()


async def test_its_card_has_the_socket_of_its_own_port(
    captured: CapturedProcess, plan: Plan, home: Home
) -> None:
    async with another(captured, plan, home) as (its, process):
        port = its.nics[1].port
        assert port is not None
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as switch:
            switch.connect(port.nic_socket)
        sockets = [line.split() for line in Path(f"/proc/{process.pid}/net/unix").read_text().splitlines()]
        (inode,) = [words[6] for words in sockets if words[-1] == "/run/bough-ports/nic1/nic.sock"]
        assert f"socket:[{inode}]" in {
            str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()
        }


async def test_its_jail_is_as_tight(
    captured: CapturedProcess, process: QemuProcess, plan: Plan, home: Home
) -> None:
    async with another(captured, plan, home) as (its, forked):
        before, after = status(process.pid), status(forked.pid)
        for field in (*ALIKE, "CapEff", "CapBnd", "CapAmb"):
            assert after[field] == before[field], field
        if its.uid is not None:
            assert set(after["Uid"].split()) == {str(its.uid)}
        for name in ("mnt", "pid", "net", "ipc", "uts"):
            ours = Path(f"/proc/self/ns/{name}").readlink()
            assert Path(f"/proc/{forked.pid}/ns/{name}").readlink() != ours, name
        await asyncio.sleep(0.2)  # the process notices that its first client has gone
        links = [str(link.readlink()) for link in Path(f"/proc/{forked.pid}/fd").iterdir()]
        assert not [link for link in links if link.startswith("/memfd:")]
        kinds = sorted(link.rpartition(":")[0] for link in links)
        assert kinds == sorted(
            str(link.readlink()).rpartition(":")[0] for link in Path(f"/proc/{process.pid}/fd").iterdir()
        )
        words = Path(f"/proc/{forked.pid}/cmdline").read_text().split("\0")
        assert plan.qemu in words
        assert any(its.machine_id in word for word in words)


async def test_several_go_on_side_by_side(captured: CapturedProcess, plan: Plan, home: Home) -> None:
    async with another(captured, plan, home) as (one, first), another(captured, plan, home) as (two, second):
        assert first.pid != second.pid
        for its in (one, two):
            qmp = await Qmp.connect(home.machine(its.machine_id).qmp_socket)
            await qmp.execute("cont")
            assert (await qmp.query("query-uuid"))["UUID"] == its.uuid
            await qmp.close()


async def test_a_library_was_replaced(captured: CapturedProcess, plan: Plan, home: Home) -> None:
    path, (inode, size, changed) = next(iter(captured.files.items()))
    captured.files[path] = (inode, size, changed - 1)
    with pytest.raises(MachineFailed, match="was replaced since"):
        async with another(captured, plan, home):
            pass


async def test_what_cannot_be_mapped(captured: CapturedProcess, plan: Plan, home: Home) -> None:
    nowhere = replace(captured.areas[0], start=1 << 60)
    broken = replace(captured, areas=(nowhere, *captured.areas[1:]))
    with pytest.raises(MachineFailed, match=r"exited with 71: bough-loader: step \d+ \(kind 1\)"):
        async with another(broken, plan, home):
            pass


async def test_one_that_somebody_talks_to_is_not_frozen(
    plan: Plan, process: QemuProcess, paths: MachinePaths
) -> None:
    qmp = await Qmp.connect(paths.qmp_socket)
    await qmp.execute("stop")
    fit = fit_of(plan)
    assert fit is not None
    with pytest.raises(MachineFailed, match="QEMU('s thread| has open| is just)"):
        await asyncio.to_thread(capture, process.pid, identifiers_of(plan), fit, process.given, {})
    assert (await qmp.query("query-status"))["status"] == "paused"  # the guest continues
    await qmp.execute("cont")
    await qmp.close()


async def test_what_cannot_be_frozen(process: QemuProcess, plan: Plan) -> None:
    marks = identifiers_of(plan)
    with pytest.raises(MachineFailed, match="too short"):
        capture(process.pid, replace(marks, disks=("0",)), (), process.given, {})
    with pytest.raises(MachineFailed):
        capture(2**22 - 1, marks, (), process.given, {})
    assert process.is_alive()
