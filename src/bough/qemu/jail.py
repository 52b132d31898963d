"""The jail of a QEMU process: everything outside the jail is out of reach, as far as the host allows.

The jail is the boundary around a guest, not QEMU: QEMU promises no isolation of an emulated guest (TCG).
`Jail` lists the abilities of this host (`probe_jail` tries them). `render_jail` wraps a command line.
`report_jail` names the parts in force for each machine, and the effect of each missing part.

From outside in:

    bubblewrap    own mount, process, network, ipc, uts and cgroup namespaces. The root contains read-only
                  system directories, the machine's disks and their backing files. An ordinary user's
                  jail also has a user namespace, which makes the other namespaces possible.
    setpriv       root service only: a user that owns nothing else on the host. The user has no
                  capability and cannot gain one.
    --seccomp     a system call filter from the first instruction: no tracing, namespaces, mounts
                  (see syscalls.py)
    -sandbox on   QEMU's own system call filter: no new program, no other user, no obsolete call
    rlimits       no core file, 1024 open files (set by the waiter, see waiter.sh)
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: These contain programs and libraries of the distribution, and no user's data.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
#: QEMU reads the time zone for a real-time clock in local time.
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime")

#: Capabilities that setpriv needs to drop all capabilities.
TO_DROP_ALL = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")

#: A range of user ids that no distribution assigns (systemd's UIDS-GIDS.md: "unused"), for the processes of a
#: root service.
FIRST_UID = 0x7000_0000
LAST_UID = 0x7FFF_FFFF


@dataclass(frozen=True)
class Jail:
    """The abilities of this host; JSON-able. The default is none.

    Attributes:
        bwrap: path of bubblewrap, if bubblewrap works here.
        setpriv: path of setpriv, for a root service.
        own_proc: a /proc of the jail alone. If the mount fails, /proc has only the process's own descriptors.
        system_calls: QEMU can filter its own system calls.
        groups: directories of cgroup hierarchies that can hold a group per machine.
        refused: part -> the host's reason for refusing it.
    """

    bwrap: str | None = None
    setpriv: str | None = None
    own_proc: bool = True
    system_calls: bool = False
    groups: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Jail:
        """Return the jail of `to_dict()`, after JSON. Raises TypeError, KeyError for other data."""
        fields = {**data, "groups": tuple(data["groups"])}
        fields["refused"] = tuple((part, why) for part, why in data["refused"])
        return cls(**fields)


@dataclass(frozen=True)
class Sight:
    """The host files visible to a process, and the devices usable by the process.

    Attributes:
        placed: writable directories, seen by the process at another path: path on the host, path inside.
    """

    program: str
    writable: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    network: bool = False
    placed: tuple[tuple[str, str], ...] = ()


def machine_uid(machine_id: str, taken: Collection[int] = ()) -> int:
    """Return the user id for a machine's processes under a root service.

    The id never changes: the machine's disks belong to the user of that id.
    """
    span = LAST_UID - FIRST_UID + 1
    start = int.from_bytes(hashlib.sha256(machine_id.encode()).digest()[:8], "big") % span
    return next(uid for step in range(span) if (uid := FIRST_UID + (start + step) % span) not in taken)


def render_jail(
    jail: Jail,
    sight: Sight,
    argv: Sequence[str],
    *,
    uid: int | None = None,
    filter_descriptor: int | None = None,
) -> list[str]:
    """Wrap `argv` in the parts of `jail`. Pure, except for a look at /bin and /lib.

    Args:
        uid: run as this user; needs a root service.
        filter_descriptor: number in bubblewrap of the outer filter (see syscalls.py).
    """
    inner = list(argv)
    if jail.setpriv and uid is not None:
        inner = [*render_setpriv(jail.setpriv, uid, sight.devices), *argv]
    if jail.bwrap is None:
        return inner
    return [
        jail.bwrap,
        *_namespaces(jail, sight, as_root=uid is not None),
        *_root_directory(jail, sight),
        *("--chdir", "/", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--new-session"),
        *_capabilities(jail, as_root=uid is not None),
        *(("--seccomp", str(filter_descriptor)) if filter_descriptor is not None else ()),
        "--",
        *inner,
    ]


def render_setpriv(
    program: str, uid: int, devices: Sequence[str] = (), *, gid: int | None = None
) -> list[str]:
    """Return the command that switches to the user `uid` and a group (default: the same number) for good."""
    groups = sorted({Path(device).stat().st_gid for device in devices} - {0})
    return [
        program,
        f"--reuid={uid}",
        f"--regid={uid if gid is None else gid}",
        f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--no-new-privs",
    ]


def _namespaces(jail: Jail, sight: Sight, *, as_root: bool) -> list[str]:
    # Root needs no user namespace and must not have a user namespace: root's id 0 would be mapped there.
    user = [] if as_root else ["--unshare-user"]
    network = [] if sight.network else ["--unshare-net"]
    # Otherwise bubblewrap stays as the first process: see _proc.
    first = [] if jail.own_proc else ["--as-pid-1"]
    others = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    return [*user, *others, *first, *network]


def _root_directory(jail: Jail, sight: Sight) -> list[str]:
    words = render_system()
    words += _proc(jail)
    words += ["--dev", "/dev", "--tmpfs", "/tmp"]
    binds = [("--ro-bind-try", path, path) for path in (*SYSTEM_FILES, *_program_directory(sight.program))]
    binds += [("--dev-bind", path, path) for path in sight.devices]
    binds += [("--ro-bind", path, path) for path in dict.fromkeys(sight.read_only)]
    binds += [("--bind", path, path) for path in sight.writable]
    binds += [("--bind", path, inside) for path, inside in sight.placed]
    for directory in _directories_above([inside for _, _, inside in binds]):
        # bubblewrap would create these for root alone, but the program may run as another user.
        words += ["--perms", "0755", "--dir", directory]
    words += [word for bind in binds for word in bind]
    # bubblewrap creates directories in memory, owned by the caller: the process could write there.
    return [*words, "--remount-ro", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/"]


def _proc(jail: Jail) -> list[str]:
    """Provide /proc: QEMU opens its guest's memory as /proc/self/fd/N. In a container an ordinary user often
    may not mount a /proc. The outer /proc then shows the descriptors of bubblewrap, which becomes QEMU.
    """
    return ["--proc", "/proc"] if jail.own_proc else ["--ro-bind", "/proc/self/fd", "/proc/self/fd"]


def render_system() -> list[str]:
    """Mount the distribution's programs and libraries read-only."""
    words: list[str] = []
    for path in SYSTEM:
        if Path(path).is_symlink():
            words += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).is_dir():
            words += ["--ro-bind", path, path]
    return words


def _directories_above(paths: Sequence[str]) -> list[str]:
    above = {str(parent) for path in paths for parent in Path(path).parents}
    return sorted(above - {"/", "/dev"} - set(SYSTEM))


def _program_directory(program: str) -> list[str]:
    """Return the tree of a QEMU outside of the distribution: /opt/qemu for /opt/qemu/bin/qemu-
    system-x86_64.
    """
    real = Path(program).resolve()
    if any(real.is_relative_to(system) for system in SYSTEM):
        return []
    return [str(real.parent.parent)]


def _capabilities(jail: Jail, *, as_root: bool) -> list[str]:
    kept = TO_DROP_ALL if as_root and jail.setpriv else ()
    return ["--cap-drop", "ALL", *(word for name in kept for word in ("--cap-add", name))]


@dataclass(frozen=True)
class JailPart:
    """A part of a jail. `detail` is the effect of the part, or the effect of its absence."""

    name: str
    had: bool
    detail: str


@dataclass(frozen=True)
class JailReport:
    parts: tuple[JailPart, ...]

    @property
    def complete(self) -> bool:
        return all(part.had for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        return {"complete": self.complete, "parts": [dataclasses.asdict(part) for part in self.parts]}


#: name -> (effect, consequence of its absence)
_MEANING = {
    "files": (
        "sees only system directories, read-only, and its own machine's files",
        "can read every file that its user can read, and write what its user can write",
    ),
    "processes": ("sees no process but its own", "sees the host's processes, and can signal its user's"),
    "network": (
        "has no network of its own; its NIC is a socket to a process outside",
        "can open connections in the host's network, its loopback included",
    ),
    "user": (
        "has no capability, and runs as a user that owns nothing else",
        "runs as the user who started bough, with what that user may do",
    ),
    "system calls": (
        "cannot start programs or use obsolete system calls",
        "can use every system call; starting a program is not refused",
    ),
    "resources": (
        "is in a control group of its own",
        "is in no control group of its own: its memory is limited coarsely, its processor time not at all",
    ),
}


def report_jail(jail: Jail, *, uid: int | None, network: bool = False) -> JailReport:
    """Report the parts in force, and the effect of each missing part.

    Args:
        uid: user of the process under a root service.
        network: the process shares the host's network, for QEMU's user network.
    """
    confined = jail.bwrap is not None
    had = {
        "files": confined,
        "processes": confined,
        "network": confined and not network,
        "user": _has_own_user(jail, uid),
        "system calls": jail.system_calls,
        "resources": bool(jail.groups),
    }
    refused = dict(jail.refused)
    if confined and network:
        refused["network"] = "QEMU's user network needs it; install passt"
    return JailReport(tuple(_part(name, had[name], refused.get(name)) for name in _MEANING))


def _has_own_user(jail: Jail, uid: int | None) -> bool:
    if os.geteuid() == 0:
        return jail.setpriv is not None and uid is not None
    # An ordinary user cannot switch to another user. The process has no capability in its user namespace, and
    # no file of its user is in reach.
    return jail.bwrap is not None


def _part(name: str, had: bool, why: str | None) -> JailPart:
    present, absent = _MEANING[name]
    return JailPart(name, had, present if had else absent + (f" ({why})" if why else ""))
