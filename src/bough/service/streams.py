"""The streams except commands (see commands.py): console, tunnel, events, holds."""

from __future__ import annotations

import contextlib
import json

from fastapi import WebSocket

from bough.contract.host import HoldMachine, WatchEvents
from bough.contract.ports import OpenTunnel
from bough.contract.screen import AttachConsole
from bough.errors import InvalidInput
from bough.guest.session import Tunnel
from bough.hypervisor import Hypervisor
from bough.machines.console import read_console
from bough.service.routes import Routes
from bough.service.websocket import (
    answering,
    for_each_message,
    ignore,
    send_if_there,
    until_first,
    until_gone,
)

BACKLOG_BYTES = 16 * 1024


def add_routes(routes: Routes) -> None:
    routes.stream(AttachConsole, attach_console)
    routes.stream(OpenTunnel, open_tunnel)
    routes.stream(HoldMachine, hold_machine)
    routes.stream(WatchEvents, watch_events)


async def attach_console(hypervisor: Hypervisor, asked: AttachConsole, socket: WebSocket) -> None:
    async with answering(socket):
        machine = hypervisor.machines.find(asked.reference)
        console = machine.console()
        await socket.accept()
        queue = console.attach()
        try:

            async def outward() -> None:
                if asked.backlog:
                    backlog = read_console(machine.paths.console_log, BACKLOG_BYTES)
                    await send_if_there(socket, backlog.encode())
                while (data := await queue.get()) is not None:
                    await send_if_there(socket, data)

            await until_first(outward(), for_each_message(socket, console.write))
        finally:
            console.detach(queue)


async def open_tunnel(hypervisor: Hypervisor, asked: OpenTunnel, socket: WebSocket) -> None:
    async with answering(socket):
        if not 1 <= asked.port <= 65535:
            raise InvalidInput(f"a TCP port is between 1 and 65535, not {asked.port}")
        tunnel = await (await hypervisor.machines.find(asked.reference).agent()).dial(asked.port)
        try:
            await socket.accept()
            await _carry(socket, tunnel)
            await tunnel.close()
        finally:
            await tunnel.abort()


async def hold_machine(hypervisor: Hypervisor, asked: HoldMachine, socket: WebSocket) -> None:
    async with answering(socket):
        machine = hypervisor.machines.find(asked.reference)
        await socket.accept()
        with hypervisor.lifetimes.hold(machine):
            await for_each_message(socket, ignore)


async def watch_events(hypervisor: Hypervisor, asked: WatchEvents, socket: WebSocket) -> None:
    async with answering(socket):
        await socket.accept()

        async def outward() -> None:
            async for event in hypervisor.events.watch(asked.since):
                await socket.send_text(json.dumps(event.to_dict()))

        await until_first(outward(), for_each_message(socket, ignore))


async def _carry(socket: WebSocket, tunnel: Tunnel) -> None:
    """Carry bytes until the client disconnects.

    A client closes after the end of the guest's data.
    """

    async def outward() -> None:
        while data := await tunnel.read():
            await send_if_there(socket, data)
        await send_if_there(socket, b"")

    async def inward(data: bytes) -> None:
        # A guest that accepts no more data may still send some.
        with contextlib.suppress(BrokenPipeError):
            await (tunnel.write(data) if data else tunnel.write_eof())

    await until_gone(for_each_message(socket, inward), outward())
