"""A process of the host, named so that it cannot be mistaken for a later one of the same number."""

from __future__ import annotations

import asyncio
import contextlib
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
    """`start` is field 22 of /proc/PID/stat: ticks of the clock from the host's boot to its start."""

    number: int
    start: int

    @classmethod
    def of(cls, number: int) -> Pid | None:
        """None when there is no such process, or only what is left of a dead one (a zombie)."""
        found = _read_stat(number)
        return None if found is None or found.state in "ZX" else cls(number, found.start)

    def is_alive(self) -> bool:
        return Pid.of(self.number) == self

    def kill(self) -> None:
        """SIGKILL; nothing happens when it is gone."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM; nothing happens when it is gone."""
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        with self._descriptor() as descriptor, contextlib.suppress(ProcessLookupError):
            if descriptor is not None:
                signal.pidfd_send_signal(descriptor, number)

    async def wait(self) -> None:
        """Until it has ended; it need not be a child. Safe to cancel."""
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
        """Those that live now."""
        numbers = _children_of(self.number)
        return [pid for number in numbers if (pid := Pid.of(number)) is not None] if self.is_alive() else []

    def innermost(self) -> Pid:
        """Down the line of only children: from a wrapper to the program that it wraps."""
        pid = self
        while len(children := pid.children()) == 1:
            pid = children[0]
        return pid

    def stand_back(self, back: bool = True) -> None:
        """Run only when nothing else of this host wants to, or again as any other (sched(7), SCHED_IDLE).
        Nothing happens where there would be no way back."""
        policy = os.SCHED_IDLE if back else os.SCHED_OTHER
        if back and not can_stand_back():
            return
        with contextlib.suppress(OSError):  # it is gone, or this host does not let us
            for thread in Path(f"/proc/{self.number}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
        # Each of our processes leads a session, so the kernel may weigh them as groups (sched(7), autogroup).
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.number}/autogroup").write_text("19" if back else "0")

    def used_s(self) -> float | None:
        """Processor time of all of its threads so far; None when it is gone."""
        found = _read_stat(self.number)
        return found.used_s if found is not None and found.start == self.start else None

    def wants_processor(self) -> bool:
        """Whether a thread of it runs, or would if it had its turn. False when it is gone."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{self.number}/task").iterdir():
                found = _read_stat(int(thread.name))
                if found is not None and found.state == "R":
                    return True
        return False

    @contextlib.contextmanager
    def _descriptor(self) -> Iterator[int | None]:
        """A pidfd, or None when it is gone."""
        try:
            descriptor = os.pidfd_open(self.number)
        except ProcessLookupError:
            yield None
            return
        try:
            # Only now can the number not be given to another process.
            yield descriptor if self.is_alive() else None
        finally:
            os.close(descriptor)


class Wrapped:
    """The program below its wrappers (bubblewrap, a waiter), as `ProgressWatch` looks at it.

    Attributes:
        last_s: its processor time when it was looked at last.
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
    """Whether a thread may come back from SCHED_IDLE: an ordinary user's may as a rule not (RLIMIT_NICE)."""
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
    """Changes when the host boots."""
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
    # The second field is the program's name in parentheses, and may contain any byte.
    fields = text[text.rindex(b")") + 2 :].split()
    used_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return _Stat(fields[0].decode(), int(fields[1]), int(fields[19]), used_s)


def _children_of(number: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{number}/task").iterdir():
            found += map(int, (thread / "children").read_bytes().split())
    except (FileNotFoundError, ProcessLookupError):
        # It is gone, or the kernel has no such list (CONFIG_PROC_CHILDREN): look at all processes.
        return [child for child in _all_numbers() if _parent(child) == number]
    return found


def _parent(number: int) -> int | None:
    found = _read_stat(number)
    return None if found is None else found.parent


def _all_numbers() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
