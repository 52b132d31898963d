"""Limits of a machine that forks, writes, prints and sends without end. Its neighbour still gets its share.

The tests compare shares, not times: any other load on the host affects both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import bough
from bough.errors import HostLacks, QmpLost, QmpRefused
from bough.machines.console import LOG_BYTES
from bough.paths import Home, MachinePaths
from bough.qemu.cgroup import (
    create_groups,
    find_groups,
    limits_memory,
    remove_groups,
    stand_back,
)
from bough.qemu.plan import Limits, Plan
from bough.qemu.process import QemuProcess
from bough.qemu.process_start import start_process
from bough.qemu.qmp import Qmp
from tests.conftest import MEMORY

MIB = 1 << 20
HAS_CPU_GROUPS = any("cpu" in base.split("/")[-2] or "unified" in base for base in find_groups())
needs_cpu_groups = pytest.mark.skipif(not HAS_CPU_GROUPS, reason="no control group for processor time here")


# -- a bare QEMU --------------------------------------------------------------------------------------


async def take_memory(process: QemuProcess, paths: MachinePaths, size_bytes: int) -> bool:
    """Return whether QEMU got that memory, as a QEMU under a guest's control would try."""
    qmp = await Qmp.connect(paths.qmp_socket)
    try:
        arguments = {"qom-type": "memory-backend-ram", "id": "loot", "size": size_bytes, "prealloc": True}
        await qmp.execute("object-add", **arguments)
        return True
    except (QmpRefused, QmpLost):
        return False
    finally:
        await qmp.close()


@pytest.mark.parametrize("grouped", [True, False], ids=["by a control group", "by address space"])
async def test_memory_of_the_process(plan: Plan, paths: MachinePaths, grouped: bool) -> None:
    if grouped and not limits_memory([f"{base}/." for base in plan.jail.groups]):
        pytest.skip("no control group for memory here")
    jail = plan.jail if grouped else replace(plan.jail, groups=())
    limited = replace(plan, jail=jail, limits=Limits(process_memory_bytes=1536 * MIB))
    process = await start_process(limited, paths)
    assert not await take_memory(process, paths, (2048 if grouped else 6144) * MIB)
    if grouped:
        cause = await process.wait()
        assert cause.signal == "SIGKILL"
        assert "more memory than limits.memory" in cause.text
    else:
        assert process.is_alive()
        process.kill()
        await process.wait()


async def test_its_limits_leave_a_guest_its_memory(plan: Plan, paths: MachinePaths) -> None:
    process = await start_process(replace(plan, limits=Limits(process_memory_bytes=2048 * MIB)), paths)
    assert await take_memory(process, paths, 1024 * MIB)
    process.kill()
    await process.wait()


async def test_disks_share_one_limit(plan: Plan, paths: MachinePaths) -> None:
    limits = Limits(disk_bytes_per_s=4 * MIB, disk_operations_per_s=100)
    process = await start_process(replace(plan, limits=limits), paths)
    qmp = await Qmp.connect(paths.qmp_socket)
    told = [each["inserted"] for each in await qmp.execute("query-block") if "inserted" in each]
    assert [(each["bps"], each["iops"], each["group"]) for each in told] == [(4 * MIB, 100, "machine")]
    # A snapshot's overlay over the disk changes nothing.
    overlay = paths.disks / "overlay.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(overlay), "16M"]
    assert await (await asyncio.create_subprocess_exec(*create)).wait() == 0
    if plan.uid is not None:
        os.chown(overlay, plan.uid, plan.uid)
    arguments = {"node-name": "disk0", "snapshot-file": str(overlay), "snapshot-node-name": "over"}
    await qmp.execute("blockdev-snapshot-sync", format="qcow2", mode="existing", **arguments)
    told = [each["inserted"] for each in await qmp.execute("query-block") if "inserted" in each]
    assert told[0]["bps"] == 4 * MIB
    await qmp.close()
    process.kill()
    await process.wait()


async def test_processor_time_that_cannot_be_limited_is_refused(plan: Plan, paths: MachinePaths) -> None:
    without = replace(plan, jail=replace(plan.jail, groups=()), limits=Limits(cpu_percent=50))
    with pytest.raises(HostLacks, match="processor time"):
        await start_process(without, paths)


# -- a hostile guest and its neighbour ----------------------------------------------------------------

FLOOD = r"""
( while :; do sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done' & sleep 0.02; done ) &
( while :; do dd if=/dev/zero of=/var/flood bs=1M count=200 oflag=direct; done ) &
( yes 0123456789012345678901234567890123456789 > /dev/ttyS0 ) &
( gateway=$(ip route | sed -n 's/^default via \([^ ]*\).*/\1/p'); exec 3>/dev/udp/$gateway/9
  while :; do echo 0123456789012345678901234567890123456789 >&3; done ) &
"""
BUSY = "(while :; do :; done) & (while :; do :; done) &"


def processes_of(machine_id: str) -> list[int]:
    for base in find_groups():
        if "cpu" in base:
            return [int(word) for word in Path(base, machine_id, "cgroup.procs").read_text().split()]
    return []


def cpu_s(machine_id: str) -> float:
    """Return the processor time of all processes of a machine: QEMU and uplink."""
    ticks = 0
    for pid in processes_of(machine_id):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def written_bytes(pid: int) -> int:
    lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(lines["write_bytes"])


@needs_cpu_groups
def test_standing_back() -> None:
    """Move a machine to the background of another on the same processor, and back."""
    bases, names = find_groups(), ("bough-test-back", "bough-test-front")
    spinning = [subprocess.Popen(["sh", "-c", "while :; do :; done"], start_new_session=True) for _ in names]

    def shares() -> tuple[float, float]:
        before = [cpu_s(name) for name in names]
        time.sleep(2)
        back, front = (cpu_s(name) - was for name, was in zip(names, before, strict=True))
        return back, front

    try:
        for name, process in zip(names, spinning, strict=True):
            os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
            for group in create_groups(bases, name, Limits()):
                Path(group, "cgroup.procs").write_text(str(process.pid))
        assert stand_back(spinning[0].pid, True)
        back, front = shares()
        assert front > 5 * back
        assert stand_back(spinning[0].pid, False)
        back, front = shares()
        assert front < 2 * back
        assert not stand_back(os.getpid(), True), "no group of a machine's"
    finally:
        for name, process in zip(names, spinning, strict=True):
            process.kill()
            process.wait()
            remove_groups(bases, name)


@pytest.fixture
def pair(
    hv: bough.Hypervisor, debian: str, booted: bough.Snapshot
) -> Iterator[tuple[bough.Machine, bough.Machine]]:
    """Yield a running machine with limits, and a running machine without."""
    limits = {"cpu": 60, "disk": 2 * MIB, "iops": 200, "console": 65536}
    hostile = hv.run(debian, name="hostile", memory=MEMORY, limits=limits, ssh_keys=[])
    neighbour = booted.fork("neighbour")
    yield hostile, neighbour
    hostile.delete(force=True)
    neighbour.delete(force=True)


@needs_cpu_groups
def test_a_flood_stays_within_its_limits(
    pair: tuple[bough.Machine, bough.Machine], bough_home: Home, nothing_left: None
) -> None:
    hostile, neighbour = pair
    paths = bough_home.machine(hostile.info().id)
    pid = hostile.info().pid
    assert pid is not None
    neighbour.exec("bash", "-c", f"{BUSY} true")
    with hostile.spawn("bash", "-c", FLOOD + "wait"):
        time.sleep(3)
        started, used, other = time.monotonic(), cpu_s(hostile.info().id), cpu_s(neighbour.info().id)
        wrote = written_bytes(pid)
        time.sleep(12)
        passed = time.monotonic() - started
        used = cpu_s(hostile.info().id) - used
        other = cpu_s(neighbour.info().id) - other
        wrote = written_bytes(pid) - wrote
        # The service and the neighbour still answer.
        assert neighbour.exec("echo", "here").stdout == "here\n"
    console = sum(path.stat().st_size for path in paths.log.glob("console.log*"))
    print(
        f"in {passed:.1f} s the flood used {used / passed:.0%} of a processor (limit 60 %), wrote "
        f"{wrote / passed / MIB:.1f} MiB/s (limit 2), left {console} bytes of console; "
        f"its neighbour used {other / passed:.0%}"
    )
    assert used <= 0.6 * passed * 1.1 + 0.2
    assert wrote <= 2 * MIB * passed * 1.25 + 4 * MIB
    assert console <= 2 * LOG_BYTES + 2 * 65536
    assert other >= used * 0.7


async def test_the_uplinks_processes_are_in_the_machines_groups(plan: Plan, paths: MachinePaths) -> None:
    from bough.qemu.plan import NicPlan

    if not plan.jail.groups:
        pytest.skip("no control groups here")
    process = await start_process(replace(plan, nics=(NicPlan("52:54:00:12:34:56", "passt"),)), paths)
    assert process._started is not None
    uplink = process._started.uplink
    assert uplink is not None
    for base in plan.jail.groups:
        group = Path(base, plan.machine_id)
        inside = {int(word) for word in (group / "cgroup.procs").read_text().split()}
        assert uplink.number in inside
        assert process.pid in inside
    process.kill()
    await process.wait()
    assert not any(Path(base, plan.machine_id).exists() for base in plan.jail.groups)
