"""A machine's view of the guest: the channel to the agent, and the setup after the agent's answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from bough.errors import AgentTimeout, BoughError, GuestRefused
from bough.guest.channel import AgentChannel
from bough.guest.qga import QgaChannel
from bough.machines.boot import Boot
from bough.machines.clock import set_clock
from bough.machines.first_boot import set_up_guest
from bough.machines.forwards import Forwards
from bough.machines.identity import (
    BECOME,
    explain,
    explain_failed,
    give_identity,
    render_identity,
    settle_identity,
)
from bough.machines.mounts import default_owner
from bough.machines.nics import render_links, uplink_addresses
from bough.machines.program import ContainerProgram
from bough.machines.record import MachineRecord
from bough.machines.state import State
from bough.mounts.keeper import MountKeeper
from bough.paths import MachinePaths
from bough.progress_watch import ProgressWatch
from bough.qemu.emulation import gives_way

T = TypeVar("T")

log = logging.getLogger("bough.machines")

#: A booting guest may be silent for minutes.
_HELLO_S = 3600.0
_SETTLE_AFTER_S = 3.0
_SETTLE_AFTER_ON_KVM_S = 0.2
#: Bound of the wait for a guest that does not answer (hung or paused), before the next guest settles.
_SETTLE_TURN_S = 5.0
_SET_LINKS_S = 60.0
_settle_turn = asyncio.Semaphore(1)


class Host(Protocol):
    """The parts of a machine that a Guest uses."""

    @property
    def record(self) -> MachineRecord: ...

    paths: MachinePaths
    mounts: MountKeeper
    forwards: Forwards
    boot: Boot
    program: ContainerProgram

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    def change(self, **fields: Any) -> None: ...
    def own(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]: ...
    def tell(self, kind: str, detail: str = "") -> None: ...
    def stand_back(self, back: bool = True) -> None: ...
    def watch(self, quiet_s: float) -> ProgressWatch: ...


class Guest:
    """The guest of one machine.

    Attributes:
        channel: None while no QEMU runs.
        answers: the agent has said hello, and the port is open.
        ready: set when the agent has answered and the first boot's setup is done. Always set for a guest
            without bough's agent.
        port_closed: set when QEMU has reported that the guest closed the port. QEMU reports at most once a
            second.
    """

    def __init__(self, machine: Host) -> None:
        self._machine = machine
        self.channel: AgentChannel | QgaChannel | None = None
        self.answers = False
        self.ready = asyncio.Event()
        self.port_closed = asyncio.Event()
        #: The guest continues from a saved state and was not greeted since.
        self._awake = False
        self._greeting: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None

    @property
    def agent(self) -> AgentChannel | None:
        """Return the channel to bough's agent if the agent answers, or None."""
        return self.channel if self.answers and isinstance(self.channel, AgentChannel) else None

    @property
    def boot_id(self) -> str | None:
        """Return the id of the guest's boot, from the agent's last hello."""
        facts = self.channel.facts if isinstance(self.channel, AgentChannel) else None
        return facts.boot_id or None if facts is not None else None

    async def connect(self, *, same_addresses: bool) -> None:
        """Connect to a QEMU that was just started or adopted. Raises BoughError, OSError.

        Args:
            same_addresses: as in AgentChannel.
        """
        machine = self._machine
        self.answers = self._awake = False
        self.ready.clear()
        if machine.record.image_agent:
            self.channel = await AgentChannel.connect(machine.paths.agent_socket, machine=machine.name)
            self.channel.same_addresses = same_addresses
            self.channel.on_restart = self._agent_restarted
        else:
            self.ready.set()
            self.channel = await QgaChannel.connect(machine.paths.agent_socket, machine=machine.name)
        self.channel.patience = machine.watch

    async def close(self) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None
        self.answers = False
        await self._machine.mounts.close()
        channel, self.channel = self.channel, None
        if channel is not None:
            with contextlib.suppress(BoughError, OSError):
                await channel.close()

    def greet(self, *, awake: bool = False) -> None:
        """Say hello until the agent answers, however long the boot takes. Runs in a task.

        Args:
            awake: the guest is about to continue from a saved state; the hello carries its new identity.
        """
        self._awake = self._awake or awake
        if self._greeting is not None:
            self._greeting.cancel()
        self._greeting = self._machine.own(self._greet(), "greet agent")

    def port_changed(self, is_open: bool) -> None:
        """Note that the guest opened or closed the port: a reboot, or a restart of the agent."""
        if is_open:
            self.port_closed.clear()
        else:
            self.port_closed.set()
        if self.channel is None:
            return
        if not is_open:
            if self.answers:
                log.info("machine %s: its agent, or the guest, closed the port", self._machine.name)
            self.answers = False
            if self._machine.record.image_agent:
                self.ready.clear()
            self.channel.guest_closed()
        elif not self.answers and (self._greeting is None or self._greeting.done()):
            self.greet()

    def _agent_restarted(self) -> None:
        """Greet a new agent whose start QEMU has not reported: QEMU reports the port at most
        once a second.
        """
        log.info("machine %s: another agent has started", self._machine.name)
        self.answers = False
        self.ready.clear()
        self.greet()

    @property
    def is_talked_to(self) -> bool:
        return isinstance(self.channel, AgentChannel) and self.channel.has_sessions

    @property
    def settling(self) -> bool:
        return self._settling is not None and not self._settling.done()

    def settle_soon(self) -> None:
        """Have the agent write the rest of a new identity to the guest's disk, in a task. No caller waits."""
        channel = self.agent
        if channel is not None and not self.settling:
            self._settling = self._machine.own(self._wait_and_settle(channel), "wait to settle")

    async def _greet(self) -> None:
        machine, channel = self._machine, self.channel
        assert channel is not None
        told_at: float | None = None
        try:
            while not self.answers:
                with contextlib.suppress(AgentTimeout):
                    told_at = await self._hello(channel)
                    self.answers = True
            machine.tell("agent-answers")
            if isinstance(channel, AgentChannel):
                self._forget_lost_identity(channel)
                if machine.record.identity != "known":
                    await self._tell_identity(channel, told_at)
                await self._set_links(channel)
                await machine.forwards.follow(channel)
                if not machine.record.first_boot.done:
                    done = await set_up_guest(channel, machine.record, lambda: self._mount(channel))
                    machine.change(first_boot=done)
                    if done.error:
                        machine.tell("first-boot-failed", ", ".join(done.failed))
                else:
                    await self._mount(channel)
                if not await machine.program.follow(channel):
                    return  # the guest powers off, or is powered off
            elif machine.record.identity != "known":
                await self._tell_time(channel)
            self.ready.set()
            if isinstance(channel, AgentChannel):
                machine.boot.follow(channel)
        except BoughError as error:
            # The socket ended, or the guest's answers are malformed. The machine's state follows the process.
            self.answers = False
            machine.tell("agent-lost", error.message)

    async def _hello(self, channel: AgentChannel | QgaChannel) -> float | None:
        """Say hello. Return when (time.monotonic) the identity was sent with the hello, or None: a guest that
        continues from a saved state is woken once for both.
        """
        record = self._machine.record
        if not (self._awake and isinstance(channel, AgentChannel) and record.identity != "known"):
            await channel.hello(timeout_s=_HELLO_S)
            return None
        self._awake = False
        first = (BECOME, render_identity(record))
        told_at = time.monotonic()
        await channel.hello(timeout_s=_HELLO_S, first=first)
        return told_at

    def _forget_lost_identity(self, channel: AgentChannel) -> None:
        """Send the identity again if the guest rebooted and the read-only disk could not keep
        the identity.
        """
        record, boot = self._machine.record, _boot_of(channel)
        if record.identity_boot is not None and record.identity_boot != boot and record.identity == "known":
            self._machine.change(identity="new", identity_boot=None)

    async def _tell_identity(self, channel: AgentChannel, told_at: float | None) -> None:
        """Send the identity and the time. A fork is ready only with both."""
        machine = self._machine
        try:
            taken = await give_identity(channel, machine.record, told_at=told_at)
        except GuestRefused as error:  # an agent of an older bough stops at the first failed part
            machine.change(identity="known", identity_error=explain(error))
            machine.tell("identity-failed", explain(error))
            return
        failed = explain_failed(taken)
        if failed is not None:
            machine.tell("identity-failed", failed)
        boot = _boot_of(channel) if taken.volatile and machine.record.identity == "new" else None
        if (failed, boot) != (machine.record.identity_error, machine.record.identity_boot):
            machine.change(identity_error=failed, identity_boot=boot)
        if machine.record.identity == "new":
            self.settle_soon()
        else:
            machine.change(identity="known")

    async def _set_links(self, channel: AgentChannel) -> None:
        """Set addresses and names of the cards on networks between machines.

        An agent from the agent disk also configures the uplink, if nothing in the guest does.
        """
        links: dict[str, Any] = {"links": render_links(self._machine.record)}
        if channel.facts is not None and channel.facts.own_programs:
            links["uplinks"] = uplink_addresses(self._machine.record)
        if any(links.values()):
            # An agent of an older bough does not know the operation: the guest asks by DHCP.
            with contextlib.suppress(GuestRefused):
                await channel.call("set_links", links, timeout_s=_SET_LINKS_S)

    async def _tell_time(self, channel: QgaChannel) -> None:
        """Set the clock of a guest with qemu-guest-agent, which supports no other part of an identity."""
        with contextlib.suppress(GuestRefused):
            await set_clock(channel, self._machine.record)
        if self._machine.record.identity == "clock":
            self._machine.change(identity="known")

    async def _mount(self, channel: AgentChannel) -> None:
        machine = self._machine
        await machine.mounts.establish(
            channel, machine.record.spec.mounts, default_owner=default_owner(machine.record)
        )

    async def _wait_and_settle(self, channel: AgentChannel) -> None:
        # Wait, and settle one machine at a time: settling would slow down forks that start now.
        is_slow = gives_way(self._machine.record.accelerator)
        await asyncio.sleep(_SETTLE_AFTER_S if is_slow else _SETTLE_AFTER_ON_KVM_S)
        try:
            async with _settle_turn:
                if self._machine.state is State.PAUSED:
                    return  # resume() settles it
                settling = self._machine.own(self._settle(channel), "settle identity")
                await asyncio.wait({settling}, timeout=_SETTLE_TURN_S)
            await settling
        finally:
            self._machine.stand_back(False)

    async def _settle(self, channel: AgentChannel) -> None:
        with contextlib.suppress(BoughError):  # a guest that dies first gets the identity at the next boot
            await settle_identity(channel, self._machine.record)
            self._machine.change(identity="known", mac_before=None)


def _boot_of(channel: AgentChannel) -> str:
    return channel.facts.boot_id[:64] if channel.facts else ""
