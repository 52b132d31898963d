"""What flows both ways: exec, console, tunnel; and events and holds, over WebSocket.

An error before the socket is accepted is the answer to its upgrade request, an ordinary HTTP error.
Afterwards it is the last message (exec) or the close's reason.

Exec's binary messages carry their channel in the first byte, numbered as in Kubernetes' remote
command protocol v5: stdin 0, stdout 1, stderr 2, status 3, resize 4, close 255; 5 sends a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.websockets import WebSocketState

from bough.errors import BoughError, DeadlineExceeded, InvalidInput
from bough.guest.qga import QgaExec
from bough.guest.session import ExecRequest, ExecSession
from bough.hypervisor import Hypervisor
from bough.machines.console import read_console
from bough.machines.machine import Machine
from bough.service.answers import as_bough_error, error_response

STDIN, STDOUT, STDERR, STATUS, RESIZE, SIGNAL, CLOSE = 0, 1, 2, 3, 4, 5, 255
FIRST_MESSAGE_TIMEOUT_S = 30.0
#: Messages of a client (256 KiB each at most, by ours) that wait for a command that does not read.
_INBOX_MESSAGES = 16
BACKLOG_BYTES = 16 * 1024
#: Close codes 4000-4999 are for applications (RFC 6455, section 7.4.2).
CLOSED_WITH_ERROR = 4000


class ExecMessage(BaseModel):
    """The first message of an exec, as text."""

    model_config = ConfigDict(extra="forbid")
    argv: list[str] = Field(min_length=1, max_length=4096)
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None
    tty: bool = False
    rows: int = Field(24, ge=1, le=4096)
    columns: int = Field(80, ge=1, le=4096)
    term: str = "xterm"
    timeout_s: float | None = Field(None, gt=0)

    def request(self) -> ExecRequest:
        return ExecRequest(**self.model_dump(exclude={"timeout_s"}))


def routes(hypervisor: Hypervisor) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.websocket("/machines/{reference}/exec")
    async def exec_in_machine(socket: WebSocket, reference: str) -> None:
        async with _answering(socket):
            machine = hypervisor.machine(reference)
            channel = await machine.agent()
            await socket.accept()
            try:
                message = await _first_message(socket)
                session = await channel.exec(message.request())
            except BoughError as error:
                await _send_status(socket, error=error)
                return
            await _carry_exec(socket, session, machine, message.timeout_s)

    @router.websocket("/machines/{reference}/console")
    async def attach_console(socket: WebSocket, reference: str, backlog: bool = False) -> None:
        async with _answering(socket):
            machine = hypervisor.machine(reference)
            console = machine.console()
            await socket.accept()
            queue = console.attach()
            try:
                if backlog:
                    await socket.send_bytes(read_console(machine.paths.console_log, BACKLOG_BYTES).encode())

                async def outward() -> None:
                    while (data := await queue.get()) is not None:
                        await socket.send_bytes(data)

                await _until_first(outward(), _for_each_message(socket, console.write))
            finally:
                console.detach(queue)

    @router.websocket("/machines/{reference}/tunnel")
    async def open_tunnel(socket: WebSocket, reference: str, port: int) -> None:
        async with _answering(socket):
            if not 1 <= port <= 65535:
                raise InvalidInput(f"a TCP port is between 1 and 65535, not {port}")
            tunnel = await (await hypervisor.machine(reference).agent()).dial(port)
            await socket.accept()

            async def outward() -> None:
                while data := await tunnel.read():
                    await socket.send_bytes(data)
                await socket.send_bytes(b"")

            async def inward(data: bytes) -> None:
                await (tunnel.write(data) if data else tunnel.write_eof())

            try:
                # The client closes when it has seen the end of the guest's direction.
                await _until_all(outward(), _for_each_message(socket, inward))
            finally:
                await tunnel.close()

    @router.websocket("/machines/{reference}/hold")
    async def hold_machine(socket: WebSocket, reference: str) -> None:
        async with _answering(socket):
            machine = hypervisor.machine(reference)
            await socket.accept()
            with hypervisor.hold(machine):
                await _for_each_message(socket, _ignore)

    @router.websocket("/events")
    async def watch_events(socket: WebSocket, since: str | None = None) -> None:
        async with _answering(socket):
            await socket.accept()

            async def outward() -> None:
                async for event in hypervisor.events.watch(since):
                    await socket.send_text(json.dumps(event.to_dict()))

            await _until_first(outward(), _for_each_message(socket, _ignore))

    return router


# -- exec ---------------------------------------------------------------------------------------


async def _first_message(socket: WebSocket) -> ExecMessage:
    try:
        text = await asyncio.wait_for(socket.receive_text(), FIRST_MESSAGE_TIMEOUT_S)
        return ExecMessage.model_validate_json(text)
    except (ValidationError, KeyError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "not text"}
        place = ".".join(str(part) for part in problem["loc"])
        raise InvalidInput(f"the first message of an exec is not right: {place}: {problem['msg']}") from error
    except TimeoutError:
        raise DeadlineExceeded("no first message came", hint="send what is to be run as JSON") from None


async def _carry_exec(
    socket: WebSocket, session: ExecSession | QgaExec, machine: Machine, timeout_s: float | None
) -> None:
    """Carry the streams until the command has ended. A client that goes away takes the command with it."""
    failure: BoughError | None = None
    inbox: asyncio.Queue[bytes] = asyncio.Queue(_INBOX_MESSAGES)

    async def inward() -> None:
        # A queue between the socket and the guest: a command that does not read its input must not
        # keep us from seeing that its client has gone.
        feeding = asyncio.create_task(_feed(session, inbox))
        try:
            await _until_first(_for_each_message(socket, inbox.put), _raise_from(feeding))
        finally:
            feeding.cancel()

    async def outward() -> None:
        async for stream, data in session:
            await socket.send_bytes(bytes([STDOUT if stream == "stdout" else STDERR]) + data)

    try:
        async with asyncio.timeout(timeout_s):
            await _until_first(outward(), inward())
    except TimeoutError:
        text = f"the command did not end within {timeout_s:g} s and was killed"
        failure = DeadlineExceeded(text, machine=machine.name)
    except BoughError as error:
        failure = error
    finally:
        await session.abort()
    ended = session.exit
    await _send_status(socket, code=ended.code, signal=ended.signal, error=failure or ended.error)


async def _send_status(
    socket: WebSocket, *, code: int | None = None, signal: str | None = None, error: BoughError | None = None
) -> None:
    status = {"exit_code": code, "signal": signal, "error": error.to_dict() if error else None}
    if socket.client_state is WebSocketState.CONNECTED:
        await socket.send_bytes(bytes([STATUS]) + json.dumps(status).encode())


async def _feed(session: ExecSession | QgaExec, inbox: asyncio.Queue[bytes]) -> None:
    while True:
        await _handle_exec_message(session, await inbox.get())


async def _raise_from(task: asyncio.Task[None]) -> None:
    await task


async def _handle_exec_message(session: ExecSession | QgaExec, message: bytes) -> None:
    if not message:
        raise InvalidInput("an exec message without a channel")
    channel, data = message[0], message[1:]
    if channel == STDIN:
        await session.write(data)
    elif channel == CLOSE:
        await session.close_stdin()
    elif channel in (RESIZE, SIGNAL):
        try:
            value = json.loads(data)
            if channel == RESIZE:
                await session.resize(int(value["rows"]), int(value["columns"]))
            else:
                await session.signal(str(value["name"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"exec channel {channel} takes JSON as documented: {error}") from error
    else:
        raise InvalidInput(f"exec has no channel {channel}")


# -- carrying -----------------------------------------------------------------------------------


class _answering:
    """Errors of the block go to the client; then the socket is closed."""

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


async def _for_each_message(socket: WebSocket, handle: Callable[[bytes], Awaitable[None]]) -> None:
    """Until the client closes."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        data = message.get("bytes")
        await handle(data if data is not None else str(message.get("text", "")).encode())


async def _ignore(_: bytes) -> None:
    pass


async def _until_first(*works: Awaitable[None]) -> None:
    """Until one of them has ended; the others are cancelled. An error of any is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until_all(*works: Awaitable[None]) -> None:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
