"""qemu-guest-agent, for guests with this agent instead of bough's: QEMU's docs/interop/qemu-ga-ref.

JSON lines over the same port under another name. The agent runs one request after the other. The output of a
command comes after the command's end (16 MiB at most). Terminals and TCP are not supported. An error names
each missing function. Every incoming byte may be hostile.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Literal

from bough.errors import AgentTimeout, AgentUnavailable, BoughError, GuestRefused, ProtocolError
from bough.guest.command_line import check_command
from bough.guest.facts import clean_text
from bough.guest.session import ExecRequest, ExitStatus
from bough.home import SocketAddress
from bough.progress import Report, ignore_progress
from bough.progress_watch import Patience, Stalled, by_the_clock

PORT = "org.qemu.guest_agent.0"
#: Base64 of 16 MiB, twice, and room for the JSON.
_MOST_LINE_BYTES = 48 * 1024 * 1024
MOST_INPUT_BYTES = 12 * 1024 * 1024
_SYNC_EVERY_S = 2.0
_POLL_S = (0.01, 0.02, 0.05, 0.1, 0.2)


class QgaChannel:
    """The supported part of AgentChannel. Requests run one at a time; others wait.

    Attributes:
        lost: set when the socket ended or was closed.
        patience: as AgentChannel's.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, machine: str) -> None:
        self.machine = machine
        self.lost = asyncio.Event()
        self.patience: Patience = by_the_clock
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()
        #: An answer without a waiting caller may be on its way. The next request must not get the old answer.
        self._is_owed = False
        self._commands: frozenset[str] = frozenset()

    @classmethod
    async def connect(cls, socket_path: Path, *, machine: str) -> QgaChannel:
        try:
            with SocketAddress(socket_path) as address:
                reader, writer = await asyncio.open_unix_connection(address, limit=_MOST_LINE_BYTES)
        except OSError as error:
            text = f"cannot reach the agent's port of machine {machine!r}: {error.strerror}"
            raise AgentUnavailable(text, machine=machine) from error
        return cls(reader, writer, machine)

    async def hello(self, timeout_s: float) -> None:
        """Ask until the agent answers.

        Raises:
            AgentTimeout: no answer in time.
            AgentUnavailable, ProtocolError: the channel is lost.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(AgentTimeout, TimeoutError):
                async with self._turn, asyncio.timeout(_SYNC_EVERY_S):
                    await self._sync()
                info = await self.ask("guest-info", timeout_s=10)
                commands = info.get("supported_commands", []) if isinstance(info, dict) else []
                self._commands = frozenset(
                    str(command.get("name"))
                    for command in commands[:500]
                    if isinstance(command, dict) and command.get("enabled")
                )
                return
        raise AgentTimeout(f"no agent of machine {self.machine!r} answered in {timeout_s:g} s")

    async def _sync(self) -> None:
        """Drop all bytes on their way: the answer follows a byte outside of JSON's alphabet."""
        number = secrets.randbelow(1 << 31)
        self._is_owed = True
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._writer.write(b"\xff" + json.dumps(request).encode() + b"\n")
        while self._is_owed:
            line = (await self._line()).rpartition(b"\xff")[2]
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                self._is_owed = not (isinstance(answer, dict) and answer.get("return") == number)

    async def _line(self) -> bytes:
        try:
            line = await self._reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, OSError):
            self.lost.set()
            raise AgentUnavailable(f"the agent's port of machine {self.machine!r} was closed") from None
        except (asyncio.LimitOverrunError, ValueError):
            await self.close()
            raise ProtocolError("the guest's agent sent a line without end") from None
        return line

    async def ask(self, command: str, *, timeout_s: float = 30, exact: bool = False, **arguments: Any) -> Any:
        """Send one request and return the answer. Raises GuestRefused with the agent's words, AgentTimeout,
        AgentUnavailable.
        """
        if self._commands and command not in self._commands:
            raise GuestRefused(f"the agent of machine {self.machine!r} cannot do {command}")
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}

        async def ask() -> bytes:
            if self._is_owed:
                await self._sync()
            self._is_owed = True
            self._writer.write(json.dumps(request).encode() + b"\n")
            await self._writer.drain()
            line = await self._line()
            self._is_owed = False
            return line

        async with self._turn:
            try:
                watch = by_the_clock(timeout_s) if exact else self.patience(timeout_s)
                line = await watch.run(ask())
                answer = json.loads(line.lstrip(b"\xff"))
            except Stalled as stalled:
                raise AgentTimeout(
                    f"the agent of machine {self.machine!r} did not answer {command} {stalled}",
                    machine=self.machine,
                ) from None
            except (ValueError, RecursionError):
                raise ProtocolError("the guest's agent sent a line that is not JSON") from None
        if not isinstance(answer, dict):
            raise ProtocolError("the guest's agent sent JSON that is not an answer")
        if "return" in answer:
            return answer["return"]
        error = answer.get("error")
        said = error.get("desc", "") if isinstance(error, dict) else ""
        raise GuestRefused(clean_text(said, 500) or f"{command} failed", machine=self.machine)

    async def ping(self, timeout_s: float = 5) -> float:
        start = time.monotonic()
        await self.ask("guest-ping", timeout_s=timeout_s, exact=True)
        return time.monotonic() - start

    async def call(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        timeout_s: float,
        report: Report = ignore_progress,
        *,
        exact: bool = False,
    ) -> dict[str, Any]:
        """Do an operation of docs/agent.md, if the agent has a command for the operation."""
        if operation == "power_off":
            # The agent does not answer when it powers off.
            with contextlib.suppress(AgentTimeout, AgentUnavailable):
                await self.ask("guest-shutdown", timeout_s=2, exact=True, mode="powerdown")
            return {}
        if operation == "set_clock" and isinstance(arguments.get("unix_ns"), int):
            await self.ask("guest-set-time", timeout_s=timeout_s, time=arguments["unix_ns"])
            return {}
        if operation in ("freeze", "thaw"):
            return {"count": await self.ask(f"guest-fsfreeze-{operation}", timeout_s=timeout_s)}
        raise self._lacks(operation)

    async def exec(self, request: ExecRequest, *, timeout_s: float = 60) -> QgaExec:
        if request.tty:
            raise self._lacks("a terminal", hint=f"bough console {self.machine}")
        check_command(request, self.machine)
        _check_text(request, self.machine)
        return QgaExec(self, request)

    async def dial(self, port: int, host: str | None = None, *, timeout_s: float = 60) -> Any:
        raise self._lacks("connections to its ports")

    def _lacks(self, what: str, hint: str | None = None) -> GuestRefused:
        return GuestRefused(
            f"machine '{self.machine}' has qemu-guest-agent, which does not support {what}",
            hint=hint,
            machine=self.machine,
        )

    def guest_closed(self) -> None:
        """Mark the guest's end of the port as closed: greet again."""

    async def close(self) -> None:
        self.lost.set()
        self._writer.close()


class QgaExec:
    """A command. It starts at the end of the input; the output comes after the command's end."""

    def __init__(self, channel: QgaChannel, request: ExecRequest) -> None:
        self.exit = ExitStatus()
        self._channel = channel
        self._request = request
        self._input = bytearray()
        self._input_ended = asyncio.Event()
        self._aborted = False
        if not request.stdin:
            self._input_ended.set()

    async def write(self, data: bytes) -> None:
        if len(self._input) + len(data) > MOST_INPUT_BYTES:
            raise GuestRefused(
                "qemu-guest-agent takes at most 12 MiB of input", machine=self._channel.machine
            )
        self._input += data

    async def close_stdin(self) -> None:
        self._input_ended.set()

    async def resize(self, rows: int, columns: int) -> None:
        pass

    async def signal(self, name: str) -> None:
        raise self._channel._lacks("signals")

    async def abort(self) -> None:
        """Stop the wait for the output. The command runs on: the agent cannot end commands."""
        self._aborted = True
        self._input_ended.set()

    async def __aiter__(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
        await self._input_ended.wait()
        if self._aborted:
            return
        try:
            status = await self._run()
        except BoughError as error:
            self.exit = ExitStatus(error=error)
            return
        if isinstance(status.get("signal"), int):
            import signal

            number = status["signal"]
            known = number in {one.value for one in signal.Signals}
            self.exit = ExitStatus(
                signal=signal.Signals(number).name.removeprefix("SIG") if known else "KILL"
            )
        else:
            self.exit = ExitStatus(code=int(status.get("exitcode", 255)) & 255)
        if status.get("out-truncated") or status.get("err-truncated"):
            self.exit = ExitStatus(
                error=GuestRefused("qemu-guest-agent gave only the first 16 MiB of the output")
            )
        names: tuple[Literal["stdout", "stderr"], ...] = ("stdout", "stderr")
        for name in names:
            with contextlib.suppress(ValueError, TypeError):
                if data := base64.b64decode(status.get(f"{name[3:]}-data", "")):
                    yield name, data

    async def _run(self) -> dict[str, Any]:
        argv = _render_argv(self._request)
        arguments: dict[str, Any] = {"path": argv[0], "arg": argv[1:], "capture-output": True}
        if self._input:
            arguments["input-data"] = base64.b64encode(bytes(self._input)).decode()
        if self._request.env:
            arguments["env"] = [f"{name}={value}" for name, value in self._request.env.items()]
        started = await self._channel.ask("guest-exec", **arguments)
        pid = started.get("pid") if isinstance(started, dict) else None
        if not isinstance(pid, int):
            raise ProtocolError("the guest's agent started a command without a pid")
        for attempt in range(1 << 31):
            status = await self._channel.ask("guest-exec-status", pid=pid)
            if not isinstance(status, dict):
                break
            if status.get("exited") or self._aborted:
                return status
            await asyncio.sleep(_POLL_S[min(attempt, len(_POLL_S) - 1)])
        raise ProtocolError("the guest's agent sent no exit status")


def _check_text(request: ExecRequest, machine: str) -> None:
    """Check that a word fits JSON. Raises GuestRefused for bytes outside of UTF-8."""
    for word in (*request.argv, *request.env.values(), request.cwd or ""):
        if not word.isascii() and "\ufffd" in os.fsencode(word).decode(errors="replace"):
            raise GuestRefused("qemu-guest-agent takes no words that are not UTF-8", machine=machine)


def _render_argv(request: ExecRequest) -> list[str]:
    argv = list(request.argv)
    if request.user not in (None, "root", "0"):
        argv = ["runuser", "-u", str(request.user), "--", *argv]
    if request.cwd is not None:
        argv = ["/bin/sh", "-c", 'cd "$1" || exit 126; shift; exec "$@"', "sh", request.cwd, *argv]
    return argv
