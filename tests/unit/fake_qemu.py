"""A small QEMU for tests of a machine's life: QMP, console and agent port on real sockets, no guest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from bough.paths import MachinePaths
from bough.qemu.waiter_files import ExitCause

GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}
}
CLEAN = ExitCause(0, None, "", "QEMU exited with 0")
KILLED = ExitCause(None, "SIGKILL", "", "QEMU was killed by SIGKILL")


class FakeQemu:
    """A QEMU process and its sockets; a QemuProcess for the machine.

    Attributes:
        executed: the QMP commands so far.
        powers_off: the guest obeys its power button.
    """

    jail = None
    has_state = False

    def __init__(self, *, powers_off: bool = True) -> None:
        self.pid = os.getpid()
        self.powers_off = powers_off
        self.status = "running"
        self.executed: list[str] = []
        self._cause: asyncio.Future[ExitCause] = asyncio.get_running_loop().create_future()
        self._clients: list[asyncio.StreamWriter] = []
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def listening(self, paths: MachinePaths) -> AsyncIterator[None]:
        paths.runtime.mkdir(parents=True, exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            for path, serve in (
                (paths.qmp_socket, self._serve_qmp),
                (paths.console_socket, self._serve_nothing),
                (paths.agent_socket, self._serve_nothing),
            ):
                await stack.enter_async_context(await asyncio.start_unix_server(serve, path))
            try:
                yield
            finally:
                self.end(KILLED)

    # -- the process ------------------------------------------------------------------------------

    def end(self, cause: ExitCause) -> None:
        if not self._cause.done():
            self._cause.set_result(cause)
        for writer in self._writers:
            writer.close()

    def kill(self) -> None:
        self.end(KILLED)

    def terminate(self) -> None:
        self.end(CLEAN)

    async def wait(self) -> ExitCause:
        return await asyncio.shield(self._cause)

    def is_alive(self) -> bool:
        return not self._cause.done()

    def stand_back(self, back: bool = True) -> None:
        pass

    def name_sockets(self) -> None:
        pass

    # -- the sockets ------------------------------------------------------------------------------

    def emit(self, event: str, **data: Any) -> None:
        stamp = {"seconds": 0, "microseconds": 0}
        for writer in self._clients:
            _send(writer, {"event": event, "data": data, "timestamp": stamp})

    async def _serve_qmp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._clients.append(writer)
        _send(writer, GREETING)
        buffer = ""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                buffer += data.decode()
                with contextlib.suppress(ValueError):
                    while buffer:
                        command, end = json.JSONDecoder().raw_decode(buffer)
                        buffer = buffer[end:]
                        self._answer(writer, command)
        self._clients.remove(writer)
        writer.close()

    def _answer(self, writer: asyncio.StreamWriter, command: dict[str, Any]) -> None:
        name = command["execute"]
        self.executed.append(name)
        answers: dict[str, Any] = {"query-status": {"status": self.status}, "human-monitor-command": ""}
        _send(writer, {"return": answers.get(name, {}), "id": command.get("id")})
        if name == "stop":
            self.status = "paused"
            self.emit("STOP")
        elif name == "cont":
            self.status = "running"
            self.emit("RESUME")
        elif name == "system_powerdown" and self.powers_off:
            self.emit("SHUTDOWN", guest=True, reason="guest-shutdown")
            asyncio.get_running_loop().call_soon(self.end, CLEAN)
        elif name == "quit":
            asyncio.get_running_loop().call_soon(self.end, CLEAN)

    async def _serve_nothing(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()


def _send(writer: asyncio.StreamWriter, message: Any) -> None:
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\r\n")
