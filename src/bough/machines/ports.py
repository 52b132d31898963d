"""Ports of a guest on ports of the host, carried by the agent.

Through the agent and not through the uplink: it works for a machine without a network, needs no
address of the guest, and can be added and removed while the machine runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from bough.errors import BoughError, Conflict, NotFound
from bough.guest.relay import relay
from bough.guest.session import Tunnel
from bough.machines.record import PortForward
from bough.tasks import end_tasks

Dial = Callable[[int], Awaitable[Tunnel]]
MAX_CONNECTIONS = 256


class PortServer:
    """Listens for one machine; `dial` opens a connection inside it.

    Attributes:
        machine: its name, for errors.
    """

    def __init__(self, machine: str, dial: Dial) -> None:
        self.machine = machine
        self._dial = dial
        self._servers: dict[int, asyncio.Server] = {}
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self, forward: PortForward) -> PortForward:
        """Returns the forward with the port that was really bound (0 asks for any).

        Raises:
            Conflict: the host's port is taken.
        """
        try:
            server = await asyncio.start_server(
                lambda reader, writer: self._accept(forward.guest_port, reader, writer),
                forward.host,
                forward.host_port,
            )
        except (OSError, OverflowError) as error:
            raise Conflict(
                f"port {forward.host_port} of {forward.host} cannot be used for machine "
                f"'{self.machine}': {getattr(error, 'strerror', None) or error}",
                hint="choose another port of the host, or 0 for any free one",
            ) from error
        port = int(server.sockets[0].getsockname()[1])
        self._servers[port] = server
        return forward.model_copy(update={"host_port": port})

    async def unlisten(self, host_port: int) -> None:
        server = self._servers.pop(host_port, None)
        if server is None:
            raise NotFound(f"machine '{self.machine}' has no forwarded port {host_port}")
        server.close()

    async def close(self) -> None:
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        await end_tasks(*self._connections)

    async def _accept(
        self, guest_port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            tunnel = await self._dial(guest_port)
            await relay(tunnel, reader, writer)
        except (BoughError, OSError):
            pass  # nothing listens there: the client sees its connection closed, as from a real host
        finally:
            self._connections.discard(task)
            writer.close()
