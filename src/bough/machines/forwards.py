"""The forwarded ports of a machine: in the record, and open while the machine runs."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from bough.errors import BoughError, Conflict, WrongState
from bough.guest.channel import AgentChannel
from bough.machines.ports import Dial, PortServer
from bough.machines.record import MachineRecord, PortForward
from bough.machines.state import State


class Host(Protocol):
    """The parts of a machine that Forwards uses."""

    @property
    def record(self) -> MachineRecord: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    def change(self, *, event: bool = ..., **fields: Any) -> None: ...


class Forwards:
    """The forwarded ports of one machine.

    Args:
        dial: opens a connection inside the guest.
    """

    def __init__(self, machine: Host, dial: Dial) -> None:
        self._machine = machine
        self._dial = dial
        self._server: PortServer | None = None

    async def bind(self) -> None:
        """Bind all ports of the record, before a start. The record gets the numbers of free ports.

        Raises:
            Conflict: a port is in use; none is bound.
        """
        known = self._machine.record.ports
        server = PortServer(self._machine.name, self._dial)
        try:
            bound = [await _listen(server, forward) for forward in known]
            if bound != known:
                self._machine.change(ports=bound)
        except BaseException:
            await server.close()
            raise
        self._server = server

    def begin(self) -> None:
        """Begin without ports, for an adopted machine; `bind_again` binds them."""
        self._server = PortServer(self._machine.name, self._dial)

    async def bind_again(self) -> None:
        """Bind the ports of an adopted machine, except ports that other programs use meanwhile."""
        if (server := self._server) is None:
            return
        known = self._machine.record.ports
        bound: list[PortForward] = []
        for forward in known:
            try:
                bound.append(await _listen(server, forward))
            except Conflict:
                bound.append(forward)
        if bound != known:
            self._machine.change(ports=bound)

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.close()

    async def follow(self, channel: AgentChannel) -> None:
        """Open each port while a program in the guest listens on the port."""
        if self._server is not None:
            await self._server.follow(channel)

    def rename(self, name: str) -> None:
        """Use the machine's new name in errors."""
        if self._server is not None:
            self._server.machine = name

    async def add(self, forward: PortForward) -> PortForward:
        """Add a forward; host port 0 chooses a free port. Return the forward with its port.

        Raises:
            Conflict: the port is forwarded already, or in use.
            WrongState: a free port is requested while the machine does not run.
        """
        machine = self._machine
        known = machine.record.ports
        if forward.host_port and any(one.host_port == forward.host_port for one in known):
            raise Conflict(
                f"machine '{machine.name}' forwards port {forward.host_port} already", machine=machine.name
            )
        if self._server is not None:
            forward = await self._server.listen(forward)
        elif forward.host_port == 0:
            raise WrongState(
                f"machine '{machine.name}' is {machine.state}; a free port can be chosen only while it runs",
                hint="give a port of the host",
                machine=machine.name,
            )
        machine.change(ports=[*machine.record.ports, forward])
        return forward

    async def remove(self, host_port: int) -> None:
        """Remove a forward. Raises WrongState: no such forward."""
        machine = self._machine
        left = [forward for forward in machine.record.ports if forward.host_port != host_port]
        if len(left) == len(machine.record.ports):
            raise WrongState(f"machine '{machine.name}' forwards no port {host_port}", machine=machine.name)
        if self._server is not None:
            with contextlib.suppress(BoughError):
                await self._server.unlisten(host_port)
        machine.change(ports=left)


async def _listen(server: PortServer, forward: PortForward) -> PortForward:
    """Bind a port. A free port keeps its number from start to start, unless another program has it now."""
    if forward.host_port and not forward.free:
        return await server.listen(forward)
    free = forward.model_copy(update={"free": True})
    if forward.host_port:
        with contextlib.suppress(Conflict):
            return await server.listen(free)
    return await server.listen(free.model_copy(update={"host_port": 0}))
