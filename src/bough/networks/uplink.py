"""The way out of a machine: two processes per machine, outside of its jail.

    QEMU ── uplink_filter.py ── passt ── sockets of the host

passt speaks Ethernet over a connected socket; the filter keeps what goes to the host's loopback from it.
Each ends when its neighbour does: nobody has to end them, and they outlive the service as the machine does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from bough.errors import HostLacks
from bough.networks import uplink_filter

_MAX_ANSWER_BYTES = 4096
#: Of the name of a process (proc(5), comm): with it, a machine's id is as long as one may be.
LABEL = "up-"


class Uplink:
    """One that was asked for.

    Attributes:
        end: QEMU's; the filter ends when nobody has it open any more.
    """

    def __init__(self, end: socket.socket, answers: socket.socket) -> None:
        self.end = end
        self._answers = answers

    def started(self) -> int:
        """Its filter's process id. Once, and before the next uplink is asked for. Raises HostLacks."""
        answer = self._answers.recv(_MAX_ANSWER_BYTES).decode()
        if not answer.isdecimal():
            raise HostLacks(f"the uplink cannot be started: {answer or 'its program has ended'}")
        return int(answer)


def begin_uplink(*, machine_id: str, uid: int | None, groups: list[str]) -> Uplink:
    """The guest gets the host's addresses by DHCP and its resolver; it cannot reach the host's loopback,
    and nothing is forwarded to it: published ports go through the agent.

    Args:
        machine_id: for those who look at the list of processes.
        uid: as whom its processes run where we are root; None where we are not.
        groups: control groups of the machine, which they join.

    Raises:
        HostLacks: there is no passt, or nothing can be started.
    """
    passt = shutil.which("passt")
    if passt is None:
        raise HostLacks("passt is not installed", hint="bough doctor tells the command that installs it")
    words = ["-" if uid is None else str(uid), f"{LABEL}{machine_id}", passt, *groups]
    request = os.fsencode("\0".join(words))
    ours, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with inside:
        try:
            return Uplink(ours, _beginner.ask(request, inside))
        except OSError as error:
            ours.close()
            raise HostLacks(f"the uplink cannot be started: {error}") from error


class _Beginner:
    """The program that begins them for this process, and ends with it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def ask(self, request: bytes, inside: socket.socket) -> socket.socket:
        """Where the answer will come. Raises OSError."""
        if self._control is None or self._process is None or self._process.poll() is not None:
            if self._control is not None:
                self._control.close()
            self._process, self._control = _start_beginner()
        socket.send_fds(self._control, [request], [inside.fileno()])
        return self._control


def _start_beginner() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, contextlib.ExitStack() as undo:
        undo.callback(ours.close)
        process = subprocess.Popen(
            # -I -S: it starts in 15 ms and reads nothing of the user's.
            [sys.executable, "-I", "-S", str(Path(uplink_filter.__file__)), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # passt cannot reach syslog from its own jail, and says so for every line.
            stderr=subprocess.DEVNULL,
            cwd="/",
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        undo.pop_all()
    return process, ours


_beginner = _Beginner()
