"""Extend the seccomp filter of QEMU's jail: a file server must not create set-user-id files.

A guest may ask for any mode. A set-user-id program written by a guest would give its caller the rights of the
host's user. The nosuid option of a bind mount holds only in the jail. So the filter refuses a system call
that sets one of these mode bits.
"""

from __future__ import annotations

import os
import struct

from bough.qemu.syscalls import render_filter

_SET_ID_BITS = 0o6000
#: machine -> {call: the argument that holds the mode}.
_MODE_ARGUMENT: dict[str, dict[int, int]] = {
    "x86_64": {
        2: 2,  # open
        85: 1,  # creat
        257: 3,  # openat
        83: 1,  # mkdir
        258: 2,  # mkdirat
        90: 1,  # chmod
        91: 1,  # fchmod
        268: 2,  # fchmodat
        452: 2,  # fchmodat2
    },
    "common": {56: 3, 34: 2, 52: 1, 53: 2, 452: 2},  # openat, mkdirat, fchmod, fchmodat, fchmodat2
}
#: mknod, mknodat, and openat2, whose mode a filter cannot see: no file server needs them.
_NEVER: dict[str, tuple[int, ...]] = {"x86_64": (133, 259, 437), "common": (33, 437)}

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ARGUMENTS = 16
_ALLOW, _EPERM = 0x7FFF0000, 0x00050000 | 1


def render_mode_filter(machine: str | None = None) -> bytes | None:
    """Return the outer filter of QEMU's jail with the checks for file servers.

    The checks come before the final "allow". None: the host's architecture is unknown.
    """
    machine = machine or os.uname().machine
    program = render_filter(machine)
    if program is None:
        return None
    column = machine if machine in _MODE_ARGUMENT else "common"
    steps: list[tuple[int, int, int, int]] = []
    for number in _NEVER[column]:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    for number, argument in _MODE_ARGUMENT[column].items():
        steps += [
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
            (_ANY_BIT, 0, 1, _SET_ID_BITS),
            (_RETURN, 0, 0, _EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ]
    size = struct.calcsize("=HBBI")
    ours = b"".join(struct.pack("=HBBI", *step) for step in steps)
    # The last step of QEMU's filter allows every remaining call.
    return program[:-size] + ours + program[-size:]
