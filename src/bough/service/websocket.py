"""Carry bytes over a WebSocket.

An error before the socket is accepted becomes an ordinary HTTP error, the answer to the upgrade request. A
later error becomes the reason of the close message.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketState

from bough.service.answers import as_bough_error, error_response
from bough.service.disconnect import departure
from bough.tasks import end_tasks

#: Close codes 4000-4999 are for applications (RFC 6455, section 7.4.2).
CLOSED_WITH_ERROR = 4000
#: Longest time for which a guest may accept no data of a disconnected client.
LINGER_S = 60.0


class answering:
    """Send errors of the block to the client, then close the socket."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, _: Any, error: BaseException | None, __: Any) -> bool:
        socket = self._socket
        if isinstance(error, asyncio.CancelledError):
            return False
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
            if error is None:
                await socket.close()
            elif not isinstance(error, WebSocketDisconnect):
                await self._tell(socket, error)
        return True

    @staticmethod
    async def _tell(socket: WebSocket, error: BaseException) -> None:
        if socket.application_state is WebSocketState.CONNECTING:
            await socket.send_denial_response(error_response(error))
        else:
            # A reason holds 123 bytes (RFC 6455, section 5.5).
            reason = as_bough_error(error).message.encode()[:123].decode(errors="ignore")
            await socket.close(CLOSED_WITH_ERROR, reason)


async def for_each_message(socket: WebSocket, handle: Callable[[bytes], Awaitable[None]]) -> None:
    """Handle each message until the client disconnects.

    Earlier messages are still handled afterwards, while the guest makes progress with them.

    Raises:
        ConnectionAbortedError: the client disconnected, and the last messages were not handled for LINGER_S.
    """
    handled = 0

    async def take() -> None:
        nonlocal handled
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("bytes")
            await handle(data if data is not None else str(message.get("text", "")).encode())
            handled += 1

    async def give_up() -> None:
        await departure(socket).wait()
        before = -1
        while before != handled:
            before = handled
            await asyncio.sleep(LINGER_S)
        raise ConnectionAbortedError("the client disconnected, and the guest does not take its data")

    await until_first(take(), give_up())


async def ignore(_: bytes) -> None:
    pass


async def send_if_there(socket: WebSocket, data: bytes) -> None:
    """Send a message. If the client is gone, wait for ever: earlier messages of the client are still handled,
    and then the caller is cancelled.
    """
    try:
        await socket.send_bytes(data)
    except (WebSocketDisconnect, RuntimeError, OSError):
        await asyncio.Event().wait()


async def until_first(*works: Awaitable[None]) -> None:
    """Wait until one of the works has ended, and cancel the others. Raise its error, if any."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end_tasks(*tasks)


async def until_gone(inward: Awaitable[None], outward: Awaitable[None]) -> None:
    """Wait until `inward` has ended; `outward` may end before. Raise an error of either."""
    incoming, outgoing = asyncio.ensure_future(inward), asyncio.ensure_future(outward)
    try:
        await asyncio.wait({incoming, outgoing}, return_when=asyncio.FIRST_COMPLETED)
        if not incoming.done():
            outgoing.result()
        await incoming
    finally:
        await end_tasks(incoming, outgoing)
