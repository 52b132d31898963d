"""The lock of a BOUGH_HOME: one service at a time holds it, and anybody can ask which one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from bough.errors import Conflict

#: What the service that holds the lock is doing.
STARTING, SERVING, ENDING = "starting", "serving", "ending"
#: A client that asks holds the lock for a moment.
_ASKED_S = 1.0
_ASK_AGAIN_S = 0.01
_LINE_BYTES = 64


@dataclass(frozen=True)
class Owner:
    """The service that holds the lock; None for what it has not written (an earlier version, or not yet)."""

    pid: int | None
    doing: str | None


class ServiceLock:
    """Held from `take` until `close`, or until the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> ServiceLock:
        """Raises Conflict: another service holds the lock."""
        # The file is never removed: a second service must lock the same inode.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _ASKED_S
        while not _is_locked_now(descriptor):
            if time.monotonic() > deadline:
                owner = _read(descriptor)
                os.close(descriptor)
                raise Conflict(
                    f"another service (pid {owner.pid or 'unknown'}) serves {path.parent} already",
                    hint="stop it first, or use another BOUGH_HOME",
                )
            time.sleep(_ASK_AGAIN_S)
        lock = cls(descriptor)
        lock.tell(STARTING)
        return lock

    def tell(self, doing: str) -> None:
        """Write down what this service is doing. A full disk does not keep it from serving."""
        with contextlib.suppress(OSError):
            line = f"{os.getpid()} {doing}\n".encode()
            os.pwrite(self._descriptor, line, 0)
            os.ftruncate(self._descriptor, len(line))

    def close(self) -> None:
        os.close(self._descriptor)


def read_owner(path: Path) -> Owner | None:
    """Return who holds the lock; None: nobody does, or this user may not ask."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor)
    finally:
        os.close(descriptor)
    return None


def _is_locked_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(descriptor: int) -> Owner:
    words = os.pread(descriptor, _LINE_BYTES, 0).decode(errors="replace").split()
    pid = int(words[0]) if words and words[0].isdecimal() else None
    return Owner(pid, words[1] if len(words) > 1 else None)
