"""The condition of a guest whose agent does not answer.

    asleep      QEMU reports that the guest suspended itself to memory (ACPI S3). Only `wake` ends the sleep.
    halted      Each vCPU waits with interrupts off. Only a reset or a power-off ends the halt.
    panicked    QEMU reports the panic if the guest has loaded the driver of the pvpanic device. A guest
    without the driver prints the panic on the console. The line is believed if the agent is
                silent and the vCPUs do what those of a panicked Linux do. The machine fails, unless the guest
                reboots by itself.
    busy, hung  The agent answers no ping. The guest is busy if its vCPUs are at work or its console prints.

The vCPUs are read while the agent is silent, at growing intervals. A guest that prints false hints harms
itself alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from bough.errors import AgentTimeout, AgentUnavailable, BoughError, Conflict, MachineFailed, WrongState
from bough.guest.channel import AgentChannel
from bough.guest.qga import QgaChannel
from bough.machines.clock import ClockKeeper
from bough.machines.console import Console
from bough.machines.console_hints import ConsoleHints
from bough.machines.record import MachineRecord, now
from bough.machines.state import State
from bough.machines.vcpus import Vcpu, read_vcpus
from bough.machines.workarounds.wakeup import wake
from bough.qemu.pid import Pid
from bough.qemu.qmp import Qmp

log = logging.getLogger("bough.machines")

T = TypeVar("T")

_LOOK_S = (1.0, 10.0)
#: Number of looks in a row that must agree: for halted vCPUs; for a hint of the console as well.
_LOOKS = 2
_LOOKS_BY_HINT = 5
_SILENT_PING_S = 2.0
_PING_S = 1.0
#: A panic ends when the console has been quiet for so long, and the guest has not rebooted by itself.
_LAST_WORDS_S = 3.0
_MOST_LAST_WORDS = 20
_REBOOT_GRACE_S = 15.0
_LEAST_BUSY = 0.1


class Kind(StrEnum):
    ASLEEP = "asleep"
    HALTED = "halted"
    PANICKED = "panicked"
    BUSY = "busy"
    HUNG = "hung"


#: Conditions in which no agent can answer.
_MUTE = frozenset({Kind.ASLEEP, Kind.HALTED})
#: Conditions in which no guest powers itself off.
_DEAD = frozenset({Kind.HALTED, Kind.PANICKED})


@dataclass(frozen=True)
class Found:
    """A condition. `text` completes the sentence "the guest of machine NAME ..."."""

    kind: Kind
    text: str
    since: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Host(Protocol):
    """The parts of a machine that a Condition uses."""

    @property
    def record(self) -> MachineRecord: ...

    clock: ClockKeeper

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    @property
    def pid(self) -> int | None: ...
    def qmp(self) -> Qmp: ...
    def console(self) -> Console: ...
    def console_tail(self) -> str: ...
    def answering(self) -> AgentChannel | QgaChannel | None: ...
    def own(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]: ...
    def tell(self, kind: str, detail: str = "") -> None: ...
    def operation(self, doing: str, *allowed: State) -> AbstractAsyncContextManager[None]: ...
    async def give_up(self, why: str) -> None: ...


class Condition:
    """The condition of one machine's guest.

    Attributes:
        mute: set while the guest is asleep or halted.
        dead: set while the guest is halted or panicked.
    """

    def __init__(self, machine: Host) -> None:
        self._machine = machine
        self._found: Found | None = None
        #: The agent's number of received bytes when the guest was found busy or hung.
        self._heard: int | None = None
        self.mute, self.dead = asyncio.Event(), asyncio.Event()
        self._words = ConsoleHints()
        self._wanted = asyncio.Event()
        self._woken = asyncio.Event()
        #: Set while the guest is healthy, as far as known.
        self._recovered = asyncio.Event()
        self._seen: tuple[Kind | None, int] = (None, 0)
        #: Number of connections to a QEMU so far: the tasks of an earlier connection end.
        self._begun = 0

    # -- input ----------------------------------------------------------------------------------

    async def begin(self, *, adopted: bool) -> None:
        """Begin for a running QEMU with a connected console. Raises BoughError.

        Args:
            adopted: an earlier service started this QEMU.
        """
        machine = self._machine
        self._begun += 1
        self._words = ConsoleHints()
        self._forget()
        self._wanted.set()
        if adopted:
            self._words.read(machine.console_tail().encode())
            if (await machine.qmp().query("query-status")).get("status") == "suspended":
                self._note(Kind.ASLEEP, "sleeps (suspended to memory)")
        machine.own(self._follow(machine.console().attach()), "read its last words")
        machine.own(self._watch(), "look after its guest")

    def end(self) -> None:
        """End with the QEMU."""
        self._forget()
        self._wanted.set()

    def heard(self, name: str, data: Mapping[str, Any]) -> None:
        """Take an event of QEMU."""
        if name == "SUSPEND":
            self._note(Kind.ASLEEP, "sleeps (suspended to memory)")
        elif name == "WAKEUP":
            self._forget()
            self._woken.set()
            self._machine.clock.set_soon()  # Linux reads whole seconds from the real-time clock
        elif name == "RESET":
            self._words.forget()
            self._forget()
            self._wanted.set()
        elif name == "GUEST_PANICKED":
            self._panicked()
        elif name == "VSERPORT_CHANGE" and not data.get("open"):
            self._wanted.set()

    # -- output ---------------------------------------------------------------------------------

    @property
    def found(self) -> Found | None:
        """Return the current condition, or None for a healthy guest."""
        if self._heard is not None and self._heard != self._words_of_agent():
            self._forget()
        return self._found

    def _words_of_agent(self) -> int:
        channel = self._machine.answering()
        return channel.heard if isinstance(channel, AgentChannel) else 0

    def is_now(self, *kinds: Kind) -> bool:
        return self.found is not None and self.found.kind in kinds

    def error(self) -> BoughError | None:
        """Return why no agent can answer now, or None."""
        found, name = self.found, self._machine.name
        if found is None or found.kind not in _MUTE | _DEAD:
            return None
        hints = {Kind.ASLEEP: f"bough resume {name}", Kind.HALTED: f"bough restart {name}"}
        hint = hints.get(found.kind, f"to see its last output: bough logs {name}")
        return AgentUnavailable(f"the guest of machine '{name}' {found.text}", hint=hint, machine=name)

    def check_awake(self, doing: str) -> None:
        """Raise WrongState while the guest sleeps: a saved state of a sleeping guest cannot be woken."""
        if self.is_now(Kind.ASLEEP):
            name = self._machine.name
            raise WrongState(
                f"the guest of machine '{name}' sleeps; {doing} needs it awake",
                hint=f"bough resume {name}",
                machine=name,
                state=str(self._machine.state),
            )

    async def wake(self) -> None:
        """Wake a sleeping guest; no effect on an awake guest.

        Raises:
            BoughError: QEMU refused, or another operation runs.
            MachineFailed: the guest does not wake.
        """
        if not self.is_now(Kind.ASLEEP):
            return
        self._woken.clear()
        machine, name = self._machine, self._machine.name
        try:
            async with machine.operation("being woken", State.RUNNING, State.STOPPING):
                await wake(machine.qmp(), machine.record.hardware.machine_type, self._woken)
        except TimeoutError:
            raise MachineFailed(
                f"the guest of machine '{name}' does not wake", hint=f"bough restart {name}", machine=name
            ) from None

    async def look(self) -> None:
        """Ping the agent. If there is no answer in 1 s, find out whether the guest is busy or hung."""
        machine, channel = self._machine, self._machine.answering()
        if channel is None or machine.state is not State.RUNNING or self.is_now(*_MUTE, *_DEAD):
            return
        process, printed = Pid.of(machine.pid) if machine.pid else None, self._words.printed_bytes
        used_s, began = process.used_s() if process else None, time.monotonic()
        try:
            await channel.ping(timeout_s=_PING_S)
        except AgentTimeout:
            pass
        except BoughError:
            return
        else:
            if self.is_now(Kind.BUSY, Kind.HUNG):
                self._forget()
            return
        used_now_s = process.used_s() if process else None
        share = ((used_now_s or 0) - (used_s or 0)) / (time.monotonic() - began)
        running = [vcpu for vcpu in await read_vcpus(machine.qmp()) if not vcpu.is_halted]
        self._judge(share, bool(running), self._words.printed_bytes > printed)

    def _judge(self, share: float, running: bool, prints: bool) -> None:
        signs = [f"its vCPUs are at work ({share:.0%} of a processor)"] if share > _LEAST_BUSY else []
        signs += ["its vCPUs are at work"] if running and not signs else []
        signs += ["its console prints"] if prints else []
        kind = Kind.BUSY if signs else Kind.HUNG
        why = " and ".join(signs) or "its vCPUs are idle: the agent hangs"
        self._note(kind, f"does not answer, and {why}", event=False)

    # -- conclusions ----------------------------------------------------------------------------

    def _note(self, kind: Kind, text: str, *, event: bool = True) -> None:
        since = self.found.since if self.is_now(kind) and self.found else now()
        self._found = Found(kind, text, since)
        self._heard = self._words_of_agent() if kind in (Kind.BUSY, Kind.HUNG) else None
        self._recovered.clear()
        self.mute.set() if kind in _MUTE else self.mute.clear()
        self.dead.set() if kind in _DEAD else self.dead.clear()
        if event:
            log.info("the guest of machine %s %s", self._machine.name, text)
            self._machine.tell(str(kind), text)

    def _forget(self) -> None:
        self._found, self._heard, self._seen = None, None, (None, 0)
        self._recovered.set()
        self.mute.clear()
        self.dead.clear()

    async def _follow(self, queue: asyncio.Queue[bytes | None]) -> None:
        while (data := await queue.get()) is not None:
            self._words.read(data)
            if self._words.is_there:
                self._wanted.set()

    async def _watch(self) -> None:
        """Read the vCPUs while the agent is silent, until this QEMU ends."""
        machine, pid, begun, pause_s = self._machine, self._machine.pid, self._begun, _LOOK_S[0]
        while True:
            await self._wanted.wait()
            await asyncio.sleep(pause_s)
            if machine.pid != pid or pid is None or self._begun != begun:
                return
            pause_s = min(pause_s * 1.5, _LOOK_S[1])
            if self.found is not None or machine.state not in (State.RUNNING, State.STOPPING):
                continue
            if await self._answers():
                self._words.forget()  # any program in the guest may have printed the line
                self._wanted.clear()
                self._seen, pause_s = (None, 0), _LOOK_S[0]
                continue
            with contextlib.suppress(BoughError):
                self._weigh(await read_vcpus(machine.qmp()))
            if self._seen[1]:
                pause_s = _LOOK_S[0]

    async def _answers(self) -> bool:
        channel = self._machine.answering()
        if channel is None:
            return False
        if not self._words.is_there:
            return True
        with contextlib.suppress(BoughError):
            await channel.ping(timeout_s=_SILENT_PING_S)
            return True
        return False

    def _weigh(self, vcpus: list[Vcpu]) -> None:
        kind = judge_vcpus(vcpus, self._words)
        before, count = self._seen
        count = count + 1 if kind is before else 1
        self._seen = (kind, count if kind else 0)
        if kind is None or count < (_LOOKS if vcpus and kind is Kind.HALTED else _LOOKS_BY_HINT):
            return
        if kind is Kind.HALTED:
            self._note(kind, "halted: it does nothing any more")
        else:
            self._panicked()

    def _panicked(self) -> None:
        if not self.is_now(Kind.PANICKED):
            self._note(Kind.PANICKED, self._panic_text())
            self._machine.own(self._after_panic(), "see to a panic")

    def _panic_text(self) -> str:
        return "panicked" + (f": {self._words.panic}" if self._words.panic else "")

    async def _after_panic(self) -> None:
        """Wait for the guest to reboot by itself, or let the machine fail."""
        machine, pid, printed = self._machine, self._machine.pid, -1
        for _ in range(_MOST_LAST_WORDS):
            if printed == self._words.printed_bytes:
                break
            printed = self._words.printed_bytes
            await asyncio.sleep(_LAST_WORDS_S)
        if self._words.reboots_in_s is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._words.reboots_in_s + _REBOOT_GRACE_S):
                    await self._recovered.wait()
        while self.is_now(Kind.PANICKED) and machine.pid == pid:
            with contextlib.suppress(Conflict, WrongState):  # another operation runs; try again
                await machine.give_up(f"the guest's kernel {self._panic_text()}")
            await asyncio.sleep(_LOOK_S[0])


def judge_vcpus(vcpus: list[Vcpu], words: ConsoleHints) -> Kind | None:
    """Return the condition that a silent guest's vCPUs show.

    Args:
        vcpus: empty for processors that QEMU describes otherwise; the console's hint decides then.
    """
    hinted = Kind.PANICKED if words.panic else Kind.HALTED if words.halted else None
    if not vcpus:
        return hinted
    busy = [vcpu for vcpu in vcpus if vcpu.takes_interrupts or not vcpu.is_halted]
    if not busy:
        return hinted or Kind.HALTED
    # A panicked Linux has halted the other vCPUs; the panicking vCPU loops in the kernel.
    if words.panic and len(busy) == 1 and busy[0].ring == 0:
        return Kind.PANICKED
    return None
