"""QEMU of a machine, from start or adoption to the end, and the service's connections to QEMU."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from bough.errors import BoughError, WrongState
from bough.machines.clock import ClockKeeper
from bough.machines.condition import Condition
from bough.machines.console import Console
from bough.machines.cpu_priority import CpuPriority
from bough.machines.forwards import Forwards
from bough.machines.guest import Guest
from bough.machines.guest_watch import BOOT_QUIET_S, guest_signs, watch_guest
from bough.machines.reach import ADOPT_TIMEOUT_S, Reach
from bough.machines.record import MachineRecord
from bough.machines.saved_state import ProcessImage
from bough.machines.screen import VncDoor
from bough.machines.state import State
from bough.machines.vm.ending import Ending
from bough.machines.vm.qemu_events import QemuEvents
from bough.machines.workarounds import same_addresses
from bough.machines.workarounds.stuck_vcpus import StuckVcpus
from bough.paths import MachinePaths
from bough.progress_watch import ProgressWatch
from bough.qemu.process import QemuProcess
from bough.qemu.qmp import Qmp
from bough.tasks import wait_first

#: Signals caused by a fault of the process itself.
_OWN_FAULTS = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP"})
#: QEMU's own time to end, and the bound of the wait on a busy host.
_QUIT_S = 5.0
_QUIT_MOST_S = 60.0

T = TypeVar("T")


class Host(Protocol):
    """The parts of a machine that a RunningVm uses."""

    @property
    def id(self) -> str: ...
    @property
    def record(self) -> MachineRecord: ...
    @property
    def paths(self) -> MachinePaths: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def is_free(self) -> bool: ...
    def qmp(self) -> Qmp: ...
    def operation(self, doing: str, *allowed: State) -> AbstractAsyncContextManager[None]: ...
    def wrong_state(self, doing: str, *allowed: State) -> WrongState: ...
    def tell(self, kind: str, detail: str = "") -> None: ...
    def own(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]: ...


class RunningVm:
    """The QEMU of one machine.

    Attributes:
        process: None while no QEMU runs.
        qmp, console: None while the service is not connected.
        adopted: an earlier service started this QEMU.
        image: the process image from which QEMU continues, or None.
        ended: set while no QEMU runs.
    """

    def __init__(
        self,
        machine: Host,
        guest: Guest,
        forwards: Forwards,
        condition: Condition,
        clock: ClockKeeper,
        events: QemuEvents,
        ending: Ending,
        reach: Reach,
    ) -> None:
        self._machine = machine
        self._guest = guest
        self._forwards = forwards
        self._condition = condition
        self._clock = clock
        self._stuck_vcpus = StuckVcpus(machine)
        self._events = events
        self._ending = ending
        self._reach = reach
        self.process: QemuProcess | None = None
        self.qmp: Qmp | None = None
        self.console: Console | None = None
        self.adopted = False
        self.image: ProcessImage | None = None
        self.ended = asyncio.Event()
        self.ended.set()
        self._door: VncDoor | None = None
        self._priority: CpuPriority | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def watch(
        self, quiet_s: float = BOOT_QUIET_S, *, bound_s: float | None = None, most_s: float | None = None
    ) -> ProgressWatch:
        """Return a watch that begins now, and limits a wait for the guest; see guest_watch.py."""
        signs = guest_signs(self.console, self._guest)
        return watch_guest(self.pid, signs, quiet_s=quiet_s, bound_s=bound_s, most_s=most_s)

    def require_qmp(self, doing: str = "this") -> Qmp:
        """Return the connection to QMP.

        Raises:
            WrongState: the machine does not run.
            QmpLost: the machine runs but cannot be reached.
        """
        self._reach.check()
        if self.qmp is None:
            raise self._machine.wrong_state(doing, State.RUNNING)
        return self.qmp

    def require_process(self) -> QemuProcess:
        """Return the QEMU process. Raises WrongState: the machine does not run."""
        if self.process is None:
            raise self._machine.wrong_state("this", State.RUNNING)
        return self.process

    def require_console(self) -> Console:
        """Return the console. Raises as `require_qmp`."""
        self._reach.check()
        if self.console is None:
            raise self._machine.wrong_state("its console", State.RUNNING)
        return self.console

    def require_screen(self) -> Qmp:
        """Return the connection that takes pictures of the screen and presses keys. Raises as `require_qmp`,
        and WrongState for a machine without a screen.
        """
        qmp = self.require_qmp("its screen")
        if not self._machine.record.media.display:
            raise WrongState(
                f"machine '{self._machine.name}' has no screen",
                hint="a machine gets one when it is created: bough create --display",
                machine=self._machine.name,
            )
        return qmp

    # -- priority and process image -----------------------------------------------------------

    def stand_back(self, back: bool) -> None:
        """Lower QEMU's priority for processor time, or restore it; see cpu_priority.py."""
        if self._priority is not None:
            self._priority.stand_back(back)

    def step_forward(self) -> None:
        """Suspend a low priority: a user is about to talk to the agent."""
        if self._priority is not None:
            self._priority.step_forward()

    def distrust_image(self, why: str) -> None:
        """Stop the use of the process image after an error. Later forks start a new QEMU instead."""
        if self.image is not None:
            self.image.distrust(self._machine.id, why)
        self.image = None

    # -- from start to end --------------------------------------------------------------------

    def hold(self, process: QemuProcess) -> None:
        """Watch a running QEMU, until the end."""
        self.process = process
        self._priority = CpuPriority(process, lambda: self._guest.is_talked_to)
        self.adopted = False
        self._ending.new_process()
        self._clock.new_process()
        self.ended.clear()
        self._machine.own(self._watch_process(process), "watch process")

    async def connect(self, accelerator: str | None, *, greet: bool = True, adopted: bool = False) -> None:
        """Connect to all of QEMU's sockets.

        Args:
            greet: greet the agent, too.
            adopted: an earlier service started this QEMU.

        Raises BoughError, OSError; then `disconnect` closes open connections.
        """
        machine = self._machine
        # The service answers no request before all machines are adopted; a hanging QEMU is tried again.
        bound = {"timeout_s": ADOPT_TIMEOUT_S} if adopted else {}
        self.qmp = await Qmp.connect(machine.paths.qmp_socket, **bound)
        machine.own(self._events.follow(self.qmp), "watch QMP")
        self.console = Console(
            machine.paths.console_socket,
            machine.paths.console_log,
            bytes_per_s=machine.record.spec.limits.console,
        )
        await self.console.connect()
        await self._condition.begin(adopted=adopted)
        if machine.record.media.display:
            self._door = VncDoor(machine.paths.vnc_socket, self.qmp)
            self._door.open()
        version = self.qmp.version
        self._stuck_vcpus.begin(accelerator, version)
        await self._guest.connect(same_addresses=same_addresses.is_needed(accelerator, version))
        if greet:
            self._guest.greet()

    async def disconnect(self, *, ended: bool = False) -> None:
        """Close all connections, and the forwarded ports. QEMU runs on.

        Args:
            ended: QEMU has ended; read its last output first.
        """
        await self._forwards.close()
        await self._guest.close()
        if ended and self.console is not None:
            await self.console.read_rest()
        for closable in (self._door, self.console, self.qmp):
            if closable is not None:
                with contextlib.suppress(BoughError, OSError):
                    await closable.close()
        self._door = self.console = self.qmp = None

    async def release_guest(self) -> asyncio.Event:
        """Close the connections to the agent and the console, for a capture of the process.

        Return the event for QEMU's report that the guest closed the agent's port.
        """
        await self._guest.close()
        if self.console is not None:
            await self.console.close()
        return self._guest.port_closed

    async def quit(self) -> None:
        """Ask QEMU to end: QEMU writes cached data to the disks. Then send SIGKILL. Return when QEMU has
        ended.
        """
        if self.qmp is not None:
            with contextlib.suppress(BoughError, OSError, TimeoutError):
                async with asyncio.timeout(2):
                    await self.qmp.execute("quit")
        elif self.process is not None:
            self.process.terminate()
        gone = await self.watch(_QUIT_S, most_s=_QUIT_MOST_S).until(self.ended)
        if not gone and self.process is not None:
            self.process.kill()
        await self.ended.wait()

    async def ended_within(self, timeout_s: float) -> bool:
        """Wait for the end of QEMU. Return whether QEMU has ended."""
        return await wait_first(timeout_s, self.ended)

    async def _watch_process(self, process: QemuProcess) -> None:
        cause = await process.wait()
        # Read all of QEMU's last output before the state changes, so that a failure includes the output.
        await self.disconnect(ended=True)
        if cause.signal in _OWN_FAULTS:
            self.distrust_image(cause.text)
        self._reach.end()
        self.process = self._priority = self.image = None
        self._ending.settle(cause, seen=True)
        self._condition.end()
        self.ended.set()
