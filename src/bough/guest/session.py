"""The host's view of open sessions in a guest: commands and TCP connections.

Both are streams with credit: the guest may send only a limited part of a stream until the host has read the
part. So the memory of a session is bounded against every guest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from bough.errors import AgentUnavailable, BoughError, ProtocolError
from bough.guest import wire
from bough.guest.facts import clean_name
from bough.guest.sent import SentInput

OUTPUT_WINDOW = 512 * 1024
_MAX_CREDIT = 64 * 1024 * 1024


@dataclass(frozen=True)
class ExecRequest:
    """A command to run in a guest, with the environment of a login of `user`.

    Attributes:
        env: variables in addition to a login's.
        cwd: None for the user's home.
        user: "name", "uid", either with ":group"; None for root.
        tty: give the command a terminal of `rows` and `columns`; stderr is then part of stdout.
        stdin: False: standard input is /dev/null.
        as_image: as a container's command: `cwd` is made if missing, a user id without an entry has the group
            0, and a user with ":group" is in no other group.
        login: instead of `argv`, the user's login shell in a login session, if the guest supports one.
    """

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None
    tty: bool = False
    rows: int = 24
    columns: int = 80
    term: str = "xterm-256color"
    stdin: bool = True
    login: bool = False
    as_image: bool = False


@dataclass(frozen=True)
class ExitStatus:
    """The end of a command. One of three is set: the exit code, the name of the signal ("KILL"), or the error
    that hides the status.
    """

    code: int | None = None
    signal: str | None = None
    error: BoughError | None = None


class Frames(Protocol):
    """The parts of a channel for sessions: sending frames, and the guest's abilities."""

    input_window: int
    resumes: bool

    def send(self, kind: int, session: int, payload: bytes = ..., stream: int = ...) -> None: ...
    def send_behind(self, kind: int, session: int, stream: int) -> None: ...
    def send_part(self, kind: int, session: int, payload: bytes, stream: int) -> None: ...
    async def send_data(self, kind: int, session: int, payload: bytes | memoryview, stream: int) -> None: ...


class Session:
    """A session, made by the channel. The guest's EXIT or ERROR ends the session, or the channel's end."""

    outputs: tuple[int, ...] = (wire.STDOUT,)
    #: Sent input, if the session can continue with another agent.
    sent: SentInput | None = None

    def __init__(self, channel: Frames, session_id: int) -> None:
        self._channel = channel
        self.id = session_id
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._allowed = dict.fromkeys(self.outputs, OUTPUT_WINDOW)
        self._taken = dict.fromkeys(self.outputs, 0)
        self._received = dict.fromkeys(self.outputs, 0)
        self._ended_outputs: set[int] = set()
        self._credit = channel.input_window
        self._input_open = True
        self._input_ended = False
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._over = False
        self._aborted = False
        self.failure: BoughError | None = None

    # From the channel

    def handle(self, kind: int, stream: int, payload: memoryview) -> None:
        """Handle a frame from the guest. Raises ProtocolError if the frame is not allowed now."""
        if kind == wire.DATA:
            self._data(stream, payload)
        elif kind == wire.CREDIT and stream == wire.STDIN:
            self._more_credit(payload)
        elif kind == wire.STOP and stream == wire.STDIN:
            self._input_open = False
            self._writable.set()
        elif kind == wire.EOF and stream in self._allowed and stream not in self._ended_outputs:
            self._ended_outputs.add(stream)
            self._changed.set()
        elif kind == wire.OPENED and not self.opened.done():
            self.opened.set_result(None)
        else:
            raise ProtocolError(f"frame of kind {kind} where none may be")

    def end(self, failure: BoughError | None) -> None:
        """End the session: no more frames come."""
        self._over = True
        self._input_open = False
        self.failure = failure
        if not self.opened.done():
            failure = failure or AgentUnavailable("the session was aborted")
            self.opened.set_exception(failure)
            self.opened.exception()  # perhaps no caller waits any more
        self._changed.set()
        self._writable.set()

    def exited(self, values: Mapping[str, object]) -> None:
        if not self.opened.done() and not self._aborted:
            raise ProtocolError("a session ended before it began")
        self.end(None)

    def _data(self, stream: int, payload: memoryview) -> None:
        cost = len(payload) + wire.FRAME_COST
        left = self._allowed.get(stream, 0) - cost
        if left < 0 or not len(payload) or stream in self._ended_outputs or not self.opened.done():
            raise ProtocolError(f"{len(payload)} bytes of stream {stream} without credit")
        self._allowed[stream] = left
        self._received[stream] += len(payload)
        if not self._aborted:
            self._chunks.append((stream, bytes(payload)))
            self._changed.set()

    def _more_credit(self, payload: memoryview) -> None:
        if len(payload) != wire.CREDIT_PAYLOAD.size:
            raise ProtocolError("a malformed credit")
        count = wire.CREDIT_PAYLOAD.unpack(payload)[0]
        self._credit += count
        if self.sent is not None:
            self.sent.credited(count)
        if self._credit > _MAX_CREDIT:
            raise ProtocolError("more credit than anything could use")
        self._writable.set()

    # For the caller

    async def _next_chunk(self) -> tuple[int, bytes] | None:
        """Return the next bytes of any output; None after the end of all."""
        while not self._chunks:
            if self._over or self._aborted or len(self._ended_outputs) == len(self.outputs):
                return None
            self._changed.clear()
            await self._changed.wait()
        stream, data = self._chunks.popleft()
        self._give_credit(stream, len(data) + wire.FRAME_COST)
        return stream, data

    def _give_credit(self, stream: int, cost: int) -> None:
        taken = self._taken[stream] + cost
        if taken >= OUTPUT_WINDOW // 4 and not self._over:
            self._allowed[stream] += taken
            self._channel.send(wire.CREDIT, self.id, wire.CREDIT_PAYLOAD.pack(taken), stream)
            taken = 0
        self._taken[stream] = taken

    async def _write(self, data: bytes) -> bool:
        """Send `data` as the guest reads it. Return False if the guest reads no more."""
        rest = memoryview(data)
        while rest:
            while self._credit <= wire.FRAME_COST and self._input_open:
                self._writable.clear()
                await self._writable.wait()
            if not self._input_open:
                if self.failure is not None:
                    raise self.failure
                return False
            part = rest[: min(wire.MAX_PAYLOAD, self._credit - wire.FRAME_COST)]
            rest = rest[len(part) :]
            self._credit -= len(part) + wire.FRAME_COST
            if self.sent is not None:
                self.sent.add(bytes(part))
            await self._channel.send_data(wire.DATA, self.id, part, wire.STDIN)
        return True

    async def _end_input(self) -> None:
        if self._input_open:
            self._input_open = False
            self._input_ended = True
            await self._channel.send_data(wire.EOF, self.id, b"", wire.STDIN)

    async def abort(self) -> None:
        """Have the guest end the session, and ignore the remaining frames. Returns at once."""
        self._chunks.clear()
        self._input_open = False
        if not self._over and not self._aborted:
            self._aborted = True
            self._channel.send(wire.ABORT, self.id)
        self._changed.set()
        self._writable.set()


class ExecSession(Session):
    """A command in a guest. Iterate over the session for the output; then `exit` has the command's end."""

    outputs = (wire.STDOUT, wire.STDERR)

    def __init__(self, channel: Frames, session_id: int) -> None:
        super().__init__(channel, session_id)
        self.exit = ExitStatus()
        self.sent = SentInput() if channel.resumes else None
        self._loss: str | None = None
        self._late: dict[int, bytes] = {}
        self._suspended = False
        self._told: dict[int, int] = {}

    # -- from one agent to the next -----------------------------------------------------------------

    @property
    def can_resume(self) -> bool:
        return self.sent is not None and self.opened.done() and not self._aborted and not self._over

    def suspend(self) -> None:
        """Suspend the session: the agent has disconnected, and the next agent may adopt the command."""
        self._suspended = True
        self._told = dict(self._allowed)

    def render_state(self) -> dict[str, object]:
        """Return the host's view of the streams for the next agent."""
        return {"received": list(self._received.values()), "credit": list(self._told.values())}

    def resume(self, state: Mapping[str, object]) -> None:
        """Continue with the next agent's account of the streams. Raises ProtocolError for an impossible
        account.
        """
        assert self.sent is not None
        self._suspended = False
        self._note_loss(state.get("lost"))
        written = state.get("written")
        if not isinstance(written, int):
            raise AgentUnavailable("the agent was killed while it passed on input: some of it may be lost")
        for stream, told in self._told.items():
            if more := self._allowed[stream] - told:  # credit given since the hello
                self._channel.send(wire.CREDIT, self.id, wire.CREDIT_PAYLOAD.pack(more), stream)
        self._credit = self._channel.input_window
        for part in self.sent.take_from(written):
            self._credit -= len(part) + wire.FRAME_COST
            self.sent.add(part)
            self._channel.send_part(wire.DATA, self.id, part, wire.STDIN)
        if self._input_ended:
            self._channel.send_part(wire.EOF, self.id, b"", wire.STDIN)
        late, self._late = self._late, {}
        for kind, payload in late.items():
            self._send(kind, payload)
        self._writable.set()

    def _note_loss(self, lost: object) -> None:
        if not isinstance(lost, list) or len(lost) != 2 or not all(isinstance(n, int) for n in lost):
            raise ProtocolError("a malformed account of a command")
        if any(lost):
            count = "perhaps some bytes" if min(lost) < 0 else f"{sum(lost)} bytes"
            self._loss = f"the agent was killed while the command ran: {count} of its output are lost"

    def exited(self, values: Mapping[str, object]) -> None:
        code, signal = values.get("code"), values.get("signal")
        if isinstance(code, int) and 0 <= code <= 255:
            self.exit = ExitStatus(code=code)
        elif isinstance(signal, str) and signal.isalnum() and len(signal) <= 20:
            self.exit = ExitStatus(signal=signal)
        elif "error" in values:
            self.exit = ExitStatus(error=AgentUnavailable(f"the agent failed: {clean_name(values['error'])}"))
        else:
            raise ProtocolError("a malformed exit status")
        if self._loss is not None and self.exit.error is None:
            ended = f"exit status {code}" if self.exit.code is not None else f"signal {signal}"
            self.exit = ExitStatus(error=AgentUnavailable(f"{self._loss}; the command ended with {ended}"))
        super().exited(values)

    def end(self, failure: BoughError | None) -> None:
        if failure is not None:
            self.exit = ExitStatus(error=failure)
        super().end(failure)

    async def __aiter__(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
        """Yield output as it comes, until the command has ended and all output was read, or
        until an abort.
        """
        while (chunk := await self._next_chunk()) is not None:
            yield ("stdout" if chunk[0] == wire.STDOUT else "stderr"), chunk[1]

    async def write(self, data: bytes) -> None:
        """Write to the command's stdin. Waits until the guest reads the input. Input without a reader is
        dropped.

        Raises:
            AgentUnavailable: the channel broke.
        """
        await self._write(data)

    async def close_stdin(self) -> None:
        await self._end_input()

    async def resize(self, rows: int, columns: int) -> None:
        size = wire.SIZE_PAYLOAD.pack(min(max(rows, 0), 0xFFFF), min(max(columns, 0), 0xFFFF))
        self._send(wire.RESIZE, size)

    async def signal(self, name: str) -> None:
        """Send a signal ("TERM", "SIGINT", "9") to the command's process group."""
        self._send(wire.SIGNAL, name.encode("ascii", "replace")[:20])

    def _send(self, kind: int, payload: bytes) -> None:
        if self._suspended:
            self._late[kind] = payload
        elif not self._over and not self._aborted:
            self._channel.send(kind, self.id, payload)


class Tunnel(Session):
    """A TCP connection inside a guest. One reader and one writer at a time."""

    async def read(self) -> bytes:
        """Return the next bytes; b"" at the end. Raises AgentUnavailable if the channel broke."""
        chunk = await self._next_chunk()
        if chunk is None and self.failure is not None:
            raise self.failure
        return b"" if chunk is None else chunk[1]

    async def write(self, data: bytes) -> None:
        """Write, and wait until the guest reads. Raises BrokenPipeError when the other side reads no more."""
        if not await self._write(data):
            raise BrokenPipeError("the connection inside of the guest is closed")

    async def write_eof(self) -> None:
        await self._end_input()

    async def close(self) -> None:
        """Close as close(2) does: written bytes are still delivered. Returns at once."""
        self._chunks.clear()
        if not self._over and not self._aborted:
            self._aborted = True
            self._channel.send_behind(wire.ABORT, self.id, wire.AFTER_DATA)
        self._input_open = False
        self._changed.set()
        self._writable.set()


class PortWatch(Session):
    """Reports of the guest's listening ports: the first at once, then a report for each change."""

    async def report(self) -> set[int]:
        """Return the next report. Raises AgentUnavailable if the channel broke, ProtocolError for a malformed
        report.
        """
        chunk = await self._next_chunk()
        if chunk is None:
            raise self.failure or AgentUnavailable("the agent reports no ports any more")
        try:
            ports = wire.decode_map(chunk[1]).get("listening")
        except wire.WireError as error:
            raise ProtocolError(f"a malformed report of ports: {error}") from error
        if not isinstance(ports, list):
            raise ProtocolError("a malformed report of ports")
        return {port for port in ports if isinstance(port, int)}
