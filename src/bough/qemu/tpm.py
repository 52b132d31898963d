"""The TPM of a machine: swtpm, a jailed process beside QEMU.

    QEMU ── connected socket ── swtpm ── disks/tpm.state

swtpm ends when QEMU's end of the socket is closed, so bough need not end the process. swtpm keeps its state
in one file. QEMU asks swtpm for the whole state when the devices are saved, and returns the state when the
devices are loaded (QEMU's docs/specs/tpm.rst). So a snapshot with memory contains the TPM of that moment. The
file counts at the next boot.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bough.errors import HostLacks
from bough.qemu.jail import Jail, Sight, render_jail
from bough.qemu.packages import render_fix
from bough.qemu.syscalls import open_filter

#: Name of the state below a machine's disks/.
TPM_STATE = "tpm.state"

_ASKED_S = 20.0
_JOIN_GROUPS = """
while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs" || exit 125; shift; done
shift; exec "$@"
"""


def find_swtpm() -> str:
    """Return the path of swtpm. Raises HostLacks: it is not installed."""
    program = shutil.which("swtpm")
    if program is None:
        raise HostLacks("swtpm is not installed, which a machine with a TPM needs", hint=render_fix("swtpm"))
    return program


def check_swtpm() -> None:
    """Raise HostLacks if swtpm is missing, or cannot keep its state in a file. Blocks for a moment."""
    asked = [find_swtpm(), "socket", "--tpm2", "--print-capabilities"]
    try:
        told = subprocess.run(asked, capture_output=True, check=False, timeout=_ASKED_S).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostLacks(f"swtpm does not start: {error}", hint="install swtpm again") from error
    if b"nvram-backend-file" not in told:
        raise HostLacks("the swtpm of this host is too old for a TPM", hint="install swtpm 0.7 or newer")


def create_tpm_state(disks: Path) -> None:
    """Create the state of a new TPM beside a machine's disks. swtpm makes the keys at the first start.

    Raises:
        HostLacks: swtpm is not installed, or too old.
    """
    check_swtpm()
    os.close(os.open(disks / TPM_STATE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def start_tpm(
    state: str, jail: Jail, *, uid: int | None, groups: Sequence[str]
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the TPM of a machine. Return QEMU's socket, and the process.

    The process ends when no process has the socket open.

    Args:
        state: path of the state's file.
        uid: user of the process if the service is root, otherwise None.
        groups: the machine's control groups, which the process joins.

    Raises:
        HostLacks: swtpm is missing or cannot be started.
    """
    program = find_swtpm()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs, contextlib.ExitStack() as undo:
        undo.callback(ours.close)
        outer = open_filter() if jail.bwrap and jail.system_calls else None
        if outer is not None:
            undo.callback(os.close, outer)
        argv = [
            *(program, "socket", "--tpm2", "--terminate"),
            *("--tpmstate", f"backend-uri=file://{state}"),
            *("--ctrl", f"type=unixio,clientfd={theirs.fileno()}"),
        ]
        sight = Sight(program, writable=(state,))
        command = render_jail(jail, sight, argv, uid=uid, filter_descriptor=outer)
        passed = [theirs.fileno(), *(() if outer is None else (outer,))]
        try:
            process = subprocess.Popen(
                ["sh", "-c", _JOIN_GROUPS, "bough-tpm", *groups, "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                pass_fds=passed,
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            )
        except OSError as error:
            raise HostLacks(f"swtpm cannot be started: {error}") from error
        undo.pop_all()
        if outer is not None:
            os.close(outer)
    return ours, process
