"""The health of a project's machines. A check runs, and is repeated, inside its guest."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bough.errors import AgentUnavailable, BoughError, CheckFailed, MachineFailed, WrongState
from bough.guest.session import ExecRequest, ExitStatus
from bough.guest_checks import GAVE_UP, Attempts
from bough.machines.guest_watch import watch_guest
from bough.machines.record import MachineRecord
from bough.machines.state import LIVE, State
from bough.progress import Progress, Report, ignore_progress
from bough.progress_watch import Stalled
from bough.projects.health_command import longest_s, render_look, render_start, render_wait
from bough.spec.program import resolve_command
from bough.spec.project.healthcheck import HealthCheckSpec

#: starting: a wait is going on. unknown: the machine does not run, or its agent does not answer.
HealthState = Literal["starting", "healthy", "unhealthy", "unknown"]

#: The agent disk's tools in a guest (guest/agent_python.py).
TOOLS = "/.bough/tools"

#: Longest time of a look, in seconds.
LOOK_S = 10.0
#: Added to the longest time of a wait, for the start of the command.
_SLACK_S = 30.0
_OUTPUT_CHARS = 4000
#: Pause before another try with an agent that went away, in seconds.
RETRY_S = 0.5
#: How often an agent may refuse before the first attempt.
_MOST_REFUSALS = 5


class CheckedMachine(Protocol):
    """The parts of a machine that its health check uses."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def state(self) -> State: ...
    @property
    def record(self) -> MachineRecord: ...
    def console_tail(self) -> str: ...
    def ended_error(self, when: str) -> MachineFailed: ...
    async def agent(self) -> Any: ...
    async def wait_ready(self, *, timeout_s: float | None = None, report: Report = ...) -> None: ...


@dataclass(frozen=True)
class Health:
    """The health of a machine.

    Attributes:
        output: of the last failed check, its end; empty if the machine is healthy. Unsafe for a terminal.
    """

    state: HealthState
    output: str = ""


class HealthChecks:
    """Wait for machines to become healthy, and look at their health."""

    def __init__(self) -> None:
        self._waiting: dict[str, Attempts] = {}

    async def wait_healthy(
        self, machine: CheckedMachine, check: HealthCheckSpec | None, report: Report = ignore_progress
    ) -> None:
        """Wait until the machine has answered and its check has passed. The check is repeated in the guest.

        A guest that reboots meanwhile is checked again after its boot. Cancelling is safe: the check ends.

        Args:
            check: None: the machine is healthy when it has answered.

        Raises:
            CheckFailed: the machine is unhealthy, and runs on; `output` has the last failed check's output,
                `console` the end of the console.
            MachineFailed: the machine ended meanwhile.
            AgentTimeout, GuestRefused, AgentUnavailable, BootFailed: as `wait_ready` of the machine.
        """
        attempts = Attempts()
        self._waiting[machine.id] = attempts
        try:
            await machine.wait_ready(report=report)
            if check is not None and not await _in_start_period(machine, check, attempts, report):
                await _after_start_period(machine, check, attempts, report)
        finally:
            if self._waiting.get(machine.id) is attempts:
                del self._waiting[machine.id]

    async def look(
        self, machine: CheckedMachine, check: HealthCheckSpec | None, *, within_s: float = LOOK_S
    ) -> Health:
        """Return the health of the machine now: check it once, unless a wait is going on.

        Args:
            within_s: longest time; a check that takes longer makes the machine unhealthy.
        """
        attempts = self._waiting.get(machine.id)
        if attempts is not None:
            return Health("starting", attempts.output[-_OUTPUT_CHARS:])
        if machine.state is not State.RUNNING:
            return Health("unknown")
        try:
            async with asyncio.timeout(within_s):
                return await _look(machine, check)
        except TimeoutError:
            return Health("unhealthy", f"the check took longer than {within_s:g} s")
        except BoughError as error:
            return Health("unknown", error.message)


async def _in_start_period(
    machine: CheckedMachine, check: HealthCheckSpec, attempts: Attempts, report: Report
) -> bool:
    """Return whether the check passed within the start period. A busy host prolongs the period."""
    if not check.start_period:
        return False
    watch = watch_guest(machine.pid, [], quiet_s=check.start_period)
    try:
        await watch.run(_repeat(machine, check, render_start(check), attempts, report))
    except Stalled:
        return False
    return True


async def _after_start_period(
    machine: CheckedMachine, check: HealthCheckSpec, attempts: Attempts, report: Report
) -> None:
    watch = watch_guest(machine.pid, [], quiet_s=longest_s(check) + _SLACK_S)
    try:
        await watch.run(_repeat(machine, check, render_wait(check), attempts, report))
    except Stalled as stalled:
        raise _unhealthy(machine, check, attempts, f"the check did not end {stalled}") from None


async def _repeat(
    machine: CheckedMachine, check: HealthCheckSpec, argv: list[str], attempts: Attempts, report: Report
) -> None:
    """Return when the check has passed. A guest that reboots begins again. Raises as `wait_healthy`."""
    refusals = 0
    while True:
        await machine.wait_ready(report=report)
        report(Progress(f"waiting until healthy: {check.describe()}"))
        try:
            status = await _run(machine, argv, attempts, report)
        except (AgentUnavailable, WrongState):
            refusals += 1
            if refusals >= _MOST_REFUSALS and not attempts.count:
                raise  # the machine has no agent, or is paused
            await _until_answering(machine)
            continue
        if status.code == 0:
            return
        if status.error is None:
            raise _unhealthy(machine, check, attempts, _reason(status, check))
        await _until_answering(machine)


async def _look(machine: CheckedMachine, check: HealthCheckSpec | None) -> Health:
    attempts = Attempts()
    if check is None:
        await machine.agent()
        return Health("healthy")
    status = await _run(machine, render_look(check), attempts)
    if status.error is not None:
        raise status.error
    if status.code == 0:
        return Health("healthy")
    return Health("unhealthy", attempts.output[-_OUTPUT_CHARS:])


async def _run(
    machine: CheckedMachine, argv: list[str], attempts: Attempts, report: Report = ignore_progress
) -> ExitStatus:
    """Run the command to its end. The agent's loss is the status's error, or raises AgentUnavailable."""
    channel = await machine.agent()
    session = await channel.exec(_request(machine.record, argv))
    try:
        async for stream, data in session:
            if stream == "stderr":
                attempts.feed(data)
                report(Progress("waiting until healthy", detail=_last_line(attempts.output)))
    finally:
        await session.abort()
    status: ExitStatus = session.exit
    return status


def _request(record: MachineRecord, argv: list[str]) -> ExecRequest:
    """Return the request for a check: as root, or as the container image says, as Docker does."""
    if record.container is None:
        return ExecRequest(argv=argv, stdin=False, cwd="/")
    found = resolve_command(record.container, record.spec, argv, hostname=record.hostname)
    # The repeating script needs a shell and tools, which an image may lack.
    env = {**found.env, "PATH": f"{found.env['PATH']}:{TOOLS}"}
    words = ["/bin/sh", *argv[1:]] if argv[0] == "sh" else argv
    return ExecRequest(argv=words, env=env, user=found.user, cwd=found.cwd, stdin=False, as_image=True)


async def _until_answering(machine: CheckedMachine) -> None:
    """Return when the wait may begin again. Raises MachineFailed: the machine has ended."""
    if machine.state not in LIVE:
        raise machine.ended_error("before it was healthy")
    await asyncio.sleep(RETRY_S)  # a reboot: the agent ends some time before its successor


def _unhealthy(
    machine: CheckedMachine, check: HealthCheckSpec, attempts: Attempts, reason: str
) -> CheckFailed:
    output = attempts.output[-_OUTPUT_CHARS:]
    last = _last_line(output)
    return CheckFailed(
        f"machine '{machine.name}' is unhealthy: {check.describe()}: {reason}{f': {last}' if last else ''}",
        hint=f"the machine runs on: bough exec {machine.name} -- COMMAND, or bough logs {machine.name}",
        machine=machine.name,
        check=check.describe(),
        attempts=attempts.count,
        output=output,
        console=machine.console_tail(),
    )


def _reason(status: ExitStatus, check: HealthCheckSpec) -> str:
    if status.code == GAVE_UP:
        return "the check cannot pass"
    if status.code == 1:
        plural = "failure" if check.retries == 1 else "failures in a row"
        return f"{check.retries} {plural}"
    how = f"signal {status.signal}" if status.signal else f"status {status.code}"
    return f"the check was ended by {how}"


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1][:300] if lines else ""
