"""The lock of a BOUGH_HOME. One service at a time holds the lock. Any process can read the owner."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import NamedTuple

from bough.errors import Conflict

#: A client that reads the owner holds the lock for a moment.
_ASKED_S = 1.0
_ASK_AGAIN_S = 0.01
_PID_BYTES = 32


class Owner(NamedTuple):
    """The service that holds the lock.

    Attributes:
        pid: None if the pid cannot be read.
        ends: the service has been told to end, and has not ended yet.
    """

    pid: int | None
    ends: bool


class ServiceLock:
    """The lock, held from `take` until `close` or until the process ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> ServiceLock:
        """Take the lock. Raises Conflict: another service holds the lock."""
        # The file is never removed: a second service must lock the same inode.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _ASKED_S
        while not _take_now(descriptor):
            if time.monotonic() > deadline:
                pid = _read_pid(descriptor)
                os.close(descriptor)
                raise Conflict(
                    f"another service (pid {pid or 'unknown'}) serves {path.parent} already",
                    hint="stop it first, or use another BOUGH_HOME",
                )
            time.sleep(_ASK_AGAIN_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        ending_mark(path).unlink(missing_ok=True)
        return cls(path, descriptor)

    def tell_ending(self) -> None:
        """Announce the end of the service, for `read_owner`."""
        with contextlib.suppress(OSError):
            ending_mark(self._path).touch(mode=0o600)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            ending_mark(self._path).unlink(missing_ok=True)
        os.close(self._descriptor)


def ending_mark(lock: Path) -> Path:
    """Return the file that marks an ending service. The file stays if the service is killed meanwhile."""
    return lock.with_name("ending")


def read_owner(path: Path) -> Owner | None:
    """Return the owner of the lock. None: the lock is free, or unreadable for the user."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return Owner(_read_pid(descriptor), ending_mark(path).exists())
    finally:
        os.close(descriptor)
    return None


def _take_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, _PID_BYTES, 0).decode(errors="replace").strip()
    return int(text) if text.isdecimal() else None
