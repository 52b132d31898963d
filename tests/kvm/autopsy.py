"""A report of guests that do not answer: threads of QEMU, registers and timers of vCPUs, counters of KVM."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any

from bough.paths import Home
from tests.torture.processes import kill, qemus, service_pid

_COUNTERS = Path("/sys/kernel/debug/kvm")
_ASK_S = 30.0
_APART_S = 5.0
_COMMANDS = ("info status", "info registers -a", "info lapic", "info pic", "info irq", "x/8i $pc")


def is_fault_of_the_emulation(report: str) -> bool:
    """Return whether a guest's registers are those of the outer machine's kernel.

    QEMU 7.2's emulation of SVM sometimes leaves these in the guest's VMCB: 64-bit code at the instruction
    after VMRUN, with the outer kernel's page table. KVM knows that the guest is not in long mode (EFER is 0),
    and injects #GP forever. A real processor never mixes the two.
    """
    return "CS64" in report and "EFER=0000000000000000" in report


def describe_guests(home: Home) -> str:
    """Return a report of all running QEMUs. Kills the service, which holds QEMU's only QMP connection."""
    kill(service_pid(home))
    found = qemus(home)
    first = {machine: _counters(pid) for machine, pid in found.items()}
    reports = [_describe(home, machine, pid) for machine, pid in found.items()]
    time.sleep(_APART_S)
    for machine, pid in found.items():
        after = _counters(pid)
        changed = {name: after[name] - value for name, value in first[machine].items() if name in after}
        reports.append(f"{machine}: counters since then: { {n: v for n, v in changed.items() if v} }")
        reports.append(f"{machine}: again: {_ask(home, machine, ('info registers -a',))}")
    return "\n".join(reports)


def _describe(home: Home, machine: str, pid: int) -> str:
    lines = [f"---- {machine}: QEMU {pid}", *_threads(pid), f"counters {_counters(pid)}"]
    return "\n".join([*lines, _ask(home, machine, _COMMANDS)])


def _threads(pid: int) -> list[str]:
    told = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            name, ticks = (task / "comm").read_text().strip(), (task / "stat").read_text().split()[13:15]
            stack = " < ".join(line.split()[1] for line in (task / "stack").read_text().splitlines()[:8])
            told.append(f"thread {task.name} {name} {ticks}: {stack}")
    return told


def _counters(pid: int) -> dict[str, int]:
    """Return KVM's counters of one virtual machine."""
    found = {}
    for place in _COUNTERS.glob(f"{pid}-*"):
        for path in place.rglob("*"):
            with contextlib.suppress(OSError, ValueError):
                found[str(path.relative_to(place))] = int(path.read_text())
    return found


def _ask(home: Home, machine: str, commands: tuple[str, ...]) -> str:
    told = []
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ASK_S)
            connection.connect(str(home.machine(machine).qmp_socket))
            with connection.makefile("rw") as stream:
                stream.readline()  # the greeting
                _execute(stream, "qmp_capabilities")
                for command in commands:
                    told.append(f"(qemu) {command}\n{_monitor(stream, command)}")
    except OSError as error:
        told.append(f"QEMU does not answer: {error!r}")
    return "\n".join(told)


def _monitor(stream: Any, command: str) -> str:
    return str(_execute(stream, "human-monitor-command", **{"command-line": command}))


def _execute(stream: Any, command: str, **arguments: Any) -> Any:
    stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    stream.flush()
    while True:
        message = json.loads(stream.readline())
        if "event" not in message:
            return message.get("return", message)
