"""exec and run: a command in a machine, over WebSocket.

The first byte of a binary message is the channel. stdin is 0, stdout 1, stderr 2, status 3, resize 4 and
close 255, as in Kubernetes' remote command protocol v5. Channel 5 sends a signal. The client's first message
is text: the request as JSON. The service's last message is the status. `run` also sends progress as text.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeAlias, TypeVar

from fastapi import WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketState

from bough.contract.commands import (
    CLOSE,
    RESIZE,
    SIGNAL,
    STATUS,
    STDERR,
    STDIN,
    STDOUT,
    Command,
    ExecInMachine,
    RunCommand,
    RunInMachine,
)
from bough.contract.message import Message
from bough.errors import BoughError, Conflict, DeadlineExceeded, GuestRefused, InvalidInput
from bough.guest.channel import AgentChannel
from bough.guest.qga import QgaChannel, QgaExec
from bough.guest.session import ExecSession
from bough.hypervisor import Hypervisor
from bough.machines.guest_watch import watch_guest
from bough.machines.machine import Machine
from bough.progress import Progress
from bough.progress_watch import Stalled
from bough.service.answers import as_bough_error
from bough.service.command_request import command_of_run, request_of, with_shell_status
from bough.service.disconnect import departure
from bough.service.models import message_model, to_message
from bough.service.routes import Routes
from bough.service.websocket import answering, for_each_message, until_first
from bough.tasks import end_tasks
from bough.version import __version__

FIRST_MESSAGE_TIMEOUT_S = 30.0
#: Number of waiting messages while the command does not read. bough's client sends at most 256 KiB in a
#: message.
_INBOX_MESSAGES = 16

Session: TypeAlias = ExecSession | QgaExec
T = TypeVar("T")
M = TypeVar("M", bound=Message)


def add_routes(routes: Routes) -> None:
    routes.stream(ExecInMachine, exec_in_machine)
    routes.stream(RunInMachine, run_in_machine)


async def exec_in_machine(hypervisor: Hypervisor, asked: ExecInMachine, socket: WebSocket) -> None:
    async with answering(socket):
        _check_version(asked.client)
        machine = hypervisor.machines.find(asked.reference)
        channel = await machine.agent()
        await socket.accept()
        async with _inbox_of(socket) as inbox:
            try:
                command = await _first_message(inbox, Command)
                session = await inbox.unless_gone(_begin(channel, command, machine))
                if session is None:
                    return
                status = await _carry(socket, session, machine, command, inbox)
            except BoughError as error:
                status = _status(error=error)
            await _send_status(socket, status)


async def run_in_machine(hypervisor: Hypervisor, asked: RunInMachine, socket: WebSocket) -> None:
    async with answering(socket):
        _check_version(asked.client)
        await socket.accept()
        async with _inbox_of(socket) as inbox:
            try:
                message = await _first_message(inbox, RunCommand)
                status = await _run(hypervisor, socket, message, inbox)
            except Exception as error:
                status = _status(error=as_bough_error(error))
            if status is not None:
                await _send_status(socket, status)


async def _begin(channel: AgentChannel | QgaChannel, command: Command, machine: Machine) -> Session:
    """Start a command. Raises GuestRefused, with a shell's exit status for a container image's command."""
    request = request_of(command, machine)
    try:
        return await channel.exec(request)
    except GuestRefused as error:
        raise with_shell_status(error, request) from None


def _check_version(client: str | None) -> None:
    """Refuse a client of another version.

    A fast client skips the version check. When refused, the client checks the version.
    """
    if client is not None and client != __version__:
        raise Conflict(f"the service is bough {__version__}, the client is bough {client[:40]}")


class _Inbox:
    """The messages of a client, received as they arrive.

    The service must notice a disconnected client even if the command does not read its input.
    """

    def __init__(self, filling: asyncio.Task[None], messages: asyncio.Queue[bytes]) -> None:
        #: Ends when the client has closed.
        self.filling = filling
        self.messages = messages

    async def unless_gone(self, work: Awaitable[T]) -> T | None:
        """Return the result of `work`; None if the client disconnected before and the work was cancelled."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self.filling}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            await end_tasks(task)


@contextlib.asynccontextmanager
async def _inbox_of(socket: WebSocket) -> AsyncIterator[_Inbox]:
    messages: asyncio.Queue[bytes] = asyncio.Queue(_INBOX_MESSAGES)
    # The last messages of a disconnected client are dropped, because the command ends.
    filling = asyncio.create_task(
        until_first(for_each_message(socket, messages.put), _until(departure(socket)))
    )
    try:
        yield _Inbox(filling, messages)
    finally:
        await end_tasks(filling)


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _first_message(inbox: _Inbox, kind: type[M]) -> M:
    try:
        async with asyncio.timeout(FIRST_MESSAGE_TIMEOUT_S):
            text = await inbox.unless_gone(inbox.messages.get())
        return to_message(kind, message_model(kind).model_validate_json(text or b""))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise InvalidInput(f"the first message is not valid: {place}: {problem['msg']}") from error
    except TimeoutError:
        raise DeadlineExceeded("no first message arrived", hint="send the command as JSON") from None


async def _run(
    hypervisor: Hypervisor, socket: WebSocket, message: RunCommand, inbox: _Inbox
) -> dict[str, Any] | None:
    """Return the status of the command; None without a command, or if the client has disconnected."""
    machine = await _make_machine(hypervisor, socket, message, inbox)
    if machine is None:
        return None
    command = command_of_run(message, machine)
    told = {"machine": {"id": machine.id, "name": machine.name}, "shell": command is message.shell}
    ready = json.dumps(told)
    if command is None:
        # After a restart of the service, the client returns to the machine.
        with hypervisor.lifetimes.hold(machine):
            await socket.send_text(ready)
            await inbox.filling
        return None
    with hypervisor.lifetimes.hold(machine, grace_s=0):
        try:
            await socket.send_text(ready)
            return await _run_in(machine, command, socket, inbox)
        finally:
            hypervisor.lifetimes.discard(machine)  # in the background: no client waits for the deletion


async def _make_machine(
    hypervisor: Hypervisor, socket: WebSocket, message: RunCommand, inbox: _Inbox
) -> Machine | None:
    """Return the new machine, and send the progress meanwhile. None: the client has disconnected."""
    steps: asyncio.Queue[Progress | None] = asyncio.Queue()

    async def tell() -> None:
        while (step := await steps.get()) is not None:
            await socket.send_text(json.dumps({"progress": step.__dict__}))

    telling = asyncio.create_task(tell())
    try:
        machine = await inbox.unless_gone(
            hypervisor.running.run(
                message.spec,
                name=message.name,
                force=message.force,
                ephemeral=True,
                cold=message.cold,
                program=message.program and message.command is None,
                timeout_s=message.timeout_s,
                report=steps.put_nowait,
            )
        )
        steps.put_nowait(None)
        # A notice stays on the terminal, so the client gets it before the machine.
        await asyncio.wait({telling, inbox.filling}, return_when=asyncio.FIRST_COMPLETED)
        return machine
    finally:
        await end_tasks(telling)


async def _run_in(
    machine: Machine, command: Command, socket: WebSocket, inbox: _Inbox
) -> dict[str, Any] | None:
    """Return the status of the command. None: the client disconnected before the command began."""
    channel = await machine.agent()
    session = await inbox.unless_gone(_begin(channel, command, machine))
    if session is None:
        return None
    return await _carry(socket, session, machine, command, inbox)


async def _carry(
    socket: WebSocket,
    session: Session,
    machine: Machine,
    command: Command,
    inbox: _Inbox,
) -> dict[str, Any]:
    """Carry the streams until the command has ended, and return its status.

    If the client disconnects, the command is ended.
    """
    failure: BoughError | None = None

    async def feed() -> None:
        while True:
            await _handle_message(session, await inbox.messages.get())

    async def outward() -> None:
        async for stream, data in session:
            await socket.send_bytes(bytes([STDOUT if stream == "stdout" else STDERR]) + data)

    try:
        async with asyncio.timeout(command.timeout_s):
            await _patiently(
                machine, command.patience_s, until_first(outward(), feed(), asyncio.shield(inbox.filling))
            )
    except Stalled:
        text = f"the command did not end within {command.patience_s:g} s of the guest and was killed"
        failure = DeadlineExceeded(text, machine=machine.name)
    except TimeoutError:
        text = f"the command did not end within {command.timeout_s:g} s and was killed"
        failure = DeadlineExceeded(text, machine=machine.name)
    except BoughError as error:
        failure = error
    finally:
        await session.abort()
    ended = session.exit
    return _status(code=ended.code, signal=ended.signal, error=failure or ended.error)


async def _patiently(machine: Machine, patience_s: float | None, work: Awaitable[None]) -> None:
    """Wait for `work` until the guest has had `patience_s` for itself. Raises Stalled.

    No sign of the guest prolongs the wait: a repeated check shows signs without end.
    """
    if patience_s is None:
        await work
    else:
        await watch_guest(machine.pid, [], quiet_s=patience_s).run(work)


def _status(
    *, code: int | None = None, signal: str | None = None, error: BoughError | None = None
) -> dict[str, Any]:
    return {"exit_code": code, "signal": signal, "error": error.to_dict() if error else None}


async def _send_status(socket: WebSocket, status: dict[str, Any]) -> None:
    if socket.client_state is WebSocketState.CONNECTED:
        await socket.send_bytes(bytes([STATUS]) + json.dumps(status).encode())


async def _handle_message(session: Session, message: bytes) -> None:
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
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise InvalidInput(f"exec channel {channel} takes JSON as documented: {error}") from error
    else:
        raise InvalidInput(f"exec has no channel {channel}")
