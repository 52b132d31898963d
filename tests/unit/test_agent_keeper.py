"""Commands and restarts of the agent: the real front, keeper and agent, as processes of this host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bough.errors import AgentUnavailable
from bough.guest.channel import AgentChannel
from bough.guest.session import ExecRequest, ExecSession, ExitStatus
from tests.unit.agent_process import SOURCE, is_running, kill_quietly
from tests.unit.test_agent import finish, read_until, run, until_gone

START = (
    "import sys; sys.path.insert(0, {!r});"
    " from bough.guest import agent_kept; agent_kept.KEEP_AFTER_S = 0.05;"
    " from bough.guest.agent_keeper import main;"
    " sys.exit(main(['--fd', '{}', '--place', {!r}]))"
)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Guest:
    """A guest whose agent has a keeper; `restart` does the same as systemctl."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.host_end, self._guest_end = socket.socketpair()
        self._front = self._start()
        self.keeper = -1

    def _start(self) -> subprocess.Popen[bytes]:
        code = START.format(str(SOURCE), self._guest_end.fileno(), str(self._place))
        words = [sys.executable, "-I", "-S", "-c", code]
        return subprocess.Popen(words, pass_fds=[self._guest_end.fileno()], stdin=subprocess.DEVNULL)

    def find_keeper(self) -> None:
        (self.keeper,) = children(self._front.pid)

    def agent(self) -> int:
        """Return the agent's pid: the child of the keeper that runs agent_keeper; other children
        are orphans.
        """
        names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(self.keeper)}
        (pid,) = (pid for pid, line in names.items() if b"agent_keeper" in line)
        return pid

    def restart(self) -> None:
        self.stop()
        self.start()

    def start(self) -> None:
        self._front = self._start()

    def kill_front(self) -> None:
        self._front.kill()
        self._front.wait()

    def front_status(self) -> int:
        return self._front.wait(20)

    def stop(self) -> None:
        self._front.send_signal(signal.SIGTERM)
        assert self._front.wait(20) == 0

    def close(self) -> None:
        self.host_end.close()
        with contextlib.suppress(AssertionError):
            self.stop()
        self._guest_end.close()
        kill_quietly(self.keeper)


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[tuple[AgentChannel, Guest]]:
    guest = Guest(tmp_path / "keeper.sock")
    channel = AgentChannel(guest.host_end, machine="test")
    try:
        await channel.hello(20)
        guest.find_keeper()
        yield channel, guest
    finally:
        await channel.close()
        guest.close()


async def started(channel: AgentChannel, script: str, *, tty: bool = False) -> ExecSession:
    session = await channel.exec(ExecRequest(["sh", "-c", script], tty=tty))
    await asyncio.sleep(0.3)  # now the keeper knows of it
    return session


async def until_away(channel: AgentChannel) -> None:
    async with asyncio.timeout(20):
        while channel.is_established:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)


async def greet(channel: AgentChannel) -> None:
    await until_away(channel)
    await channel.hello(20)


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("how", ["killed", "restarted"])
async def test_a_command_outlives_its_agent(guest: tuple[AgentChannel, Guest], how: str, tty: bool) -> None:
    channel, machine = guest
    session = await started(channel, "echo begun; read line; echo got $line; exit 7", tty=tty)
    if how == "killed":
        os.kill(machine.agent(), signal.SIGKILL)
    else:
        machine.restart()
    await greet(channel)
    await session.write(b"word\n")
    out, _, status = await finish(session)
    assert b"begun" in out
    assert b"got word" in out
    assert status == ExitStatus(7)
    assert (await run(channel, "echo", "next"))[0] == b"next\n"


async def test_streams_stay_whole(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    data = os.urandom(1 << 20) * 6
    session = await channel.exec(ExecRequest(["sh", "-c", "sleep 0.5; cat; exit 3"]))
    feeding = asyncio.create_task(session.write(data))
    await asyncio.sleep(0.3)
    machine.restart()
    await greet(channel)
    ending = asyncio.create_task(finish(session))
    await feeding
    await session.close_stdin()
    out, _, status = await ending
    assert out == data
    assert status == ExitStatus(3)


async def test_a_command_that_ends_while_there_is_no_agent(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    session = await started(channel, "echo $$; sleep 0.5; echo last; exit 9")
    machine.stop()
    pid = int(await read_until(session, b"\n"))
    await until_gone(pid)
    machine.start()
    await greet(channel)
    out, _, status = await finish(session)
    assert out == b"last\n"
    assert status == ExitStatus(9)


async def test_a_young_command_of_an_agent_that_is_killed(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    session = await channel.exec(ExecRequest(["sleep", "1000"]))
    os.kill(machine.agent(), signal.SIGKILL)
    await greet(channel)
    status = (await finish(session))[2]
    assert isinstance(status.error, AgentUnavailable)
    assert "not known" in status.error.message


async def test_a_client_that_left_meanwhile(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    session = await started(channel, "echo $$; exec sleep 1000")
    pid = int(await read_until(session, b"\n"))
    os.kill(machine.agent(), signal.SIGKILL)
    await until_away(channel)
    assert is_running(pid)
    await session.abort()
    await channel.hello(20)
    await until_gone(pid)


async def test_a_keeper_that_is_killed_takes_its_commands_along(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    session = await started(channel, "echo $$; exec sleep 1000")
    pid = int(await read_until(session, b"\n"))
    os.kill(machine.keeper, signal.SIGKILL)
    status = (await finish(session))[2]
    assert isinstance(status.error, AgentUnavailable)
    assert "keeper" in status.error.message
    await until_gone(pid)
    assert machine.front_status() == 1


async def test_a_front_that_is_killed_is_replaced(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    session = await started(channel, "read line; echo $line; exit 4")
    agent = machine.agent()
    machine.kill_front()
    machine.start()
    await session.write(b"on\n")
    assert (await finish(session))[::2] == (b"on\n", ExitStatus(4))
    assert machine.agent() == agent


async def test_many_at_once(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    sessions = [
        await channel.exec(ExecRequest(["sh", "-c", f"read a; echo {n} $a; exit {n}"])) for n in range(50)
    ]
    await asyncio.sleep(0.3)
    machine.restart()
    await greet(channel)
    for session in sessions:
        await session.write(b"x\n")
    results = [await finish(session) for session in sessions]
    assert results == [(f"{n} x\n".encode(), b"", ExitStatus(n)) for n in range(50)]


async def test_one_restart_after_the_other(guest: tuple[AgentChannel, Guest]) -> None:
    channel, machine = guest
    first = await started(channel, "read line; echo $line; ls /proc/self/fd | tr '\\n' ' '")
    for _ in range(3):
        machine.restart()
        await greet(channel)
        # Commands of an agent that was executed anew inherit no more than those of the first.
        assert (await run(channel, "ls", "/proc/self/fd"))[0].split() == [b"0", b"1", b"2", b"3"]
        await channel.exec(ExecRequest(["sleep", "1000"]))
    await first.write(b"on\n")
    assert (await finish(first))[0] == b"on\n0 1 2 3 "
