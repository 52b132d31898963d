"""The outer system call filter: a seccomp program for bubblewrap.

QEMU's -sandbox starts late and covers QEMU alone. In a user namespace the process that reaps QEMU has the
same user, and a tracer of the reaper would escape QEMU's filter. The outer filter covers the whole jail from
the first instruction. The filter refuses calls needed neither by QEMU nor by QEMU's start: reading and
tracing other processes, namespaces, mounts, and kernel interfaces known from escapes.

seccomp(2), classic BPF instructions of linux/filter.h; refused calls fail with EPERM.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence

#: name -> number on x86_64, number in the common table (aarch64, riscv64); None: not there.
REFUSED: Mapping[str, tuple[int, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "personality": (135, 92),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "vhangup": (153, 58),
}

#: x86_64: calls denied to a running QEMU by QEMU's -sandbox: other programs, other users, other scheduling,
#: obsolete calls. For forks from a process image: no QEMU starts there and installs QEMU's filter.
SANDBOXED: Mapping[str, int] = {
    "fork": 57,
    "vfork": 58,
    "execve": 59,
    "execveat": 322,
    "setuid": 105,
    "setgid": 106,
    "setpgid": 109,
    "setsid": 112,
    "setreuid": 113,
    "setregid": 114,
    "setgroups": 116,
    "setresuid": 117,
    "setresgid": 119,
    "setfsuid": 122,
    "setfsgid": 123,
    "setpriority": 141,
    "sched_setparam": 142,
    "sched_setscheduler": 144,
    "sched_setattr": 314,
    "sched_setaffinity": 203,
    "ioprio_set": 251,
    "ustat": 136,
    "sysfs": 139,
    "_sysctl": 156,
    "create_module": 174,
    "get_kernel_syms": 177,
    "query_module": 178,
    "nfsservctl": 180,
    "getpmsg": 181,
    "putpmsg": 182,
    "afs_syscall": 183,
    "tuxcall": 184,
    "security": 185,
    "vserver": 236,
}

#: machine (uname) -> name for filters (linux/audit.h), column in REFUSED, clone and clone3.
_MACHINES = {
    "x86_64": (0xC000003E, 0, 56),
    "aarch64": (0xC00000B7, 1, 220),
    "riscv64": (0xC00000F3, 1, 220),
}
_CLONE3 = 435
#: CLONE_NEWTIME belongs to clone3 only.
_NEW_NAMESPACES = 0x7E020000
_CLONE_THREAD = 0x10000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_X32 = 0x40000000


def render_filter(machine: str | None = None) -> bytes | None:
    """Return the program for this host or for `machine`; None if the call numbers are unknown."""
    known = _MACHINES.get(machine or os.uname().machine)
    if known is None:
        return None
    name, column, clone = known
    numbers = sorted(number for row in REFUSED.values() if (number := row[column]) is not None)
    # Forbid new namespaces.
    check = [(_ANY_BIT, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, _ERROR | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return _render(name, clone, check, numbers)


def render_sandbox() -> bytes:
    """Return the program of SANDBOXED, for x86_64."""
    name, _, clone = _MACHINES["x86_64"]
    # Allow new threads.
    check = [(_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _ERROR | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return _render(name, clone, check, sorted(SANDBOXED.values()))


def _render(name: int, clone: int, check: list[tuple[int, int, int, int]], numbers: Sequence[int]) -> bytes:
    """Return the program; `check` has three steps on the flags of a clone."""
    steps = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, name),
        (_RETURN, 0, 0, _ERROR | _EPERM),  # calls by another processor's numbers (32 bit)
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _ERROR | _ENOSYS),
        # Without clone3, whose flags a filter cannot see, the C library uses clone.
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERROR | _ENOSYS),
        (_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *check,
    ]
    for number in numbers:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | _EPERM)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def open_filter() -> int | None:
    """Return a descriptor of the program, to be closed by the caller; None: no program."""
    program = render_filter()
    if program is None:
        return None
    descriptor = os.memfd_create("bough-seccomp")
    os.write(descriptor, program)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
