"""Reports about a process that has ended, from its waiter's file; and processes by pid."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from pathlib import Path

import pytest

from bough.paths import Home, MachinePaths
from bough.qemu.cgroup import create_groups, remove_groups
from bough.qemu.facts import cached_fact
from bough.qemu.pid import Pid
from bough.qemu.plan import Limits
from bough.qemu.process import find_process
from bough.qemu.process_start import _WAITER
from bough.qemu.waiter_files import STDERR_BYTES, read_exit
from tests.waiting import wait_until


@pytest.fixture
def paths(tmp_path: Path) -> MachinePaths:
    found = MachinePaths(tmp_path / "m", tmp_path / "run")
    found.log.mkdir(parents=True)
    return found


def test_a_machine_that_is_deleted_before_it_began(tmp_path: Path) -> None:
    """A machine is deleted before its QEMU starts: the waiter and the log keeper end, without a place to
    write to.
    """
    gone = str(tmp_path / "gone")
    command = ["sh", "-c", _WAITER, "bough-test", gone, "1000", "unlimited", "--", "true"]
    subprocess.run(command, timeout=10, stderr=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize(
    ("written", "status", "signal", "text"),
    [
        ("0\n", 0, None, "QEMU exited with 0"),
        ("1\n", 1, None, "QEMU exited with 1: could not open /x"),
        ("137\n", None, "SIGKILL", "QEMU was killed by SIGKILL"),
        ("139\n", None, "SIGSEGV", "QEMU was killed by SIGSEGV"),
        ("255\n", 255, None, "QEMU exited with 255: could not open /x"),
    ],
)
def test_exits(paths: MachinePaths, written: str, status: int, signal: str, text: str) -> None:
    paths.exit_status.write_text(written)
    paths.qemu_log.write_text("warning\ncould not open /x\n")
    cause = read_exit(paths)
    assert cause is not None
    assert (cause.exit_status, cause.signal, cause.text) == (status, signal, text)


@pytest.mark.parametrize("written", [None, "", "nonsense"])
def test_no_exit(paths: MachinePaths, written: str | None) -> None:
    if written is not None:
        paths.exit_status.write_text(written)
    assert read_exit(paths) is None


def test_what_qemu_printed_is_bounded(paths: MachinePaths) -> None:
    paths.exit_status.write_text("1")
    paths.qemu_log.write_bytes(b"\xff\x1b[2J" * 100_000)
    cause = read_exit(paths)
    assert cause is not None
    assert len(cause.stderr) <= STDERR_BYTES
    assert len(cause.text) < 1000


async def test_nothing_is_found_where_nothing_ran(paths: MachinePaths, tmp_path: Path) -> None:
    assert await find_process(paths) is None
    assert await find_process(MachinePaths(tmp_path / "gone", tmp_path)) is None
    (paths.log / "process").write_text("other-boot 1 1 1 1\n")
    assert await find_process(paths) is None


def _start_cat() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


async def test_a_pid_is_not_a_later_process_of_that_number() -> None:
    child = _start_cat()
    pid = Pid.of(child.pid)
    assert pid is not None
    assert pid.is_alive()
    other = Pid(pid.number, pid.start + 1)
    assert not other.is_alive()
    other.kill()
    await other.wait()
    assert pid.is_alive()
    waiting = asyncio.create_task(pid.wait())
    await asyncio.sleep(0)
    pid.kill()
    await waiting
    assert child.wait() == -9
    assert not pid.is_alive()
    await pid.wait()
    pid.kill()


async def test_a_number_that_a_thread_has_got_is_an_ended_process() -> None:
    """Also what Linux before 6.16 says of a process that is being reaped: EINVAL."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert thread.native_id is not None
    gone = Pid(thread.native_id, 1)
    await asyncio.wait_for(gone.wait(), 10)
    gone.kill()
    done.set()
    thread.join()


def test_whether_it_wants_the_processor() -> None:
    processes = [subprocess.Popen(["sh", "-c", "while :; do :; done"]), _start_cat()]
    try:
        busy, idle = (Pid.of(process.pid) for process in processes)
        assert busy is not None
        assert idle is not None
        wait_until(busy.wants_processor)
        wait_until(lambda: not idle.wants_processor())
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not busy.wants_processor()


def test_innermost() -> None:
    # Two commands, so that the shell does not replace itself by the program.
    child = subprocess.Popen(["sh", "-c", "cat; exit 0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin
    assert child.stdout
    child.stdin.write(b"here\n")
    child.stdin.flush()
    assert child.stdout.readline() == b"here\n"
    pid = Pid.of(child.pid)
    assert pid is not None
    inner = pid.innermost()
    assert Path(f"/proc/{inner.number}/comm").read_text() == "cat\n"
    child.communicate()


def test_limits_of_a_group(tmp_path: Path) -> None:
    # A plain directory lacks the files of a hierarchy: only existing files are written.
    group = tmp_path / "m1"
    group.mkdir()
    for name in ("memory.max", "cpu.max", "pids.max"):
        (group / name).touch()
    assert create_groups((str(tmp_path),), "m1", Limits(1 << 30, 150)) == [str(group)]
    assert (group / "memory.max").read_text() == str(1 << 30)
    assert (group / "cpu.max").read_text() == "150000 100000"
    for file in group.iterdir():
        file.unlink()
    remove_groups((str(tmp_path),), "m1")
    assert not group.exists()


async def test_facts_are_kept_until_what_they_depend_on_changes(tmp_path: Path) -> None:
    home = Home(tmp_path)
    program = tmp_path / "program"
    found = 0

    async def find() -> int:
        nonlocal found
        found += 1
        return found

    async def ask(*, refresh: bool = False) -> int:
        return int(await cached_fact(home, "fact", [str(program)], find, refresh=refresh))

    assert [await ask(), await ask()] == [1, 1]
    program.write_text("now it is here")
    assert [await ask(), await ask()] == [2, 2]
    assert await ask(refresh=True) == 3
    home.host_facts.write_text("{ not json")
    assert await ask() == 4
