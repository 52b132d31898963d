"""The way out of a machine: two processes per machine, outside of its jail.

    QEMU ── uplink_filter.py ── passt ── sockets of the host

passt speaks Ethernet over a connected socket; the filter keeps what goes to the host's loopback from it.
Each ends when its neighbour does: nobody has to end them, and they outlive the service as the machine does.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

from bough.errors import HostLacks
from bough.networks import uplink_filter


def start_uplink(*, machine_id: str, uid: int | None) -> tuple[socket.socket, list[subprocess.Popen[bytes]]]:
    """QEMU's end of the uplink, and the processes at the other end, to be reaped.

    The guest gets the host's addresses by DHCP and its resolver; it cannot reach the host's loopback,
    and nothing is forwarded to it: published ports go through the agent.

    Args:
        machine_id: for those who look at the list of processes.
        uid: as whom they run where we are root; None where we are not.

    Raises:
        HostLacks: there is no passt, or it cannot be run.
    """
    program = shutil.which("passt")
    if program is None:
        raise HostLacks("passt is not installed", hint="bough doctor tells the command that installs it")
    ours, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    outside, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    started: list[subprocess.Popen[bytes]] = []
    with inside, outside, theirs:
        try:
            started.append(_start(_render_passt(program, theirs, uid), theirs))
            started.append(_start(_render_filter(inside, outside, uid, machine_id), inside, outside))
        except OSError as error:
            ours.close()
            for child in started:
                child.kill()
                child.wait()
            raise HostLacks(f"the uplink cannot be started: {error}") from error
    return ours, started


def _render_passt(program: str, end: socket.socket, uid: int | None) -> list[str]:
    drop = ["--runas", f"{uid}:{uid}"] if uid is not None else []
    forward_nothing = ["--no-map-gw", "-t", "none", "-u", "none"]
    return [program, "--foreground", "--quiet", "--fd", str(end.fileno()), *forward_nothing, *drop]


def _render_filter(inside: socket.socket, outside: socket.socket, uid: int | None, label: str) -> list[str]:
    script = Path(uplink_filter.__file__)
    # -I -S: it starts in 15 ms and reads nothing of the user's.
    words = [sys.executable, "-I", "-S", str(script), str(inside.fileno()), str(outside.fileno())]
    return [*words, "-" if uid is None else str(uid), label]


def _start(argv: list[str], *ends: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # passt cannot reach syslog from its own jail, and says so for every line.
        stderr=subprocess.DEVNULL,
        cwd="/",
        pass_fds=[end.fileno() for end in ends],
        start_new_session=True,
    )
