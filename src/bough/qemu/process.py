"""Life of a QEMU process: watch, adoption by a later service, end. process_start.py starts it.

    service ── sh (the waiter; a session of its own) ──┬─ sh ─ bwrap ─ bwrap ─ qemu
                                                       └─ sh (keeps the end of QEMU's output)

The waiter (waiter.sh) outlives the service. It writes files (waiter_files.py), and keeps the names of QEMU's
sockets (sockets.py). A kill of the service at any moment loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from bough.errors import WrongState
from bough.paths import MachinePaths
from bough.qemu.cgroup import stand_back
from bough.qemu.jail import JailReport
from bough.qemu.pid import Pid
from bough.qemu.sockets import name_again
from bough.qemu.waiter_files import (
    ExitCause,
    is_held,
    is_wrapper,
    orphans_of,
    read_exit,
    read_process_file,
    unseen_end,
)

KILL_TIMEOUT_S = 10.0
#: How long a busy host may take from the lock of a new QEMU to QEMU itself; usually 0.02 s.
_VISIBLE_S = 12.0


@dataclass(frozen=True)
class StartedProcesses:
    """The processes started for a machine.

    Attributes:
        shell: the waiter.
        uplink: the frame filter, if any.
        sink: the substitute of the frame filter in a pre-warm.
        tpm: swtpm, if any.
    """

    waiter: Pid
    shell: subprocess.Popen[bytes]
    uplink: Pid | None
    sink: asyncio.Task[None] | None
    tpm: subprocess.Popen[bytes] | None
    given: Mapping[str, int]

    async def end_uplink(self, grace_s: float) -> None:
        """Wait for the end of the uplink, after the close of the socket's last descriptor."""
        if self.sink is not None:
            self.sink.cancel()
        if self.uplink is not None:
            await end_in(self.uplink, grace_s)
        if self.tpm is not None:
            await asyncio.to_thread(end_tpm, self.tpm, grace_s)


def end_tpm(tpm: subprocess.Popen[bytes], grace_s: float) -> None:
    """Reap swtpm, which ends by itself when QEMU has ended. Blocks."""
    try:
        tpm.wait(grace_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tpm.pid, signal.SIGKILL)  # bubblewrap does not kill its child
        tpm.wait(grace_s)


class QemuProcess:
    """A running QEMU, started by this service or an earlier one."""

    def __init__(self, pid: Pid, waiter: Pid, paths: MachinePaths, jail: JailReport | None = None) -> None:
        self._pid = pid
        self._waiter = waiter
        self._paths = paths
        #: The parts of the jail; None for a QEMU of an earlier service.
        self.jail = jail
        #: The process has loaded the device state already: made by a loader.
        self.has_state = False
        self._started: StartedProcesses | None = None

    @property
    def given(self) -> Mapping[str, int]:
        """Name -> number, in QEMU, of the descriptors passed by this service."""
        return self._started.given if self._started is not None else {}

    @property
    def pid(self) -> int:
        """QEMU's process id on the host."""
        return self._pid.number

    def is_alive(self) -> bool:
        return self._pid.is_alive()

    def stand_back(self, back: bool = True) -> None:
        """Give QEMU only left-over processor time, or the normal share again."""
        if not stand_back(self.pid, back):
            self._pid.stand_back(back)

    def kill(self) -> None:
        """Send SIGKILL; `wait` then reports the end."""
        self._pid.kill()

    def terminate(self) -> None:
        """Send SIGTERM: QEMU writes its cached disk data and ends."""
        self._pid.terminate()

    def name_sockets(self) -> None:
        """Restore the names of QEMU's sockets that were removed. Raises HostLacks, OSError."""
        name_again(self._paths, self._waiter)

    async def wait(self) -> ExitCause:
        """Wait until QEMU has ended and its end is written. Safe to cancel and to repeat."""
        await self._pid.wait()
        if not await ends_within(self._waiter, KILL_TIMEOUT_S):
            # A kill hit bubblewrap before the start of QEMU: the child of bubblewrap lives on.
            for orphan in orphans_of(self._paths, self._waiter):
                orphan.innermost().kill()
                orphan.kill()
            await ends_within(self._waiter, KILL_TIMEOUT_S)
        await self._reap()
        return read_exit(self._paths) or unseen_end(self._paths)

    async def _reap(self) -> None:
        """Reap the waiter, which has ended or is about to. The uplink is about to end."""
        if self._started is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._started.shell.wait, KILL_TIMEOUT_S)
            await self._started.end_uplink(KILL_TIMEOUT_S)


async def find_process(paths: MachinePaths) -> QemuProcess | None:
    """Return the machine's process from an earlier service; None: no process of the machine lives.

    Wait for QEMU if the earlier service was killed in the middle of a start. Only a kill of QEMU itself ends
    all processes of the machine: bubblewrap does not kill its child.
    """
    deadline = time.monotonic() + _VISIBLE_S
    while is_held(paths):
        found = read_process_file(paths)
        outermost = None
        if found is not None and found.monitor.is_alive():
            outermost = found.monitor
        elif found is not None and (orphans := orphans_of(paths, found.waiter)):
            outermost = orphans[0]
        if found is not None and outermost is not None:
            inside = outermost.innermost()
            if not is_wrapper(inside) or time.monotonic() > deadline:
                return QemuProcess(inside, found.waiter, paths)
        # Just started and not visible yet, or just ended and not written down yet.
        await asyncio.sleep(0.01)
        if time.monotonic() > deadline:
            raise WrongState(f"something holds {paths.log / 'lock'} and is not QEMU", hint="see lsof")
    return None


async def end_in(pid: Pid, grace_s: float) -> None:
    if not await ends_within(pid, grace_s):
        pid.kill()
        await pid.wait()


async def ends_within(pid: Pid, timeout_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await pid.wait()
            return True
    return False
