"""Find the processes, mounts, sockets and half-made files of a BOUGH_HOME on this host."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bough.paths import Home

Found = TypeVar("Found")


@dataclass
class Leftovers:
    """Leftovers that belong to no existing machine."""

    processes: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    sockets: list[str] = field(default_factory=list)
    half_made: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any((self.processes, self.mounts, self.sockets, self.half_made))

    def __str__(self) -> str:
        return "\n".join(
            f"left behind: {kind}: {text}" for kind, texts in vars(self).items() for text in texts
        )


def find_leftovers(home: Home, *, service_may_run: bool = True) -> Leftovers:
    """Find leftovers now. Processes are found by the home's path in their arguments, environment, working
    directory and open files, so that processes of other homes on the host do not count.
    """
    machines = {path.name for path in home.machines.iterdir()} if home.machines.exists() else set()
    networks = {path.stem for path in home.networks.glob("*.json")}
    existing = machines | networks
    found = Leftovers()
    uplinks = 0
    for pid, text in sorted(processes_of(home), key=lambda each: "/passt " in each[1]):
        if any(machine_id in text for machine_id in existing):
            uplinks += "qemu-system" in text
            continue
        if "/passt " in text and uplinks > 0:
            uplinks -= 1  # passt's arguments name no machine; each running machine has at most one passt
            continue
        begins_uplinks = "uplink_filter.py" in text and " up-" not in text and " nu-" not in text
        if service_may_run and ("bough.service" in text or begins_uplinks):
            continue
        found.processes.append(f"{pid} {text[:300]}")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found.mounts = [line for line in mounts if str(home.root) in line]
    if home.runtime.exists():
        found.sockets = [
            str(path)
            for path in home.runtime.rglob("*")
            if not _belongs(path.relative_to(home.runtime).parts, machines, networks)
            and not (service_may_run and path == home.api_socket)
        ]
    if home.incoming.exists():
        found.half_made = [str(path) for path in home.incoming.iterdir()]
    return found


def _belongs(parts: tuple[str, ...], machines: set[str], networks: set[str]) -> bool:
    """Return whether a path below run/ is of a machine or of a network that exists."""
    if parts[0] == "networks":
        return parts[1] in networks if len(parts) > 1 else bool(networks)
    return parts[0] in machines


def wait_nothing_left(look: Callable[[], Found], timeout_s: float = 10) -> Found:
    """Return the leftovers after a while: a child that was just reaped needs a moment to vanish."""
    deadline = time.monotonic() + timeout_s
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def processes_of(home: Home) -> list[tuple[int, str]]:
    """Return the pid and the known texts of each process of the home, except for the tests."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        arguments = _read(process / "cmdline")
        if arguments == "":
            continue  # a kernel thread, or a process that has ended
        # The process name: the filter of an uplink puts its machine's id there (networks/uplink.py).
        seen = [arguments, _read(process / "comm"), _readlink(process / "cwd"), *_open_files(process)]
        environment = _read(process / "environ")
        is_ours = any(str(home.root) in text for text in (*seen, environment))
        # Programs that the tests run have the home in their environment, too.
        is_the_tests = _is_test_runner(arguments) or _begins_uplinks_for_us(process)
        if is_ours and int(process.name) not in _own_family() and not is_the_tests:
            found.append((int(process.name), " ".join(text for text in seen if text)))
    return found


def _own_family() -> set[int]:
    """Return this process and its ancestors."""
    family, pid = set(), "self"
    while pid != "0":
        status = _read(Path("/proc") / pid / "status")
        numbers = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        family.add(int(numbers.get("Pid", "0")))
        pid = numbers.get("PPid", "0").strip()
    return family


def _begins_uplinks_for_us(process: Path) -> bool:
    status = _read(process / "status")
    return "uplink_filter.py" in _read(process / "cmdline") and f"PPid:\t{os.getpid()}\n" in status


def _is_test_runner(arguments: str) -> bool:
    return "pytest" in arguments


def _open_files(process: Path) -> list[str]:
    try:
        return [target for path in (process / "fd").iterdir() if (target := _readlink(path)).startswith("/")]
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _readlink(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
