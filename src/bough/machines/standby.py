"""A standby machine (forks/standby.py), paused or idle, until a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from bough.errors import AgentUnavailable, GuestRefused
from bough.guest.channel import AgentChannel
from bough.machines.clock import host_ahead_s, set_clock
from bough.machines.identity import explain_failed, give_name
from bough.machines.record import MachineRecord, now, qualified
from bough.machines.state import State
from bough.qemu.qmp import Qmp

#: Largest jump of the host's clock (a step, or a sleep of the host) at which the guest's clock still counts
#: as right.
_CLOCK_ERROR_S = 0.02


class Host(Protocol):
    """The parts of a machine that a Standby uses."""

    @property
    def record(self) -> MachineRecord: ...

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    def operation(self, doing: str, *allowed: State) -> AbstractAsyncContextManager[None]: ...
    def channel(self) -> AgentChannel | None: ...
    def qmp(self) -> Qmp: ...
    def change(self, *, event: bool = ..., **fields: Any) -> None: ...
    def renamed(self) -> None: ...


class Standby:
    def __init__(self, machine: Host) -> None:
        self._machine = machine
        #: Difference of the host's clock and monotonic clock when the guest's clock was last right.
        self._ahead_s = 0.0

    async def exercise(self) -> None:
        """Run the steps of `take`, then pause the machine again. QEMU has then translated the code for these
        steps.
        """
        machine = self._machine
        async with machine.operation("starting", State.PAUSED):
            for name in (machine.name, None):
                await self._wake(name)
                await machine.qmp().execute("stop")

    async def let_run(self) -> None:
        """Let the vCPUs run, so that the standby machine idles. No effect if the vCPUs run already."""
        machine = self._machine
        if machine.state is State.RUNNING:
            return
        async with machine.operation("starting", State.PAUSED):
            await self._wake(None)
            machine.change(state=State.RUNNING)

    async def take(self, *, name: str | None, ephemeral: bool) -> None:
        """Give the machine to a user: running, with the right time.

        Args:
            name: its new name; None keeps its name.

        Raises BoughError: the machine is useless.
        """
        machine, moment = self._machine, now()
        asked: dict[str, Any] = {"ephemeral": ephemeral, "created": moment, "started": moment}
        if name is not None:
            asked |= {"name": name, "identity": "new"}  # until the name is on the guest's disk

        def belong_to_the_user() -> None:
            machine.change(event=True, state=State.RUNNING, standby=False, **asked)

        async with machine.operation("starting", State.PAUSED, State.RUNNING):
            await self._wake(name, belong_to_the_user)
        if name is not None:
            machine.renamed()

    async def _wake(self, name: str | None, meanwhile: Callable[[], None] = lambda: None) -> None:
        machine = self._machine
        channel, runs = machine.channel(), machine.state is State.RUNNING
        if channel is None:
            raise AgentUnavailable(
                f"the agent of machine '{machine.name}' does not answer", machine=machine.name
            )
        # The request is in the agent's port before the vCPUs run, so the guest reads the request first.
        answer = asyncio.create_task(self._ask(channel, name, runs))
        await asyncio.sleep(0)
        try:
            if not runs:
                await machine.qmp().execute("cont")
            meanwhile()  # while the guest prepares the answer
            await answer
        finally:
            answer.cancel()
        self._ahead_s = host_ahead_s()

    async def _ask(self, channel: AgentChannel, name: str | None, runs: bool) -> None:
        if name is not None:
            record = self._machine.record
            taken = await give_name(channel, record, qualified(name, record.domain))
            if taken.failed:
                raise GuestRefused(str(explain_failed(taken)), machine=self._machine.name)
        elif runs and abs(host_ahead_s() - self._ahead_s) < _CLOCK_ERROR_S:
            await channel.ping()  # the guest's clock ran along with the host's
        else:
            await set_clock(channel, self._machine.record)
