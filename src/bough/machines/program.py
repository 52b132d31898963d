"""The container program of a machine: started by the guest's agent after a boot, and recorded at its end.

The guest powers off when the program has ended: a machine runs as long as its program, as a container does.
Saved memory has the program in it: a fork, a restored and a resumed machine start no second program.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from bough.errors import (
    AgentTimeout,
    BoughError,
    Conflict,
    GuestRefused,
    InvalidInput,
    MachineFailed,
    WrongState,
)
from bough.guest.channel import AgentChannel
from bough.guest.facts import clean_name, clean_text
from bough.machines.record import MachineRecord, ProgramRun, now
from bough.spec.program import Program, has_program, resolve_program
from bough.tasks import wait_first

_START_S = 120.0
#: A program that ends within this time after its start has ended "at once": the machine is not ready.
AT_ONCE_S = 1.0
#: Bound of one call that waits for the end. The next call goes on waiting.
_WAIT_S = 7 * 86400.0
_RETRY_S = 0.2
_MOST_OUTPUT = 4096
#: Exit statuses of a shell for a program that does not start.
NOT_FOUND, NOT_EXECUTABLE = 127, 126

T = TypeVar("T")


class Host(Protocol):
    """The parts of a machine that a ContainerProgram uses."""

    @property
    def record(self) -> MachineRecord: ...
    @property
    def name(self) -> str: ...
    def change(self, *, event: bool = ..., **fields: Any) -> None: ...
    def note(self, **fields: Any) -> bool: ...
    def tell(self, kind: str, detail: str = "") -> None: ...
    def own(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]: ...
    async def give_up(self, why: str) -> None: ...


class ContainerProgram:
    """The program of one machine."""

    def __init__(self, machine: Host) -> None:
        self._machine = machine
        self._is_left_out = False
        self._watching: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    def leave_out(self) -> None:
        """Start no program after the next boot: the machine is booted for a command."""
        self._is_left_out = True

    def at_boot(self) -> ProgramRun | None:
        """Return the record's entry at the beginning of a boot."""
        record, is_left_out = self._machine.record, self._is_left_out
        self._is_left_out = False
        return None if is_left_out or not has_program(record.container, record.spec) else ProgramRun()

    async def follow(self, channel: AgentChannel) -> bool:
        """Start the program if this boot has not started it, and record its end when the end comes.

        Return whether the machine goes on: False if the program could not be started, or ended at once.

        Raises:
            AgentUnavailable: the agent stopped answering; call again when it answers.
        """
        run = self._machine.record.program
        if run is None or self._machine.record.throw_away:
            return True
        boot = channel.facts.boot_id[:64] if channel.facts else ""
        if run.is_over and run.boot == boot:
            return False
        is_new = run.state == "waits" or run.boot != boot
        if is_new and not await self._start(channel, boot):
            return False
        self._watch(channel)
        return not (is_new and await wait_first(AT_ONCE_S, self._over))

    async def start(self, channel: AgentChannel) -> None:
        """Start the program of a machine that continues from a booted snapshot.

        Raises:
            MachineFailed: the program could not be started, or ended at once; the machine powers off.
        """
        record = self._machine.record
        if record.program is not None or not has_program(record.container, record.spec):
            return
        self._machine.change(program=ProgramRun())
        if not await self.follow(channel) and (error := self.error()) is not None:
            raise error

    def error(self) -> MachineFailed | None:
        """Return the error for a caller that needs a machine whose program is over; None: it is not over."""
        run, name = self._machine.record.program, self._machine.name
        if run is None or not run.is_over:
            return None
        hint = f"the whole output: bough logs {name}"
        if run.code == 0:
            hint = "a machine runs as long as its program: give it one that stays, like `sleep infinity`"
        return MachineFailed(
            f"machine '{name}' does not run: its program {run.text}",
            hint=hint,
            machine=name,
            argv=run.argv,
            exit_code=run.code,
            signal=run.signal,
            output=run.output,
        )

    def power_ended(self) -> None:
        """Complete the record after the end of QEMU. The end of a program that still ran was not seen."""
        run = self._machine.record.program
        if run is not None and run.state == "runs" and self._machine.record.suspended is None:
            self._note(run.model_copy(update={"state": "ended", "ended": now()}))

    async def _start(self, channel: AgentChannel, boot: str) -> bool:
        record = self._machine.record
        self._over.clear()  # the end in an earlier boot: the guest has rebooted
        run = ProgramRun(state="runs", boot=boot, started=now())
        try:
            program = resolve_program(record.container, record.spec, hostname=record.hostname)  # type: ignore[arg-type]
            run = run.model_copy(update={"argv": list(program.argv)})
            answer = await channel.call("start_program", _render(program), timeout_s=_START_S)
        except (GuestRefused, InvalidInput) as error:
            self._not_started(run, error)
            return False
        pid = answer.get("pid")
        self._note(run.model_copy(update={"pid": pid if isinstance(pid, int) else None}))
        self._machine.tell("program-started", clean_name(" ".join(run.argv)))
        return True

    def _not_started(self, run: ProgramRun, error: GuestRefused | InvalidInput) -> None:
        reason = clean_text(error.message)
        end = {"state": "failed", "error": reason, "ended": now(), "code": start_status(error, run.argv)}
        self._note(run.model_copy(update=end))
        self._machine.tell("program-failed", clean_name(reason))
        self._machine.own(self._power_off(f"its program could not be started: {reason}"), "end a machine")

    async def _power_off(self, why: str) -> None:
        while True:
            try:
                await self._machine.give_up(why)
            except WrongState:
                return  # it does not run any more
            except Conflict:
                await asyncio.sleep(_RETRY_S)  # the operation that started the machine ends soon
            else:
                return

    def _watch(self, channel: AgentChannel) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._watching = self._machine.own(self._await_end(channel), "wait for the end of the program")

    async def _await_end(self, channel: AgentChannel) -> None:
        while True:
            try:
                answer = await channel.call("await_program", {}, timeout_s=_WAIT_S, exact=True)
            except AgentTimeout:
                continue
            except BoughError:
                return  # the agent is gone; its successor is asked again
            self._note_end(answer)
            return

    def _note_end(self, answer: dict[str, Any]) -> None:
        run = self._machine.record.program
        if run is None or run.is_over:
            return
        end: dict[str, Any] = {"state": "ended", "ended": now(), **_read_end(answer)}
        ended = run.model_copy(update=end)
        self._note(ended)
        self._machine.tell("program-ended", ended.text)
        self._over.set()

    def _note(self, run: ProgramRun) -> None:
        self._machine.note(program=run)


def start_status(error: BoughError, argv: list[str] | tuple[str, ...]) -> int:
    """Return a shell's exit status for a program that does not start."""
    is_missing = error.details.get("errno") == "ENOENT"
    return NOT_FOUND if is_missing and argv and error.message.startswith(argv[0][:200]) else NOT_EXECUTABLE


def _render(program: Program) -> dict[str, Any]:
    return {
        "argv": list(program.argv),
        "env": dict(program.env),
        "cwd": program.cwd,
        "user": program.user,
        "stop_signal": program.stop_signal,
        "as_image": True,
    }


def _read_end(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the end of a program from the guest's answer, which may be anything."""
    code, output = answer.get("code"), answer.get("output")
    if isinstance(output, bytes):
        output = output.decode(errors="replace")
    text = clean_text(output[-_MOST_OUTPUT:]) if isinstance(output, str) else ""
    is_code = isinstance(code, int) and not isinstance(code, bool) and 0 <= code <= 255
    signal = None if is_code else clean_name(answer.get("signal"))[:16] or None
    return {"code": code if is_code else None, "signal": signal, "output": text}
