"""The end of a guest with bough's init: end all processes, write everything to the disks, power off."""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH123, SIM105

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal costs what enum costs
import os
import time

from bough.guest import agent_system_calls as system
from bough.guest.agent_init_setup import attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: File systems of the kernel have nothing to write. Their absence would only hurt.
_KEPT = frozenset(("proc", "sysfs", "devtmpfs", "devpts", "cgroup2", "squashfs", "tmpfs", "mqueue"))
_LOOK_AGAIN_S = 0.02
_MOST_MOUNTS = 1 << 20


def end_guest(*, restarts: bool, grace_s: float) -> NoReturn:
    """End all processes but this one, unmount, and power off or restart.

    Args:
        grace_s: seconds until processes that have not ended are killed.
    """
    for number in (_signal.SIGTERM, _signal.SIGCONT):
        attempt("ending the processes", _kill_all, number)
    attempt("waiting for the processes", _wait_for_children, grace_s)
    attempt("killing the processes", _kill_all, _signal.SIGKILL)
    attempt("waiting for the processes", _wait_for_children, grace_s)
    os.sync()
    attempt("unmounting", _unmount_all)
    os.sync()
    while True:
        attempt("ending the guest", system.reboot, system.RESTART if restarts else system.POWER_OFF)
        time.sleep(1.0)


def _kill_all(number: int) -> None:
    try:
        os.kill(-1, number)
    except ProcessLookupError:
        pass


def _wait_for_children(seconds: float) -> None:
    """Wait until process 1 has no child. Orphans become its children when their parents end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(_LOOK_AGAIN_S)
        except ChildProcessError:
            return


def _unmount_all() -> None:
    """Unmount in reverse order, and make the root read-only."""
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        lines = file.read(_MOST_MOUNTS).decode("utf-8", "surrogateescape").splitlines()
    for line in reversed(lines):
        fields, _, rest = line.partition(" - ")
        target = _unescape(fields.split(" ")[4])
        if target != "/" and rest.split(" ")[0] not in _KEPT:
            system.unmount(target)
    system.mount("", "/", "", system.REMOUNT | system.RDONLY)


def _unescape(text: str) -> str:
    """Return the path of a mount table, where octal numbers stand for spaces and the like."""
    parts = text.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])
