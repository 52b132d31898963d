"""Signals to what the agent started."""

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
    """Of "TERM", "SIGTERM" or "15"; OSError if there is no such signal."""
    number = int(name) if name.isdigit() else getattr(_signal, "SIG" + name.upper().replace("SIG", "", 1), 0)
    if not isinstance(number, int) or not 0 < number <= _MAX_SIGNAL:
        raise OSError(22, f"the guest has no signal {name[:20]!r}")
    return int(number)


def signal_group(pid: int, name: str) -> None:
    """To the group of the command, and, on a terminal, to the one that is in front there."""
    try:
        os.killpg(pid, signal_number(name))
    except ProcessLookupError:
        pass  # it ended just now


def signal_session(session: int, names: tuple[str, ...]) -> bool:
    """Send signals to every process of a session; whether there was one.

    A shell with job control gives each job a group of its own, so the groups are no help.
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
            continue  # it ended just now
    return found
