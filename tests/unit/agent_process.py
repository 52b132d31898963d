"""The real agent as a process of this host, at one end of a socket pair."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import bough.guest
from bough.guest.channel import AgentChannel

SOURCE = Path(bough.guest.__file__).parents[2]
START = "import sys; sys.path.insert(0, {!r}); from bough.guest.agent import main; main(['--fd', '{}'])"


class AgentProcess:
    """An agent that serves its end of a socket pair, with the host's end."""

    def __init__(self) -> None:
        self.host_end, guest_end = socket.socketpair()
        code = START.format(str(SOURCE), guest_end.fileno())
        # As in a guest: no site packages, no environment.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code], pass_fds=[guest_end.fileno()], stdin=subprocess.DEVNULL
        )
        guest_end.close()

    def close(self) -> None:
        self.host_end.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextlib.asynccontextmanager
async def running_agent() -> AsyncIterator[tuple[AgentChannel, AgentProcess]]:
    agent = AgentProcess()
    channel = AgentChannel(agent.host_end, machine="test")
    try:
        await channel.hello(20)
        yield channel, agent
    finally:
        await channel.close()
        agent.close()


def is_running(pid: int) -> bool:
    """Return whether the process lives; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def kill_quietly(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
