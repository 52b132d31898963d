"""The uplink of a machine to the host's networks: two processes per machine, outside of the jail.

    QEMU ── uplink_filter.py ── passt ── sockets of the host

passt speaks Ethernet over a connected socket. The filter drops frames to the host's loopback. Each process
ends when its neighbour ends. So bough need not end either process. Both outlive the service, like the
machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bough.errors import HostLacks
from bough.networks import uplink_filter

_MAX_ANSWER_BYTES = 4096
#: Start of the process name (proc(5), comm). Label and machine id are at most 15 characters.
LABEL = "up-"
#: The same for an uplink through a network.
NETWORK_LABEL = "nu-"


class Uplink:
    """A requested uplink.

    Attributes:
        end: QEMU's socket. The filter ends when no process has this socket open.
    """

    def __init__(self, end: socket.socket, answers: socket.socket) -> None:
        self.end = end
        self._answers = answers

    def started(self) -> int:
        """Return the process id of the filter. Call once, before the next uplink is requested.

        Raises:
            HostLacks: the process could not be started.
        """
        answer = self._answers.recv(_MAX_ANSWER_BYTES).decode()
        if not answer.isdecimal():
            raise HostLacks(f"the uplink cannot be started: {answer or 'its program has ended'}")
        return int(answer)


def begin_uplink(
    *,
    machine_id: str,
    uid: int | None,
    groups: list[str],
    label: str = LABEL,
    addresses: Sequence[str] = uplink_filter.CARD,
) -> Uplink:
    """Request the uplink of a machine.

    The guest gets addresses by DHCP, and a resolver. The guest cannot reach the host's loopback. The uplink
    forwards no ports to the guest: published ports go through the agent.

    Args:
        machine_id: end of the name of the process.
        uid: user of the processes if the service is root, otherwise None.
        groups: the machine's control groups, which the processes join.
        label: start of the name of the process.
        addresses: see uplink_filter.CARD.

    Raises:
        HostLacks: passt is missing, or no process can be started.
    """
    words = ["-" if uid is None else str(uid), f"{label}{machine_id}", find_passt(), *addresses, *groups]
    request = os.fsencode("\0".join(words))
    ours, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with inside:
        try:
            return Uplink(ours, _beginner.ask(request, inside))
        except OSError as error:
            ours.close()
            raise HostLacks(f"the uplink cannot be started: {error}") from error


def find_passt() -> str:
    """Return the program that carries frames to the outside. Raises HostLacks."""
    passt = shutil.which("passt")
    if passt is None:
        raise HostLacks("passt is not installed", hint="bough doctor shows the command that installs it")
    return passt


class _Beginner:
    """The starter of this service's uplinks. The program ends with the service."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def ask(self, request: bytes, inside: socket.socket) -> socket.socket:
        """Send a request. Return the socket for the answer.

        Raises:
            OSError: the program cannot be started or reached.
        """
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
            # -I -S: Python starts in 15 ms and reads none of the user's files.
            [sys.executable, "-I", "-S", str(Path(uplink_filter.__file__)), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # passt cannot reach syslog from its own jail, and writes so for every line.
            stderr=subprocess.DEVNULL,
            cwd="/",
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        undo.pop_all()
    return process, ours


_beginner = _Beginner()
