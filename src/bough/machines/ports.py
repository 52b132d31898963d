"""Forward ports of the host to ports of a guest, through the agent.

The agent, not the uplink, carries the connections. So forwards work without a network and without the guest's
address, and can be added and removed while the machine runs.

A host port refuses connections while no program listens in the guest. So a program that waits for the port
waits for the service in the guest. The agent reports when a program listens; a connection refused in the
guest shows the program's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial

from bough.errors import BoughError, Conflict, GuestRefused, NotFound
from bough.guest.channel import AgentChannel
from bough.guest.relay import relay
from bough.guest.session import Tunnel
from bough.hangup import Hangup
from bough.machines.host_port import HostPort
from bough.machines.record import PortForward
from bough.tasks import end_tasks

log = logging.getLogger("bough.machines")

Dial = Callable[[int], Awaitable[Tunnel]]
MAX_CONNECTIONS = 256
#: How long a new forward waits for the agent's first report. The port refuses connections until then.
_FIRST_REPORT_S = 10.0


class PortServer:
    """The forwarded ports of one machine.

    Args:
        dial: opens a connection inside the guest.

    Attributes:
        machine: the machine's name, for errors.
    """

    def __init__(self, machine: str, dial: Dial) -> None:
        self.machine = machine
        self._dial = dial
        self._ports: dict[int, HostPort] = {}
        self._inside: dict[int, int] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._channel: AgentChannel | None = None
        self._changed = asyncio.Event()
        self._reported = asyncio.Event()

    async def listen(self, forward: PortForward) -> PortForward:
        """Bind the host port. Return the forward with the real port number (0 chooses a free port).

        Raises:
            Conflict: the host's port is in use.
        """
        try:
            port = HostPort(forward.host, forward.host_port)
        except (OSError, OverflowError) as error:
            raise Conflict(
                f"port {forward.host_port} of {forward.host} cannot be used for machine "
                f"'{self.machine}': {getattr(error, 'strerror', None) or error}",
                hint="choose another port of the host, or 0 for any free one",
            ) from error
        self._ports[port.number] = port
        self._inside[port.number] = forward.guest_port
        await self._look_again()
        return forward.model_copy(update={"host_port": port.number})

    async def unlisten(self, host_port: int) -> None:
        port = self._ports.pop(host_port, None)
        if port is None:
            raise NotFound(f"machine '{self.machine}' has no forwarded port {host_port}")
        port.close()
        del self._inside[host_port]
        self._changed.set()

    async def follow(self, channel: AgentChannel) -> None:
        """Open and shut ports as the agent reports. Return after the first report."""
        await self._unfollow()
        self._channel = channel
        self._following = asyncio.create_task(self._follow(channel), name=f"ports of {self.machine}")
        await self._look_again()

    async def close(self) -> None:
        await self._unfollow()
        for port in self._ports.values():
            port.close()
        self._ports.clear()
        self._inside.clear()
        await end_tasks(*self._connections)

    # -- reports of the agent ---------------------------------------------------------------------

    async def _look_again(self) -> None:
        """Have the agent check the shut ports, and wait for the report."""
        if self._following is None or self._following.done() or not self._shut_ports():
            return
        self._reported.clear()
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_REPORT_S):
                await self._reported.wait()

    async def _unfollow(self) -> None:
        if self._following is not None:
            await end_tasks(self._following)
            self._following = None

    async def _follow(self, channel: AgentChannel) -> None:
        """Follow the reports until the agent's session ends. Then all ports are shut."""
        try:
            while True:
                self._changed.clear()
                if wanted := self._shut_ports():
                    await self._follow_until_changed(channel, wanted)
                else:
                    self._reported.set()
                    await self._changed.wait()
        except GuestRefused as error:
            # An agent of an older bough does not report ports. Each connection attempt shows whether a
            # program listens.
            log.info("the agent of machine %s does not report its ports: %s", self.machine, error.message)
            await self._open(set(self._inside.values()))
        except BoughError:
            for port in self._ports.values():
                port.shut()
        finally:
            self._reported.set()

    async def _follow_until_changed(self, channel: AgentChannel, wanted: set[int]) -> None:
        watch = await channel.watch_ports(sorted(wanted))
        changed = asyncio.ensure_future(self._changed.wait())
        report: asyncio.Future[set[int]] | None = None
        try:
            while not changed.done():
                report = asyncio.ensure_future(watch.report())
                await asyncio.wait({report, changed}, return_when=asyncio.FIRST_COMPLETED)
                if report.done():
                    await self._open(report.result() & wanted)
                    self._reported.set()
                    if not self._shut_ports():
                        return
        finally:
            await end_tasks(*(task for task in (changed, report) if task is not None))  # type: ignore[arg-type]
            await watch.abort()

    def _shut_ports(self) -> set[int]:
        """Return the shut ports of the guest."""
        return {self._inside[number] for number, port in self._ports.items() if not port.is_open}

    async def _open(self, guest_ports: set[int]) -> None:
        for number, port in list(self._ports.items()):
            inside = self._inside[number]
            if inside in guest_ports:
                try:
                    await port.open(partial(self._accept, inside))
                except OSError as error:
                    log.warning("cannot listen on port %d of machine %s: %s", number, self.machine, error)

    def _shut(self, guest_port: int) -> None:
        for number, port in self._ports.items():
            if self._inside[number] == guest_port:
                port.shut()
        self._changed.set()

    # -- connections ------------------------------------------------------------------------------

    async def _accept(
        self, guest_port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        sock: socket.socket = writer.get_extra_info("socket")
        # After a power loss of the client's host no packet comes any more.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        hangup = Hangup(sock, reset_only=True)
        try:
            await self._carry(guest_port, reader, writer, hangup)
        finally:
            hangup.close()
            self._connections.discard(task)
            writer.close()

    async def _carry(
        self,
        guest_port: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        hangup: Hangup,
    ) -> None:
        try:
            tunnel = await self._dial(guest_port)
        except (BoughError, OSError) as error:
            _reset(writer)
            refused = isinstance(error, GuestRefused) and error.details.get("errno") == "ECONNREFUSED"
            if refused and self._following is not None and not self._following.done():
                self._shut(guest_port)
            return
        acknowledge = partial(_acknowledge, writer.get_extra_info("socket"))
        carrying = asyncio.create_task(relay(tunnel, reader, writer, acknowledge))
        gone = asyncio.create_task(hangup.seen.wait())
        try:
            await asyncio.wait({carrying, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(carrying, gone)


def _acknowledge(sock: socket.socket) -> None:
    """Acknowledge at once. A client with Nagle's algorithm waits for the acknowledgement before the next
    bytes, 40 ms by default.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Reset the connection, so that the client sees a refusal, although late."""
    sock: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
