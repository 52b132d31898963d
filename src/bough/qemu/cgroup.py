"""A control group per machine: a fair share of the processors, and limits.

    <hierarchy>/bough/<machine id>/        version 1: one in each of the hierarchies memory, cpu and pids
    <a delegated group>/bough/<machine id>/  version 2: below the nearest group that bough may write to

The waiter moves QEMU into the groups before QEMU's start and removes the groups after QEMU's end (see
waiter.sh).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from bough.errors import HostLacks
from bough.qemu.plan import Limits

_MOUNT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("memory", "cpu", "pids")
#: Threads of QEMU: one per vCPU, and a pool of at most 64 for the disks.
_MAX_THREADS = 2048
_CPU_PERIOD_US = 100_000
#: The first file that exists: (lowest priority, as created). cpu.idle needs Linux 5.15.
_SHARES = {"cpu.idle": ("1", "0"), "cpu.weight": ("1", "100"), "cpu.shares": ("2", "1024")}
_MEMORY_FILES = ("memory.max", "memory.limit_in_bytes")
_CPU_FILES = ("cpu.max", "cpu.cfs_quota_us")


def find_groups() -> tuple[str, ...]:
    """Return the directories in which bough may create a group per machine; empty if no such directory
    exists.
    """
    if (_MOUNT / "cgroup.controllers").exists():
        base = _find_delegated()
        return (str(base),) if base is not None and _prepare_v2(base) else ()
    bases = [_MOUNT / controller / "bough" for controller in _CONTROLLERS]
    return tuple(str(base) for base in bases if _can_make(base))


def create_groups(bases: tuple[str, ...], machine_id: str, limits: Limits) -> list[str]:
    """Create the machine's groups and set their limits.

    Raises:
        HostLacks: a group or a requested limit is not available.
    """
    made, set_ = [], set()
    for base in bases:
        group = Path(base) / machine_id
        try:
            group.mkdir(exist_ok=True)
            set_ |= {file for file, _ in _settings(group, limits)}
            for file, value in _settings(group, limits):
                (group / file).write_text(value)
        except OSError as error:
            raise HostLacks(f"cannot set the limits of a machine at {group}: {error.strerror}") from error
        made.append(str(group))
    if limits.cpu_percent is not None and not set_ & set(_CPU_FILES):
        remove_groups(bases, machine_id)
        raise HostLacks(
            "a machine's processor time cannot be limited here: no control group 'cpu' is given to bough",
            hint="leave limits.cpu out, or run the service as root or as a systemd unit with Delegate=yes",
        )
    return made


def join_groups(pid: int, groups: Sequence[str]) -> None:
    """Move a process into a machine's groups, as far as they exist."""
    for group in groups:
        with contextlib.suppress(OSError):  # the process or the machine has ended
            Path(group, "cgroup.procs").write_text(str(pid))


def stand_back(pid: int, back: bool) -> bool:
    """Give a machine's group only left-over processor time, or give the share back.

    Return False if `pid` is in no machine's group with such a control. Then the threads can get a lower
    priority (Pid.stand_back); inside a group, the priority would only count among the group's threads.
    """
    for line in _read_memberships(pid):
        _, controllers, path = line.split(":", 2)
        mount = _MOUNT if controllers == "" else _MOUNT / controllers
        group = mount / path.lstrip("/")
        if (controllers == "" or "cpu" in controllers.split(",")) and group.parent.name == "bough":
            return share_last(group, back)
    return False


def share_last(group: Path, back: bool) -> bool:
    """Set the priority of a group; return False if the controller has no such control."""
    for file, (last, usual) in _SHARES.items():
        if (group / file).exists():
            with contextlib.suppress(OSError):  # the group is gone
                (group / file).write_text(last if back else usual)
            return True
    return False


def _read_memberships(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return []


def limits_memory(groups: list[str]) -> bool:
    """Return whether one of a machine's `groups` counts memory."""
    return any((Path(group) / file).exists() for group in groups for file in _MEMORY_FILES)


def remove_groups(bases: tuple[str, ...], machine_id: str) -> None:
    """Remove the groups of a machine whose waiter was killed."""
    for base in bases:
        with contextlib.suppress(OSError):
            (Path(base) / machine_id).rmdir()


def _settings(group: Path, limits: Limits) -> list[tuple[str, str]]:
    """Return the files of `group` and their values; the file names tell version and controller."""
    found = []
    if (group / "pids.max").exists():
        found.append(("pids.max", str(_MAX_THREADS)))
    if limits.process_memory_bytes is not None:
        for name in _MEMORY_FILES:
            if (group / name).exists():
                found.append((name, str(limits.process_memory_bytes)))
    if limits.cpu_percent is not None:
        quota = limits.cpu_percent * _CPU_PERIOD_US // 100
        if (group / "cpu.max").exists():
            found.append(("cpu.max", f"{quota} {_CPU_PERIOD_US}"))
        elif (group / "cpu.cfs_quota_us").exists():
            found += [("cpu.cfs_period_us", str(_CPU_PERIOD_US)), ("cpu.cfs_quota_us", str(quota))]
    return found


def _can_make(base: Path) -> bool:
    try:
        base.mkdir(exist_ok=True)
    except OSError:
        return False
    return os.access(base, os.W_OK)


def _find_delegated() -> Path | None:
    """Return the nearest delegated group above the service's own group."""
    own = next((line[3:] for line in _read_memberships(os.getpid()) if line.startswith("0::")), None)
    if own is None:
        return None
    above = (_MOUNT / own.strip("/")).parents if own != "/" else [_MOUNT]
    for group in above:
        if not group.is_relative_to(_MOUNT):
            break
        if os.access(group, os.W_OK) and os.access(group / "cgroup.procs", os.W_OK):
            return group / "bough"
    return None


def _prepare_v2(base: Path) -> bool:
    """Create `base` and enable the controllers for its groups."""
    if not _can_make(base):
        return False
    for group in (base.parent, base):
        for controller in _CONTROLLERS:
            # Groups work without a controller that is missing or not passed on by the parent group.
            with contextlib.suppress(OSError):
                (group / "cgroup.subtree_control").write_text(f"+{controller}")
    return bool((base / "cgroup.subtree_control").read_text().strip())
