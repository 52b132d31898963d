"""The host's side of the agent's port (docs/agent.md).

Every incoming byte may be hostile: the worst effect is the end of this channel (ProtocolError). Two numbers
bound the channel's memory: the credit of each stream and the number of sessions. Also, senders wait behind a
long queue.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bough.errors import AgentTimeout, AgentUnavailable, BoughError, GuestRefused, ProtocolError
from bough.guest import wire
from bough.guest.calls import Call
from bough.guest.command_line import check_command, encode_command
from bough.guest.facts import AgentFacts, clean_name, clean_text
from bough.guest.frame_queue import FrameQueue
from bough.guest.handshake import Handshake
from bough.guest.session import OUTPUT_WINDOW, ExecRequest, ExecSession, PortWatch, Session, Tunnel
from bough.guest.suspended import SuspendedCommands
from bough.home import SocketAddress
from bough.progress import Report, ignore_progress
from bough.progress_watch import Patience, Stalled, by_the_clock

MAX_SESSIONS = 256
MAX_ARGUMENTS = 16 * 1024 * 1024
_MAX_PINGS = 1000
# Number of frames of a guest before the turn of the other guests.
_FRAMES_PER_TURN = 64
_MAX_CALLS = 256
_READY = wire.SYNC + wire.pack(wire.READY, 0)


class AgentChannel:
    """One channel per running machine. Unusable before hello() has answered.

    Attributes:
        lost: set when the socket ended or was closed, by either side; `lost_reason` says why.
        facts: facts of the last hello.
        resumes: commands go on when the agent is restarted.
        on_restart: called when another agent replaces a greeted agent. The caller then greets the new agent.
        same_addresses: load commands at the same addresses each time: less secure against attackers, but much
            faster if an older QEMU emulates the processor.
        patience: makes the watch of a call from the call's `timeout_s`; by default the clock alone. A caller
            with a measure of the guest's progress sets a different watch.
        heard: number of bytes from the guest.
    """

    def __init__(self, sock: socket.socket, *, machine: str) -> None:
        """Use a connected socket. For connect() and tests; within a running loop."""
        sock.setblocking(False)
        self.machine = machine
        self.lost = asyncio.Event()
        self.lost_reason: BoughError | None = None
        self.facts: AgentFacts | None = None
        self.same_addresses = False
        self.patience: Patience = by_the_clock
        self.heard = 0
        self.input_window = 0
        self.resumes = False
        self.on_restart: Callable[[], None] | None = None
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._established = False
        self._long_commands = False
        self._reader = wire.FrameReader(wire.SYNC)
        self._next_id = 1
        self._sessions: dict[int, Session] = {}
        self._suspended = SuspendedCommands(self._loop, machine)
        self._calls: dict[int, Call] = {}
        self._pings: dict[bytes, asyncio.Future[None]] = {}
        self._first: Call | None = None
        self._frames = FrameQueue(sock, self._loop, self._socket_ended)
        self._handshake = Handshake(self._loop, self._frames, machine)
        self._loop.add_reader(sock, self._readable)

    @classmethod
    async def connect(cls, socket_path: Path, *, machine: str) -> AgentChannel:
        """Connect to the socket of QEMU's character device. Raises AgentUnavailable if no process listens."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            with SocketAddress(socket_path) as address:
                await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                text = f"cannot reach the agent's port of machine {machine!r}: {error.strerror}"
                raise AgentUnavailable(text, machine=machine) from error
            raise
        return cls(sock, machine=machine)

    async def hello(
        self, timeout_s: float, *, first: tuple[str, Mapping[str, Any]] | None = None
    ) -> AgentFacts:
        """Greet the agent until an answer comes. Earlier sessions end on both sides.

        Args:
            first: an operation and its arguments. A running agent reads the operation together with the
                hello,
                and wakes only once. `first_answer` waits for the answer.

        Raises:
            AgentTimeout: no answer in `timeout_s`; the channel can be used to try again.
            AgentUnavailable, ProtocolError: the channel is lost.
        """
        self._check_lost()
        self._end_all(
            AgentUnavailable(f"a new session with machine {self.machine!r} began", machine=self.machine)
        )
        self._reader.reset()
        self._reader.pattern = self._handshake.begin()
        call = None if first is None else self._ride_along(*first)
        try:
            async with asyncio.timeout(timeout_s):
                return (await self._handshake.greet(self._suspended.render, call)).facts
        except TimeoutError:
            text = f"the agent of machine {self.machine!r} did not answer in {timeout_s:g} s"
            raise AgentTimeout(text, machine=self.machine, timeout_s=timeout_s) from None
        finally:
            self._handshake.end()

    async def first_answer(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the answer of the operation sent with the last hello; None: the operation may not have
        arrived.
        """
        call, self._first = self._first, None
        if call is None:
            return None
        try:
            return await self.patience(timeout_s).run(asyncio.shield(call.answer))
        except Stalled:
            return None
        finally:
            call.abandoned = True

    @property
    def is_established(self) -> bool:
        """Return whether an agent has been greeted, and is still connected."""
        return self._established

    @property
    def has_sessions(self) -> bool:
        """Return whether a session is open, other than reports of ports."""
        return any(not isinstance(session, PortWatch) for session in self._sessions.values())

    async def ping(self, timeout_s: float = 5) -> float:
        """Return the seconds of a round trip to the agent. Raises AgentTimeout if longer than `timeout_s`."""
        self._check_established()
        if len(self._pings) >= _MAX_PINGS:
            raise AgentUnavailable(
                f"the agent of machine {self.machine!r} answers no pings", machine=self.machine
            )
        payload = struct.pack("<I", self._new_id())
        start = self._loop.time()
        self.send(wire.PING, 0, payload)
        self._check_established()  # sending may have shown that the agent is gone
        answer = self._pings[payload] = self._loop.create_future()
        await asyncio.wait((answer,), timeout=timeout_s)
        if not answer.done():
            text = f"the agent of machine {self.machine!r} did not answer a ping in {timeout_s:g} s"
            raise AgentTimeout(text, machine=self.machine, timeout_s=timeout_s)
        answer.result()
        return self._loop.time() - start

    async def exec(self, request: ExecRequest, *, timeout_s: float = 60) -> ExecSession:
        """Start a command. Returns when the command runs.

        Raises:
            GuestRefused: no such command, user or directory; details: errno.
            AgentTimeout: not started in `timeout_s`; the command is aborted then.
        """
        check_command(request, self.machine)
        values = {
            "argv": list(request.argv),
            "env": dict(request.env),
            "cwd": request.cwd,
            "user": request.user,
            "stdin": request.stdin,
            "window": OUTPUT_WINDOW,
        }
        if request.tty:
            values.update(tty=True, rows=request.rows, columns=request.columns, term=request.term)
        if request.login:
            values["login"] = True
        if request.as_image:
            values["as_image"] = True
        if self.same_addresses:
            values["same_addresses"] = True
        payload = encode_command(values, joined=self._long_commands)
        if len(payload) > wire.MAX_PAYLOAD and not self._long_commands:
            raise GuestRefused(
                f"{request.argv[0]}: the agent of this image takes commands of {wire.MAX_PAYLOAD} bytes",
                hint="build the image again: bough image build --rebuild",
                machine=self.machine,
                errno="E2BIG",
            )
        self._check_established()
        session = ExecSession(self, self._new_id())
        await self._open(session, wire.EXEC, payload, timeout_s)
        return session

    async def dial(self, port: int, host: str | None = None, *, timeout_s: float = 60) -> Tunnel:
        """Connect to a TCP port from inside the guest. Raises GuestRefused with errno ECONNREFUSED and
        similar.

        Args:
            host: an IP address; None for any address of the guest with a listener on the port.
        """
        self._check_established()
        tunnel = Tunnel(self, self._new_id())
        payload = wire.encode({"host": host, "port": port, "window": OUTPUT_WINDOW})
        await self._open(tunnel, wire.DIAL, payload, timeout_s)
        return tunnel

    async def watch_ports(self, ports: Sequence[int]) -> PortWatch:
        """Start reports of which of these TCP ports have a listener in the guest. Abort the watch afterwards.

        Raises:
            GuestRefused: the agent is of an older bough without such reports.
        """
        self._check_established()
        watch = PortWatch(self, self._new_id())
        payload = wire.encode({"listening": list(ports), "window": OUTPUT_WINDOW})
        await self._open(watch, wire.DIAL, payload, 60)
        return watch

    async def open_mount(self, tag: str) -> Tunnel:
        """Return the stream of the guest's file system `tag` when the guest requests it. Waits without a
        limit.

        Raises:
            AgentUnavailable, GuestRefused: the request can never come through this session.
        """
        self._check_established()
        tunnel = Tunnel(self, self._new_id())
        payload = wire.encode({"mount": tag, "window": OUTPUT_WINDOW})
        await self._open(tunnel, wire.DIAL, payload, None)
        return tunnel

    async def call(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        timeout_s: float,
        report: Report = ignore_progress,
        *,
        exact: bool = False,
    ) -> dict[str, Any]:
        """Have the agent do `operation` (docs/agent.md lists them).

        A cancellation or a timeout does not stop the guest's work.

        Args:
            timeout_s: guest time without a sign of progress; see `patience`.
            exact: `timeout_s` are seconds of the clock.

        Raises:
            GuestRefused: the operation failed; details: errno, and output if a command was run.
            AgentTimeout: not done in `timeout_s`.
        """
        self._check_established()
        payload = wire.encode({"operation": operation, "arguments": dict(arguments)})
        if len(payload) > MAX_ARGUMENTS:
            raise GuestRefused(
                f"{operation}: {len(payload)} bytes exceed the limit of one call, {MAX_ARGUMENTS}",
                machine=self.machine,
            )
        if len(self._calls) >= _MAX_CALLS:
            raise AgentUnavailable(
                f"the agent of machine {self.machine!r} answers no calls", machine=self.machine
            )
        call = Call(self._loop, report)
        call_id = self._new_id()
        self._calls[call_id] = call

        async def ask() -> dict[str, Any]:
            for part in wire.pack_parts(wire.CALL, self._handshake.nonce, call_id, payload):
                await self._queue_bulk(part)
            # Shielded: the caller may be cancelled. The call goes on, and the answer may still arrive.
            return await asyncio.shield(call.answer)

        watch = by_the_clock(timeout_s) if exact else self.patience(timeout_s)
        try:
            return await watch.run(ask())
        except Stalled as stalled:
            text = f"machine {self.machine!r} did not finish {operation} {stalled}"
            raise AgentTimeout(text, machine=self.machine, timeout_s=timeout_s) from None
        finally:
            call.abandoned = True  # the answer may still come, and is then recognized

    def guest_closed(self) -> None:
        """End all sessions: QEMU reports that the guest closed its side of the port."""
        text = f"the agent of machine {self.machine!r} disconnected"
        if not self._handshake.is_open:
            self._reader.reset()
            self._reader.pattern = wire.SYNC
        self._suspended.take(self._sessions)
        self._end_all(AgentUnavailable(text, machine=self.machine))

    def send_part(self, kind: int, session: int, payload: bytes, stream: int) -> None:
        """Send as send_data does, without a wait. For bounded data."""
        self._frames.put_last(wire.pack(kind, self._handshake.nonce, session, payload, stream))

    async def close(self) -> None:
        """Close the channel and end all sessions. The guest ends the sessions, too, when it notices."""
        self._lose(
            AgentUnavailable(f"the channel to machine {self.machine!r} was closed", machine=self.machine)
        )

    # Outwards

    def send(self, kind: int, session: int, payload: bytes = b"", stream: int = 0) -> None:
        """Queue a small frame ahead of all data. Without an established channel, do nothing."""
        if not self._established:
            return
        # ABORT and CREDIT are few: one ABORT for each session, and CREDIT only for data from the guest.
        if self._frames.is_full and kind not in (wire.ABORT, wire.CREDIT):
            raise AgentUnavailable(
                f"the agent of machine {self.machine!r} does not read its port", machine=self.machine
            )
        self._frames.put_first(wire.pack(kind, self._handshake.nonce, session, payload, stream))

    def send_behind(self, kind: int, session: int, stream: int) -> None:
        """Queue an empty frame behind all data, without waiting. Does nothing if the channel is not
        established.
        """
        if self._established:
            self._frames.put_last(wire.pack(kind, self._handshake.nonce, session, b"", stream))

    async def send_data(self, kind: int, session: int, payload: bytes | memoryview, stream: int) -> None:
        """Queue a frame behind all others. Waits while much is queued."""
        header = wire.HEADER.pack(wire.MARK, kind, stream, self._handshake.nonce, session, len(payload))
        await self._queue_bulk(b"".join((header, payload, wire.TRAILER.pack(self._handshake.nonce))))

    async def _queue_bulk(self, frame: bytes) -> None:
        nonce = self._handshake.nonce
        await self._frames.wait_for_room()
        if nonce == self._handshake.nonce and self._established:
            self._frames.put_last(frame)

    # The handshake

    def _ride_along(self, operation: str, arguments: Mapping[str, Any]) -> bytes:
        """Return the frames of a call sent before the channel is established."""
        payload = wire.encode({"operation": operation, "arguments": dict(arguments)})
        call_id = self._new_id()
        self._first = self._calls[call_id] = Call(self._loop, ignore_progress)
        return b"".join(wire.pack_parts(wire.CALL, self._handshake.nonce, call_id, payload))

    def _welcomed(self, nonce: int, payload: memoryview) -> None:
        welcome = self._handshake.read_answer(nonce, payload)
        if welcome is None:
            return
        self.input_window = welcome.input_window
        self.facts = welcome.facts
        self._established = True
        self._long_commands = welcome.long_commands
        self.resumes = welcome.resumes
        self._resume(welcome.sessions)
        self._handshake.finish(welcome)

    def _resume(self, states: object) -> None:
        for session, state in self._suspended.match(states):
            self._sessions[session.id] = session
            try:
                session.resume(state)
            except AgentUnavailable as error:
                session.end(error)
                del self._sessions[session.id]
                self.send(wire.ABORT, session.id)

    # Inwards

    def _readable(self) -> None:
        try:
            count = self._socket.recv_into(self._reader.room())
        except BlockingIOError:
            return
        except OSError as error:
            self._socket_ended(error)
            return
        if count == 0:
            self._socket_ended(None)
            return
        self.heard += count
        self._reader.added(count)
        if self._handshake.is_open and self._reader.holds(_READY):
            self._handshake.repeat()
        if not self._handle_frames():
            self._loop.remove_reader(self._socket)
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.lost.is_set():
            return
        if not self._handle_frames():
            self._loop.call_soon(self._go_on)
        elif not self.lost.is_set():
            self._loop.add_reader(self._socket, self._readable)

    def _handle_frames(self) -> bool:
        """Return whether all frames were handled; False if the channel was lost."""
        try:
            for _ in range(_FRAMES_PER_TURN):
                frame = self._reader.next()
                if frame is None:
                    if self._established and not self._reader.in_step:
                        raise ProtocolError("bytes that are no frame")
                    return True
                self._handle(*frame)
        except (ProtocolError, wire.WireError) as error:
            text = f"the agent of machine {self.machine!r} broke the protocol: {error}"
            self._lose(ProtocolError(text, machine=self.machine))
            return True
        return False

    def _handle(self, kind: int, stream: int, nonce: int, session_id: int, payload: memoryview) -> None:
        if kind == wire.WELCOME:
            self._welcomed(nonce, payload)
        elif kind == wire.READY:
            was_established = self._established
            self.guest_closed()
            if was_established and self.on_restart is not None:
                self.on_restart()
        elif not self._established:
            return  # of the previous session
        elif nonce != self._handshake.nonce:
            raise ProtocolError("a frame of another session")
        elif kind == wire.PONG:
            self._pong(bytes(payload))
        elif kind in (wire.RESULT, wire.PROGRESS):
            self._answer(kind, stream, session_id, payload)
        elif kind == wire.ERROR:
            self._refused(session_id, payload)
        elif kind == wire.EXIT:
            self._session(session_id).exited(_decode(payload))
            del self._sessions[session_id]
        else:
            self._session(session_id).handle(kind, stream, payload)

    def _session(self, session_id: int) -> Session:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise ProtocolError(f"a frame for session {session_id}, which is not open") from None

    def _pong(self, payload: bytes) -> None:
        answer = self._pings.pop(payload, None)
        if answer is None:
            raise ProtocolError("an answer to a ping that was not sent")
        if not answer.done():
            answer.set_result(None)

    def _answer(self, kind: int, stream: int, call_id: int, payload: memoryview) -> None:
        call = self._calls.get(call_id)
        if call is None:
            raise ProtocolError("an answer to a call that was not made")
        if kind == wire.PROGRESS:
            call.progress(_decode(payload))
        elif call.part(payload, more=bool(stream)):
            del self._calls[call_id]

    def _refused(self, session_id: int, payload: memoryview) -> None:
        values = _decode(payload)
        output = clean_text(values.get("output"), 64 * 1024) or None
        errno = clean_name(values.get("errno")) or None
        error = GuestRefused(
            clean_text(values.get("message")), machine=self.machine, errno=errno, output=output
        )
        call = self._calls.pop(session_id, None)
        if call is not None:
            call.fail(error)
            return
        session = self._session(session_id)
        if session.opened.done() and not session.opened.cancelled():
            raise ProtocolError("a session that runs was refused")
        del self._sessions[session_id]
        session.end(error)

    # Sessions

    async def _open(self, session: Session, kind: int, payload: bytes, timeout_s: float | None) -> None:
        if len(self._sessions) >= MAX_SESSIONS:
            text = f"machine {self.machine!r} has {MAX_SESSIONS} open sessions, the limit"
            raise AgentUnavailable(text, machine=self.machine)
        cuts = range(0, max(len(payload), 1), wire.MAX_PAYLOAD)
        for cut in cuts:
            self.send(kind, session.id, payload[cut : cut + wire.MAX_PAYLOAD], int(cut != cuts[-1]))
        self._check_established()  # sending may have shown that the agent is gone
        self._sessions[session.id] = session
        try:
            if timeout_s is None:
                await asyncio.wait((session.opened,))
            elif not session.opened.done():
                await self.patience(timeout_s).run(asyncio.wait((session.opened,)))
        except asyncio.CancelledError:
            await session.abort()
            raise
        except Stalled as stalled:
            await session.abort()
            text = f"machine {self.machine!r} did not start the command or connection {stalled}"
            hint = f"`bough info {self.machine}` shows whether the guest is busy or hangs"
            raise AgentTimeout(text, hint=hint, machine=self.machine, timeout_s=timeout_s) from None
        session.opened.result()

    def _new_id(self) -> int:
        while True:
            new = self._next_id
            self._next_id = new % 0xFFFFFFFF + 1
            if new not in self._sessions and new not in self._calls and new not in self._suspended:
                return new

    def _check_lost(self) -> None:
        if self.lost.is_set():
            raise self._reason()

    def _check_established(self) -> None:
        self._check_lost()
        if not self._established:
            text = f"the agent of machine {self.machine!r} does not answer"
            raise AgentUnavailable(text, machine=self.machine)

    def _reason(self) -> BoughError:
        return self.lost_reason or AgentUnavailable("the channel is closed", machine=self.machine)

    def _end_all(self, failure: BoughError) -> None:
        """End all sessions. The socket stays open."""
        self._established = False
        self._frames.clear()
        sessions, self._sessions = self._sessions, {}
        calls, self._calls = self._calls, {}
        pings, self._pings = self._pings, {}
        for session in sessions.values():
            session.end(failure)
        for call in calls.values():
            call.fail(failure)
        for answer in pings.values():
            if not answer.done():
                answer.set_exception(failure)
                answer.exception()
        self._handshake.repeat()

    def _socket_ended(self, error: OSError | None) -> None:
        detail = "" if error is None else f": {error.strerror}"
        text = f"the port of machine {self.machine!r} was closed{detail}"
        self._lose(AgentUnavailable(text, machine=self.machine))

    def _lose(self, reason: BoughError) -> None:
        if self.lost.is_set():
            return
        self.lost_reason = reason
        self.lost.set()
        self._loop.remove_reader(self._socket)
        self._frames.close()
        self._socket.close()
        self._handshake.fail(reason)
        self._end_all(reason)
        self._suspended.end(reason)


def _decode(payload: memoryview) -> dict[str, object]:
    return wire.decode_map(payload)
