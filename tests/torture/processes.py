"""The processes of a home, as targets of a kill."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from bough.paths import Home


def service_pid(home: Home) -> int:
    try:
        return int(home.lock.read_text())
    except (OSError, ValueError):
        return 0


def kill(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        if pid > 0:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def qemus(home: Home) -> dict[str, int]:
    """Return machine id -> pid of its QEMU, for running machines of this home."""
    found = {}
    mark = f"{home.machines}/".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            arguments = (process / "cmdline").read_bytes()
            name = (process / "comm").read_text()
            if mark in arguments and name.startswith("qemu-system") and _lives(process):
                found[arguments.split(mark, 1)[1][:12].decode()] = int(process.name)
    return found


def _lives(process: Path) -> bool:
    return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
