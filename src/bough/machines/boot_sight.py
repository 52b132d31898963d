"""Watch the boot of a guest, and report what the guest shows.

A guest prints on its console and, with a display, on the screen. The watch of a guest without an agent ends
with a known sign (boot_signs.py), with the first answer of a qemu-guest-agent, or when the output stops. Each
start is watched once. The watch of a guest with an agent ends with a sign that the guest cannot boot.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from bough.errors import BootFailed, BoughError, MachineFailed
from bough.machines.boot_signs import MOST_CHARACTERS, Sight, last_line, recognize
from bough.machines.console import Console, read_console
from bough.machines.record import MachineRecord
from bough.machines.screen import read_text
from bough.machines.state import State
from bough.paths import MachinePaths
from bough.progress import Progress, Report, notice
from bough.progress_watch import ProgressWatch
from bough.qemu.pid import Pid
from bough.qemu.qmp import Qmp

_LOOK_EVERY_S = 1.0
#: Guest time before the first output: UEFI firmware searches for devices.
_FIRST_WORDS_S = 20.0
#: Guest time without output after the first output. Waiting for a key may use as much processor time as
#: computing.
_QUIET_S = 10.0
#: Guest time without output after which a sign of failure counts, and a sign that may pass.
_STAYS_S = 5.0
_PASSES_S = 15.0
#: The end of the watch if the output goes on.
_MOST_S = 120.0


class Host(Protocol):
    """The parts of a machine that a BootSight uses."""

    @property
    def record(self) -> MachineRecord: ...

    paths: MachinePaths

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def agent_state(self) -> str: ...
    def console(self) -> Console: ...
    def screen(self) -> Qmp: ...
    def console_tail(self) -> str: ...
    def ended_error(self, when: str) -> MachineFailed: ...


class BootSight:
    """The watch over one machine's boot.

    Attributes:
        sight: the sign of the current boot; None if no known sign was seen.
    """

    def __init__(self, machine: Host) -> None:
        self._machine = machine
        self.sight: Sight | None = None
        #: A guest with an agent cannot boot without help; `sight` says why.
        self.has_failed = asyncio.Event()
        self._is_due = False
        self._shown = ""

    def new_boot(self) -> None:
        self.sight, self._is_due, self._shown = None, True, ""
        self.has_failed.clear()

    def describe(self) -> dict[str, Any] | None:
        sight = self.sight
        if sight is None:
            return None
        return {"kind": sight.kind, "says": sight.says, "line": sight.line, "failed": sight.failed}

    async def wait(self, timeout_s: float | None, report: Report) -> None:
        """Watch the boot and report what was seen. Return at once if the guest was not started since the last
        watch.

        Raises:
            BootFailed: the guest cannot boot without help; the machine is left running.
            MachineFailed: the machine ended meanwhile.
        """
        if not self._is_due:
            return
        self._is_due = False
        report(Progress("watching what the guest shows of its boot"))
        machine = self._machine
        most_s = min(_MOST_S, timeout_s or _MOST_S)
        watch = self._watch(_FIRST_WORDS_S, most_s)
        self.sight = await self._look(watch, until_words=True)
        if self.sight is None and self._printed():
            self.sight = await self._look(self._watch(_QUIET_S, most_s - watch.waited_s))
        if machine.state is State.FAILED:
            raise machine.ended_error("while it booted")
        if self.sight is None:
            report(notice(self._nothing_known()))
        elif self.sight.failed:
            raise self.error(self.sight)
        else:
            report(notice(f"{machine.name} shows {self.sight.text}"))

    async def watch_for_failure(self, report: Report) -> None:
        """Watch the boot of a guest with an agent until it shows that it cannot boot. Set `has_failed`.

        A guest that asks for a passphrase is reported, and watched on. The watch has no end of its own.
        """
        machine, told = self._machine, ""
        if not self._is_due:
            return
        while machine.state is State.RUNNING:
            sight = recognize(self._printed())
            if sight is not None and (sight.failed or sight.kind == "passphrase") and sight.line != told:
                if not await self._stays(_PASSES_S if sight.may_pass else _STAYS_S):
                    continue
                self.sight, told = sight, sight.line
                if sight.failed:
                    self.has_failed.set()
                    return
                report(notice(f"{machine.name} shows {sight.text}: bough console {machine.name}"))
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _stays(self, quiet_s: float) -> bool:
        """Return whether the guest prints nothing more for that time."""
        printed = self._count_printed()
        watch = self._watch(quiet_s, _MOST_S)
        while self._machine.state is State.RUNNING and watch.look():
            if self._count_printed() != printed:
                return False
            await asyncio.sleep(_LOOK_EVERY_S)
        return self._machine.state is State.RUNNING

    def error(self, sight: Sight) -> BootFailed:
        machine = self._machine
        driver = (
            "; a disk needs a driver in the guest's initrd: --disk-bus" if sight.kind == "no-root" else ""
        )
        return BootFailed(
            f"machine '{machine.name}' runs, but its guest did not boot: {sight.text}",
            hint=f"look at it: bough console {machine.name}, or bough screenshot {machine.name} FILE.png"
            + driver,
            machine=machine.name,
            seen=sight.kind,
            console=machine.console_tail(),
        )

    def _watch(self, quiet_s: float, most_s: float) -> ProgressWatch:
        machine = self._machine
        signs = [self._count_printed, lambda: self._shown]
        idle_s = min(quiet_s, _QUIET_S)
        work = Pid.of(machine.pid) if machine.pid is not None else None
        return ProgressWatch(quiet_s, idle_s=idle_s, most_s=most_s, signs=signs, work=work)

    async def _look(self, watch: ProgressWatch, *, until_words: bool = False) -> Sight | None:
        """Return the first known sign; None if the watch ends first, or, with `until_words`, at the first
        output.
        """
        machine = self._machine
        while machine.state is State.RUNNING and watch.look():
            if machine.agent_state == "qemu-guest-agent":
                return Sight("agent", "a qemu-guest-agent that answers", "")
            if (sight := recognize(self._printed())) is not None and not sight.may_pass:
                return sight
            self._shown = await self._read_screen()
            if (sight := recognize(self._shown)) is not None and not sight.may_pass:
                return sight
            if until_words and self._printed():
                return None
            await asyncio.sleep(_LOOK_EVERY_S)
        # The guest was silent since, or the watch has run out.
        return None if until_words else recognize(self._printed()) or recognize(self._shown)

    def _printed(self) -> str:
        """Return the end of the console output since the start."""
        count = min(self._count_printed(), 2 * MOST_CHARACTERS)
        return read_console(self._machine.paths.console_log, count) if count else ""

    def _count_printed(self) -> int:
        try:
            return self._machine.console().printed
        except BoughError:  # the machine has ended
            return 0

    async def _read_screen(self) -> str:
        """Return the screen's text; empty without a screen, or without text on the screen."""
        if not self._machine.record.media.display:
            return ""
        try:
            return await read_text(self._machine.screen())
        except BoughError:
            return ""

    def _nothing_known(self) -> str:
        name = self._machine.name
        if self._machine.state is not State.RUNNING:
            return f"{name} is {self._machine.state}"
        for place, text in (("console", self._printed()), ("screen", self._shown)):
            if line := last_line(text):
                return f"{name} has no agent; the last line on its {place} is {line!r}"
        if self._machine.record.media.display:
            shows = f"bough screenshot {name} FILE.png shows its screen"
            return f"{name} has no agent, and its console is silent; {shows}"
        return (
            f"{name} has no agent, and its console is silent; a machine created with --display has a screen"
        )
