"""A process of the host, identified by pid and start time: a pid alone can be reused."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Pid:
    """A process. `start` is field 22 of /proc/PID/stat: clock ticks from the host's boot to the process's
    start.
    """

    number: int
    start: int

    @classmethod
    def of(cls, number: int) -> Pid | None:
        """Return the process with the number; None if no process has the number, or only a zombie."""
        found = _read_stat(number)
        return None if found is None or found.state in "ZX" else cls(number, found.start)

    def is_alive(self) -> bool:
        return Pid.of(self.number) == self

    def kill(self) -> None:
        """Send SIGKILL, if the process still exists."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM, if the process still exists."""
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        with self._descriptor() as descriptor, contextlib.suppress(ProcessLookupError):
            if descriptor is not None:
                signal.pidfd_send_signal(descriptor, number)

    async def wait(self) -> None:
        """Wait until the process has ended, child or not. Safe to cancel."""
        with self._descriptor() as descriptor:
            if descriptor is None:
                return
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            loop.add_reader(descriptor, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(descriptor)

    def children(self) -> list[Pid]:
        """Return the living children."""
        numbers = _children_of(self.number)
        return [pid for number in numbers if (pid := Pid.of(number)) is not None] if self.is_alive() else []

    def innermost(self) -> Pid:
        """Follow only children: from a wrapper to the wrapped program."""
        pid = self
        while len(children := pid.children()) == 1:
            pid = children[0]
        return pid

    def stand_back(self, back: bool = True) -> None:
        """Give the process idle priority (sched(7), SCHED_IDLE), or normal priority again. Do nothing if the
        priority could not be restored later.
        """
        policy = os.SCHED_IDLE if back else os.SCHED_OTHER
        if back and not can_stand_back():
            return
        with contextlib.suppress(OSError):  # the process is gone, or the host forbids it
            for thread in Path(f"/proc/{self.number}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
        # Each process of bough leads a session, so the kernel may weigh them as groups (sched(7), autogroup).
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.number}/autogroup").write_text("19" if back else "0")

    def used_s(self) -> float | None:
        """Return the processor time of all threads in seconds; None if the process is gone."""
        found = _read_stat(self.number)
        return found.used_s if found is not None and found.start == self.start else None

    def wants_processor(self) -> bool:
        """Return whether a thread runs or waits for a processor. False if the process is gone."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{self.number}/task").iterdir():
                found = _read_stat(int(thread.name))
                if found is not None and found.state == "R":
                    return True
        return False

    @contextlib.contextmanager
    def _descriptor(self) -> Iterator[int | None]:
        """Return a pidfd, or None if the process is gone."""
        descriptor = _open_pidfd(self.number)
        if descriptor is None:
            yield None
            return
        try:
            # From here on the number cannot be reused.
            yield descriptor if self.is_alive() else None
        finally:
            os.close(descriptor)


def _open_pidfd(number: int) -> int | None:
    """Return a pidfd, or None if the process is gone.

    Linux before 6.16 says EINVAL instead of ESRCH while the process is being reaped. Linux says EINVAL or
    ENOENT if a thread of another process has got the number.
    """
    try:
        return os.pidfd_open(number)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            return None
        raise


class Wrapped:
    """The program inside its wrappers (bubblewrap, a waiter), for `ProgressWatch`.

    Attributes:
        last_s: its processor time at the last look.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self.last_s = 0.0

    def _pid(self) -> Pid | None:
        top = Pid.of(self._top)
        return top.innermost() if top is not None else None

    def used_s(self) -> float | None:
        used_s = pid.used_s() if (pid := self._pid()) is not None else None
        self.last_s = self.last_s if used_s is None else used_s
        return used_s

    def wants_processor(self) -> bool:
        return (pid := self._pid()) is not None and pid.wants_processor()


@lru_cache(maxsize=1)
def can_stand_back() -> bool:
    """Return whether a thread may leave SCHED_IDLE; an ordinary user's thread usually may not
    (RLIMIT_NICE).
    """
    came_back = []

    def try_it() -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            came_back.append(True)

    thread = threading.Thread(target=try_it, name="standing back")
    thread.start()
    thread.join()
    return bool(came_back)


def read_boot_id() -> str:
    """Return the host's boot id, which changes with each boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    start: int
    used_s: float


def _read_stat(number: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{number}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses and can contain any byte.
    fields = text[text.rindex(b")") + 2 :].split()
    used_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return _Stat(fields[0].decode(), int(fields[1]), int(fields[19]), used_s)


def _children_of(number: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{number}/task").iterdir():
            found += map(int, (thread / "children").read_bytes().split())
    except (FileNotFoundError, ProcessLookupError):
        # The process is gone, or the kernel lacks the list (CONFIG_PROC_CHILDREN): look at all processes.
        return [child for child in _all_numbers() if _parent(child) == number]
    return found


def _parent(number: int) -> int | None:
    found = _read_stat(number)
    return None if found is None else found.parent


def _all_numbers() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
