"""A real QEMU in its jail, as root and as an ordinary user: start, inspection from outside, end, discovery.

No bootable disk is needed: the firmware's message on the console is enough of a guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bough.errors import MachineFailed, QmpLost, QmpRefused, WrongState
from bough.paths import Home, MachinePaths
from bough.qemu.accelerators import probe_accelerators
from bough.qemu.binary import find_qemu
from bough.qemu.choice import choose_accelerator
from bough.qemu.jail import Jail
from bough.qemu.jail_probe import probe_jail
from bough.qemu.pid import Pid
from bough.qemu.plan import DiskPlan, NicPlan, Plan
from bough.qemu.process import QemuProcess, find_process
from bough.qemu.process_start import start_process
from bough.qemu.qmp import Qmp
from bough.qemu.waiter_files import is_held, read_exit

IS_ROOT = os.geteuid() == 0


async def test_the_firmware_speaks_on_the_console(process: QemuProcess, paths: MachinePaths) -> None:
    reader, writer = await asyncio.open_unix_connection(paths.console_socket)
    said = b""
    async with asyncio.timeout(30):
        while b"No bootable device" not in said:
            said += await reader.read(4096)
    writer.close()


async def test_qmp(process: QemuProcess, paths: MachinePaths) -> None:
    qmp = await Qmp.connect(paths.qmp_socket)
    assert (await qmp.execute("query-status"))["status"] == "running"
    nodes = {node["node-name"]: node for node in await qmp.execute("query-named-block-nodes")}
    assert nodes["disk0"]["ro"] is False
    assert nodes["disk0-base0"]["ro"] is True
    with pytest.raises(QmpRefused, match="nonsense"):
        await qmp.execute("nonsense")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        await qmp.send_fd("here", theirs.fileno())
        await qmp.execute("closefd", fdname="here")
    await qmp.execute("quit")
    assert "SHUTDOWN" in [event["event"] async for event in qmp.events()]
    cause = await process.wait()
    assert (cause.exit_status, cause.signal) == (0, None)


async def test_killed(process: QemuProcess, paths: MachinePaths) -> None:
    assert process.is_alive()
    process.kill()
    cause = await process.wait()
    assert cause.signal == "SIGKILL"
    assert not process.is_alive()
    assert read_exit(paths) == cause
    assert await process.wait() == cause


async def test_found_again(process: QemuProcess, paths: MachinePaths) -> None:
    found = await find_process(paths)
    assert found is not None
    assert found.pid == process.pid
    found.kill()
    assert (await found.wait()).signal == "SIGKILL"
    assert await find_process(paths) is None


async def test_one_at_a_time(process: QemuProcess, plan: Plan, paths: MachinePaths) -> None:
    with pytest.raises(WrongState):
        await start_process(plan, paths)
    assert process.is_alive()


async def test_this_host_gives_the_whole_jail_but_for_control_groups(plan: Plan) -> None:
    if plan.jail.bwrap is None:
        pytest.skip(f"no bubblewrap that works here: {plan.jail.refused}")
    assert plan.jail.system_calls
    assert plan.jail.refused == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine_type": "pc-q35-0.1"}, "machine"),
        ({"cpu_model": "Z80"}, "Z80"),
        ({"disks": (DiskPlan("disk0", "/nonexistent.qcow2", "root"),)}, "nonexistent"),
        ({"qemu": "/usr/bin/false"}, "exited with 1"),
    ],
)
async def test_a_qemu_that_dies_at_its_start(
    plan: Plan, paths: MachinePaths, change: dict[str, object], said: str
) -> None:
    with pytest.raises(MachineFailed) as caught:
        await start_process(replace(plan, **change), paths)  # type: ignore[arg-type]
    assert caught.value.exit_status == 1
    assert said in caught.value.message + caught.value.qemu_stderr
    assert await find_process(paths) is None
    assert list(paths.runtime.iterdir()) == []


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("delay_s", [0, 0.002, 0.004, 0.006, 0.008, 0.01, 0.02, 0.03])
async def test_a_cancelled_start_leaves_nothing(
    plan: Plan, paths: MachinePaths, delay_s: float, times: int
) -> None:
    """Each new request cancels a pre-warm; the owner of a task cancels the task again after a while."""
    task = asyncio.create_task(start_process(plan, paths))
    await asyncio.sleep(delay_s)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.001)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await find_process(paths) is None
    assert not paths.runtime.exists() or list(paths.runtime.iterdir()) == []


async def test_found_although_its_wrapper_was_killed(
    process: QemuProcess, plan: Plan, paths: MachinePaths
) -> None:
    if plan.jail.bwrap is None:
        pytest.skip("no wrapper")
    waiter, monitor = (int(word) for word in (paths.log / "process").read_text().split()[1::2])
    for number in (waiter, monitor):
        pid = Pid.of(number)
        assert pid is not None
        pid.kill()
        await pid.wait()
    found = await find_process(paths)
    assert found is not None
    assert found.pid == process.pid
    found.kill()
    assert "its exit status is unknown" in (await found.wait()).text


@pytest.mark.parametrize("delay_s", [0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03])
async def test_killed_by_a_service_that_found_it_in_its_start(
    plan: Plan, paths: MachinePaths, delay_s: float
) -> None:
    start = asyncio.create_task(start_process(plan, paths))
    await asyncio.sleep(delay_s)
    found = await find_process(paths)
    if found is not None:
        found.kill()
        await found.wait()
    with contextlib.suppress(MachineFailed):
        started = await start
        started.kill()
        await started.wait()
    assert not is_held(paths)


async def test_a_kill_of_its_wrapper_leaves_nothing(
    process: QemuProcess, plan: Plan, paths: MachinePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plan.jail.bwrap is None:
        pytest.skip("no wrapper")
    monkeypatch.setattr("bough.qemu.process.KILL_TIMEOUT_S", 1.0)
    waiter, monitor = (Pid.of(int(word)) for word in (paths.log / "process").read_text().split()[1::2])
    assert waiter is not None
    assert monitor is not None
    wrapper = QemuProcess(monitor, waiter, paths)
    wrapper.kill()
    await wrapper.wait()
    assert not process.is_alive()
    assert not is_held(paths)


@pytest.mark.parametrize("jailed", [True, False])
async def test_found_although_its_sockets_were_removed(plan: Plan, paths: MachinePaths, jailed: bool) -> None:
    process = await start_process(plan if jailed else replace(plan, jail=Jail(), uid=None), paths)
    for names in (paths.runtime, paths.qmp_socket):  # all sockets, then the links that replace them
        shutil.rmtree(names) if names.is_dir() else names.unlink()
        found = await find_process(paths)
        assert found is not None
        assert found.pid == process.pid
        found.name_sockets()
        qmp = await Qmp.connect(paths.qmp_socket)
        assert (await qmp.execute("query-status"))["status"] == "running"
        for path in (paths.console_socket, paths.agent_socket):
            _, writer = await asyncio.open_unix_connection(path)
            writer.close()
        await qmp.close()
    process.kill()
    await process.wait()
    assert not paths.qmp_socket.exists()  # a link to a closed descriptor
    again = await start_process(plan, paths)
    assert paths.qmp_socket.is_socket()
    assert not paths.qmp_socket.is_symlink()
    again.kill()
    await again.wait()


def end(pid: int) -> None:
    """Kill a process, and wait until the process holds no descriptor any more."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, 9)
        assert select.select([pidfd], [], [], 30)[0]
    finally:
        os.close(pidfd)


async def test_what_nobody_holds_stays_unreachable(process: QemuProcess, paths: MachinePaths) -> None:
    for path in (paths.runtime / "qmp.sock", paths.runtime / "agent.sock"):
        path.unlink()
    waiter, monitor = (int(word) for word in (paths.log / "process").read_text().split()[1::2])
    os.kill(waiter, signal.SIGSTOP)  # after the end of its children it would end QEMU, too
    for line in Path(f"/proc/{waiter}/task/{waiter}/children").read_text().split():
        if int(line) != monitor:  # the shell that keeps QEMU's output
            end(int(line))
    end(waiter)
    found = await find_process(paths)
    assert found is not None
    found.name_sockets()
    with pytest.raises(QmpLost, match=r"no QMP connection at .*qmp\.sock"):
        await Qmp.connect(paths.qmp_socket)
    assert process.is_alive()
    while (found := await find_process(paths)) is not None:
        found.kill()  # bubblewrap ends with a delay, and its waiter is gone


async def test_without_a_jail_it_starts_and_says_so(plan: Plan, paths: MachinePaths) -> None:
    process = await start_process(replace(plan, jail=Jail(), uid=None), paths)
    assert process.jail is not None
    assert not process.jail.complete
    process.kill()
    await process.wait()


@pytest.mark.skipif(not shutil.which("passt"), reason="needs passt")
async def test_the_uplink_ends_with_it(plan: Plan, paths: MachinePaths) -> None:
    process = await start_process(replace(plan, nics=(NicPlan("52:54:00:12:34:56", "passt"),)), paths)
    assert process._started is not None
    uplink = process._started.uplink
    assert uplink is not None
    assert uplink.is_alive()
    process.kill()
    await process.wait()
    assert not uplink.is_alive()


async def test_it_outlives_who_started_it(plan: Plan, paths: MachinePaths, home: Home) -> None:
    """Another Python starts the machine and is killed. This one finds the machine and learns how it ends."""
    program = (
        "import asyncio, os, pickle, sys\n"
        "from bough.qemu.process_start import start_process\n"
        "plan, paths = pickle.load(sys.stdin.buffer)\n"
        "asyncio.run(start_process(plan, paths))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=subprocess.PIPE, env=_environment()
    )
    await other.communicate(pickle.dumps((plan, paths)))
    assert other.returncode == -9
    process = await find_process(paths)
    assert process is not None
    qmp = await Qmp.connect(paths.qmp_socket)
    assert (await qmp.execute("query-status"))["status"] == "running"
    await qmp.execute("quit")
    await qmp.close()
    assert (await process.wait()).exit_status == 0


def _environment() -> dict[str, str]:
    """Return an environment in which another Python finds the same modules."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


async def test_accelerators_are_proven(home: Home) -> None:
    qemu = find_qemu("x86_64")
    jail = await probe_jail(qemu, home)
    found = await probe_accelerators(qemu, jail, home, refresh=True)
    assert found["tcg"].usable
    assert "ran in" in found["tcg"].detail
    assert choose_accelerator("auto", found).usable
    assert found["kvm"].usable or found["kvm"].detail
    assert await probe_accelerators(qemu, jail, home) == found
    assert list(home.incoming.iterdir()) == []
