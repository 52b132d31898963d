"""System calls that Python's os module lacks: mount, umount, reboot.

The C library's functions are called without ctypes, which costs an emulated guest 50 ms to load.
"""

from __future__ import annotations

import _ctypes
import os

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND = 1, 2, 4, 8, 32, 4096
POWER_OFF, RESTART, NO_CTRL_ALT_DEL = 0x4321FEDC, 0x01234567, 0
_DETACH = 2


def _call(name: str, *arguments: object) -> int:
    function = _ctypes.dlsym(_ctypes.dlopen(None, 0), name)  # type: ignore[arg-type]
    result: int = _ctypes.call_function(function, arguments)
    return result


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> bool:
    """Mount a file system (mount(2)). Return whether it worked."""
    words = (os.fsencode(source), os.fsencode(target), kind.encode())
    return _call("mount", *words, flags, data.encode()) == 0


def unmount(target: str) -> bool:
    """Unmount a file system. One that is in use is detached."""
    path = os.fsencode(target)
    return _call("umount2", path, 0) == 0 or _call("umount2", path, _DETACH) == 0


def reboot(command: int) -> None:
    """End the guest at once, or set what Ctrl-Alt-Delete does (reboot(2))."""
    _call("reboot", command)
