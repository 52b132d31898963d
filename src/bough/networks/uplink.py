"""The way out of a machine: passt, one process per machine, outside of the jail.

passt speaks Ethernet over a connected socket whose other end QEMU has, and ends when that end is closed:
nobody has to end it, and it outlives the service as the machine does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess

from bough.errors import HostLacks



def start_uplink(*, uid: int | None) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """QEMU's end of the uplink, and the process at the other end.

    The guest gets the host's addresses by DHCP and its resolver; it cannot reach the host's loopback
    (--no-map-gw), and nothing is forwarded to it: published ports go through the agent.

    Args:
        uid: as whom passt runs where we are root; None where we are not.

    Raises:
        HostLacks: there is no passt, or it cannot be run.
    """
    program = shutil.which("passt")
    if program is None:
        raise HostLacks("passt is not installed", hint="bough doctor tells the command that installs it")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        argv = [program, "--foreground", "--quiet", "--fd", str(theirs.fileno())]
        argv += ["--no-map-gw", "-t", "none", "-u", "none"]
        if uid is not None:
            argv += ["--runas", f"{uid}:{uid}"]
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # It cannot reach syslog from its own jail and says so for every line.
                stderr=subprocess.DEVNULL,
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise HostLacks(f"{program} cannot be run: {error.strerror}") from error
    with contextlib.suppress(OSError):
        os.set_inheritable(ours.fileno(), True)
    return ours, child
