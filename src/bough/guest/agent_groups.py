"""Control groups of the agent in a guest without systemd.

An init may end all processes of a service's group when the service stops (OpenRC's rc_cgroup_cleanup). So the
keeper and all commands run in a group of bough's own. systemd leaves them alone (KillMode=process).
"""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH102, PTH112, PTH123, SIM105

from __future__ import annotations

import os

_OWN = "bough"


def leave_service(root: str = "") -> list[str]:
    """Move this process out of the groups of a service. Return the new groups.

    Args:
        root: directory of a guest's files, for tests.
    """
    if os.path.isdir(root + "/run/systemd/system"):
        return []
    moved = []
    for number, controllers, path in _groups(root):
        if path == "/":
            continue
        for place in _places(root, number, controllers):
            if os.path.isdir(place) and _move(f"{place}/{_OWN}"):
                moved.append(f"{place}/{_OWN}")
    return moved


def _groups(root: str) -> list[list[str]]:
    try:
        with open(root + "/proc/self/cgroup", "rb", buffering=0) as file:
            lines = file.read(65536).decode("utf-8", "replace").splitlines()
    except OSError:
        return []  # a kernel without control groups
    return [parts for parts in (line.split(":", 2) for line in lines) if len(parts) == 3]


def _places(root: str, number: str, controllers: str) -> list[str]:
    """Return where the hierarchy may be mounted."""
    base = root + "/sys/fs/cgroup"
    if number == "0":
        return [base + "/unified"] if os.path.isdir(base + "/unified") else [base]
    return [f"{base}/{controllers.replace('name=', '', 1)}"]


def _move(group: str) -> bool:
    try:
        os.mkdir(group)
    except OSError:
        pass  # there is one, or the next step tells
    try:
        with open(group + "/cgroup.procs", "wb", buffering=0) as file:
            file.write(b"0")
    except OSError:
        return False  # for example a cpuset without processors
    return True
