"""Send signals to processes started by the agent."""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH123, PTH208, SIM105

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal costs what enum costs
import os

_MAX_SIGNAL = 64


def signal_name(number: int) -> str:
    for name in dir(_signal):
        if name.startswith("SIG") and name[3] != "_" and getattr(_signal, name) == number:
            return name[3:]
    return str(number)


def signal_number(name: str) -> int:
    """Return the number of "TERM", "SIGTERM" or "15". Raises OSError for other names."""
    number = int(name) if name.isdigit() else getattr(_signal, "SIG" + name.upper().replace("SIG", "", 1), 0)
    if not isinstance(number, int) or not 0 < number <= _MAX_SIGNAL:
        raise OSError(22, f"the guest has no signal {name[:20]!r}")
    return int(number)


def signal_group(pid: int, name: str) -> None:
    """Signal the command's process group and, on a terminal, the foreground process group."""
    try:
        os.killpg(pid, signal_number(name))
    except ProcessLookupError:
        pass  # the process has just ended


def signal_session(session: int, names: tuple[str, ...]) -> bool:
    """Send signals to every process of a session. Return whether a process was found.

    A shell with job control gives each job a separate group, so signals to groups do not suffice.
    """
    found = False
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb", buffering=0) as stat:
                fields = stat.read(1024).rpartition(b")")[2].split()
            if int(fields[3]) != session or fields[0] in (b"Z", b"X"):
                continue
            found = True
            for signal in names:
                os.kill(int(name), signal_number(signal))
        except (OSError, IndexError):
            continue  # the process has just ended
    return found
