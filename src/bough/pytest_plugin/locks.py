"""Locks between the workers and runs of one user of this host.

The kernel frees a lock at the end of its process, kill -9 included. The files are below
/tmp/bough-pytest-<uid>/, stay, and have the pid of their last holder:

    <key>.lock      one process prepares that snapshot
    forks.gate      one process at a time waits for slots
    fork-<n>.slot   a machine that lives
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bough.errors import DeadlineExceeded, HostLacks, NoSpace

_LOOK_EVERY_S = 0.1
#: Longest wait for a slot: others debug their forks, or hang.
SLOT_S = 1800.0
#: Machines for each processor: a test waits half of its time.
_FORKS_PER_PROCESSOR = 2
#: Share of the host's memory for machines.
_MEMORY_SHARE = 0.75


def lock_directory() -> Path:
    """Return the directory of the locks, for this user alone. Raises HostLacks."""
    directory = Path(tempfile.gettempdir()) / f"bough-pytest-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or directory.is_symlink():
        raise HostLacks(f"{directory} belongs to another user, or others may write there", hint="remove it")
    return directory


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Run the block while no other process runs a block with this path."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return whether a process runs a block with this path."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def forks_of_host(machine_bytes: int) -> int:
    """Return how many machines of that memory this host runs well at once: at least one."""
    processors = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(_FORKS_PER_PROCESSOR * processors, int(_MEMORY_SHARE * memory // machine_bytes)))


class Slots:
    """Bounds the machines that live at once, over all workers and runs of this user.

    A process that has a slot never waits for another: its session may hold one machine while a test wants a
    second, and so may the other processes. One process at a time collects slots, so two processes cannot
    wait for each other.
    """

    def __init__(self, directory: Path, *, wait_s: float = SLOT_S) -> None:
        self._directory = directory
        self._wait_s = wait_s
        self._held = 0

    @contextlib.contextmanager
    def take(self, count: int, of: int) -> Iterator[float]:
        """Hold `count` of `of` slots, or all of them. Yield the seconds of the wait.

        Raises:
            DeadlineExceeded: other processes hold the slots for too long.
        """
        began = time.monotonic()
        with contextlib.ExitStack() as taken:
            if not self._held:
                with alone(self._directory / "forks.gate"):
                    for _ in range(min(count, of)):
                        taken.callback(os.close, self._next(of))
            self._held += 1
            try:
                yield time.monotonic() - began
            finally:
                self._held -= 1

    def _next(self, of: int) -> int:
        ends = time.monotonic() + self._wait_s
        while True:
            for number in range(of):
                descriptor = _open(self._directory / f"fork-{number}.slot")
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _sign(descriptor)
                    return descriptor
                os.close(descriptor)
            if time.monotonic() > ends:
                raise self._busy(of)
            time.sleep(_LOOK_EVERY_S)

    def _busy(self, of: int) -> DeadlineExceeded:
        files = [self._directory / f"fork-{number}.slot" for number in range(of)]
        pids = sorted({file.read_text().strip() for file in files})
        return DeadlineExceeded(
            f"no fork could be made within {self._wait_s:g} s: {of} machines live, as many as this host runs "
            "well",
            hint=f"the processes {', '.join(pids)} hold them; --bough-forks=N allows more",
        )


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise NoSpace(f"cannot create the lock {path}: {error.strerror}") from error


def _sign(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
