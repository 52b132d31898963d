"""The guest agent: one process, one loop, over one virtio-serial port (docs/agent.md).

The agent runs as root inside a machine. The agent is plain synchronous Python and imports only
quick-loading standard modules. The loop sleeps in epoll without a timeout, so an idle agent costs nothing.
Child processes do all long work.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal costs what enum costs
import os
import select
import time

from bough.guest import agent_command, agent_connection, agent_errors, agent_session, wire
from bough.guest.agent_errors import Refused
from bough.guest.agent_session import Session

# Loading typing costs an emulated guest 30 ms.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from bough.guest.agent_become import Ready
    from bough.guest.agent_kept import Keeping

    Handler = Callable[[int], None]

AGENT_VERSION = "1"
PORT_NAME = "org.bough.agent"
MAX_SESSIONS = 256
_MAX_CALL = 16 * 1024 * 1024
#: Longest wait, in seconds, of an ending agent for a host that does not read.
_LAST_WRITE_S = 2.0

EPOLLIN = select.EPOLLIN
EPOLLOUT = select.EPOLLOUT
EPOLLET = select.EPOLLET


class Agent:
    """The loop and the port. Sessions and calls have their own modules.

    Attributes:
        nonce: nonce of the current handshake; 0 before the first.
        blocked: the host does not read at the moment.
        sessions: open sessions, by the host's id.
        on_reset: called when the host disconnects.
        welcome: prepared answer to the next hello (agent_become.py); empty: the answer is made on demand.
        ready: like `welcome`, prepared for the guest's next identity.
        carries: this process serves file systems of the guest, and must not wait for a path itself.
        keeping: connection to the keeper (agent_keeper.py); None: commands end with the agent.
    """

    def __init__(self, port: int, *, is_device: bool, keeping: Keeping | None = None) -> None:
        self.port = port
        self.is_device = is_device
        self.nonce = 0
        self.blocked = False
        self.carries = False
        self.welcome = b""
        self.ready: Ready | None = None
        self._start_call: Callable[[Agent, int, str, dict[str, object]], None] | None = None
        self.sessions: dict[int, Session] = {}
        self.on_reset: list[Callable[[], None]] = []
        self.keeping = keeping
        self._leaving = False
        self._parts: dict[int, list[bytes]] = {}
        self._reader = wire.FrameReader(wire.SYNC)
        self._handlers: dict[int, Handler] = {}
        self._children: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._stalled: list[Callable[[], None]] = []
        self._pending: list[bytes] = []
        self._frame = bytearray(wire.MAX_FRAME)
        self._frame_view = memoryview(self._frame)
        self._connected = False
        self._epoll = select.epoll()
        self._epoll.register(port, EPOLLIN)
        os.set_blocking(port, False)
        self._watch_children()
        if keeping is not None:
            keeping.attach(self)

    # The loop

    def run(self) -> None:
        """Serve until the port has closed for good."""
        self._announce()
        while self.port >= 0:
            for fd, events in self._epoll.poll(self._until_timer()):
                if fd == self.port:
                    self._port_ready(events)
                else:
                    handler = self._handlers.get(fd)
                    if handler is not None:
                        handler(events)
            self._run_timers()
            if self._pending and not self.blocked:
                self._flush()
            if self._leaving:
                self._leave()

    def leave(self, *_: object) -> None:
        """End soon. For a signal handler, or from within the loop."""
        self._leaving = True

    def _leave(self) -> None:
        """Hand commands to the keeper, if any, and send all output read so far."""
        if self.keeping is None:
            self.close()
            return
        self.keeping.keep_all()
        self._flush_all()
        self.port = -1

    def _flush_all(self) -> None:
        waiting = select.poll()
        waiting.register(self.port, select.POLLOUT)
        deadline = time.monotonic() + _LAST_WRITE_S
        while self._pending and time.monotonic() < deadline and waiting.poll(_LAST_WRITE_S * 1000):
            self._flush()

    def keeper_died(self) -> None:
        """End all commands: without the keeper, the next agent cannot find the commands."""
        for session in list(self.sessions.values()):
            session.abandon()
            session.finish({"error": "the keeper of the agent was killed, which ended the command"})
        self._flush_all()
        self.keeping = None
        self.leave()

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, seconds: float, action: Callable[[], None]) -> None:
        self._timers.append((time.monotonic() + seconds, action))

    def on_exit(self, pid: int, action: Callable[[int], None]) -> None:
        """Have `action` called with the wait status when the child `pid` ends."""
        self._children[pid] = action

    def _until_timer(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, min(at for at, _ in self._timers) - time.monotonic())

    def _run_timers(self) -> None:
        if not self._timers:
            return
        now = time.monotonic()
        due = [action for at, action in self._timers if at <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for action in due:
            action()

    def _watch_children(self) -> None:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(write_end)

        def reap(_events: int) -> None:
            os.read(read_end, 4096)
            self._reap()

        self.watch(read_end, EPOLLIN, reap)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            action = self._children.pop(pid, None)
            if action is not None:
                action(status)

    # The port, outwards

    def send(self, kind: int, session: int = 0, payload: bytes = b"", stream: int = 0) -> None:
        """Queue a small frame. The frame leaves before the loop sleeps again."""
        self._pending.append(wire.pack(kind, self.nonce, session, payload, stream))

    def send_values(self, kind: int, session: int, values: object) -> None:
        if kind == wire.RESULT:
            self._pending.extend(wire.pack_parts(kind, self.nonce, session, wire.encode(values)))
        else:
            self.send(kind, session, wire.encode(values))

    def send_error(self, session: int, error: BaseException) -> None:
        self.send_values(wire.ERROR, session, agent_errors.describe_error(error))

    def send_from(self, fd: int, limit: int, session: int, stream: int) -> int:
        """Read once from `fd` and send the bytes as DATA. Return the number of bytes, 0 at the end.

        Raises:
            BlockingIOError: nothing to read.
        """
        if self._pending:
            self._flush()
        frame = self._frame
        head = wire.HEADER_SIZE
        count = os.readv(fd, (self._frame_view[head : head + min(limit, wire.MAX_PAYLOAD)],))
        if count == 0:
            return 0
        wire.HEADER.pack_into(frame, 0, wire.MARK, wire.DATA, stream, self.nonce, session, count)
        wire.TRAILER.pack_into(frame, head + count, self.nonce)
        self._write(self._frame_view[: head + count + wire.TRAILER.size])
        return count

    def when_writable(self, action: Callable[[], None]) -> None:
        """Call `action` once when the host reads again."""
        self._stalled.append(action)

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        # Few writes, since each wakes the host. No write is longer than the port accepts at once.
        batch: list[bytes] = []
        size = 0
        for at, frame in enumerate(pending):
            if size + len(frame) > wire.MAX_FRAME:
                self._write(memoryview(b"".join(batch)))
                batch, size = [], 0
                if self.blocked:
                    self._pending.extend(pending[at:])
                    return
            batch.append(frame)
            size += len(frame)
        self._write(memoryview(b"".join(batch)))

    def _write(self, data: memoryview) -> None:
        try:
            written = os.write(self.port, data)
        except BlockingIOError:
            written = 0
        except OSError:
            # The host disconnected (a socket reports the disconnect here). The read side handles a
            # disconnect.
            return
        if written < len(data):
            self._pending.insert(0, bytes(data[written:]))
            self._set_blocked(True)

    def _set_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        if self.port >= 0:
            self._epoll.modify(self.port, EPOLLIN | EPOLLOUT if blocked else EPOLLIN)

    def _port_writable(self) -> None:
        self._set_blocked(False)
        self._flush()
        if not self.blocked:
            stalled, self._stalled = self._stalled, []
            for action in stalled:
                action()

    # The port, inwards

    def _announce(self) -> None:
        """Make the host say hello again if this agent replaces an earlier agent, for example after the
        guest's reboot.
        """
        try:
            os.write(self.port, wire.SYNC + wire.pack(wire.READY, 0))
            self._connected = True
        except OSError:
            self._connected = not self.is_device

    def _port_ready(self, events: int) -> None:
        if events & EPOLLOUT and self.blocked:
            self._port_writable()
        if not events & ~EPOLLOUT:
            return
        try:
            count = os.readv(self.port, self._reader.pages())
        except BlockingIOError:
            count = -1
        except OSError:
            count = 0
        if count == 0:
            self._disconnected()
            return
        if not self._connected:
            self._connected = True
            self._epoll.modify(self.port, EPOLLIN)
        if count > 0:
            self._reader.added(count)
            self._handle_frames()

    def _disconnected(self) -> None:
        """Wait for a new host. A port without a host always reads as ended, so only changes may wake the
        agent.
        """
        if not self.is_device:
            self.close()
        elif self._connected:
            self._connected = False
            self._reset()
            self._reader.reset()
            self.nonce = 0
            self._epoll.modify(self.port, EPOLLIN | EPOLLET)

    def close(self) -> None:
        self._reset()
        self.port = -1

    def _reset(self, resumed: dict[str, object] | None = None) -> None:
        """End all requests of the disconnected host, except sessions that a new host resumes."""
        for session_id, session in list(self.sessions.items()):
            if resumed is None or str(session_id) not in resumed or not session.can_resume:
                session.abandon()
                del self.sessions[session_id]
        on_reset, self.on_reset = self.on_reset, []
        for action in on_reset:
            action()
        self._parts.clear()
        self._pending.clear()
        self._stalled.clear()
        self.blocked = False

    def _handle_frames(self) -> None:
        following = self._reader.next
        while True:
            frame = following()
            if frame is None:
                return
            kind, stream, nonce, session_id, payload = frame
            if kind == wire.HELLO:
                self._hello(nonce, payload)
            elif nonce != self.nonce or nonce == 0:
                continue
            elif kind == wire.PING:
                self.send(wire.PONG, 0, bytes(payload[:64]))
            elif kind == wire.CALL:
                self._call(session_id, stream, payload)
            elif kind in (wire.EXEC, wire.DIAL):
                self._open(kind, session_id, stream, payload)
            else:
                session = self.sessions.get(session_id)
                if session is not None:
                    self._handle(session, kind, stream, payload)

    def _handle(self, session: Session, kind: int, stream: int, payload: memoryview) -> None:
        try:
            session.handle(kind, stream, payload)
        except Exception as error:
            session.abandon()
            session.finish({"error": str(error)[:1000]})

    def _hello(self, nonce: int, payload: memoryview) -> None:
        try:
            hello = wire.decode_map(payload)
        except wire.WireError:
            return
        resumed = _map(hello.get("sessions"))
        is_new = nonce != self.nonce
        if is_new:
            self._reset(resumed)
            self._set_blocked(False)
            self.nonce = nonce
        welcome = wire.extend_map(self.welcome or self.render_welcome(), "token", hello.get("token"))
        going_on = [(self.sessions[int(key)], state) for key, state in resumed.items() if self._has(key)]
        if going_on:
            states = [session.describe(_map(state)) for session, state in going_on]
            welcome = wire.extend_map(welcome, "sessions", states)
        self._pending.append(wire.SYNC + wire.pack(wire.WELCOME, nonce, 0, welcome))
        for session, state in going_on if is_new else ():
            session.resume(_map(state))

    def _has(self, key: str) -> bool:
        return key.isdigit() and int(key) in self.sessions

    def render_welcome(self) -> bytes:
        """Return the answer to a hello, as a map, without the token."""
        from bough.guest import agent_facts

        facts = agent_facts.gather()
        facts.update(version=wire.VERSION, agent_version=AGENT_VERSION, window=agent_session.INPUT_WINDOW)
        facts.update(resumes=self.keeping is not None, long_commands=True)
        return wire.encode(facts)

    def _open(self, kind: int, session_id: int, more: int, payload: memoryview) -> None:
        try:
            if more or session_id in self._parts:
                whole = self._gather(session_id, more, payload)
                if whole is None:
                    return
                payload = memoryview(whole)
            if len(self.sessions) >= MAX_SESSIONS or session_id in self.sessions:
                raise Refused("the guest has too many sessions open")
            request = wire.decode_map(payload)
            self.sessions[session_id] = _session_kind(kind, request)(self, session_id, request)
        except Exception as error:
            self.send_error(session_id, error)

    def _gather(self, key: int, more: int, payload: memoryview) -> bytes | None:
        """Collect the parts of a payload. Return the whole with the last part."""
        parts = self._parts.setdefault(key, [])
        parts.append(bytes(payload))
        if more:
            if sum(map(len, parts)) > _MAX_CALL or len(self._parts) > MAX_SESSIONS:
                del parts[:]
            return None
        del self._parts[key]
        return b"".join(parts)

    def _call(self, call: int, more: int, payload: memoryview) -> None:
        whole = self._gather(call, more, payload)
        if whole is None:
            return
        try:
            if self._start_call is None:
                from bough.guest.agent_calls import start

                # even a repeated import executes a thousand blocks of code
                self._start_call = start
            request = wire.decode_map(whole)
            self._start_call(self, call, str(request.get("operation")), _map(request.get("arguments")))
        except Exception as error:
            self.send_error(call, error)


def _session_kind(kind: int, request: dict[str, object]) -> Callable[..., Session]:
    if kind == wire.EXEC:
        return agent_command.Command
    if "mount" in request:
        from bough.guest import agent_door

        return agent_door.MountStream
    if "listening" in request:
        from bough.guest import agent_listeners

        return agent_listeners.Listeners
    return agent_connection.Connection


def _map(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def main(arguments: list[str]) -> int:
    """Serve the port. With `--fd N`: serve an open descriptor, and end when the descriptor ends."""
    return serve(arguments, None)


def serve(arguments: list[str], control: _socket.socket | None) -> int:
    """Serve like main, below a keeper at the other end of `control`."""
    from bough.guest import agent_port

    keeping = None
    if control is not None:
        from bough.guest.agent_kept import Keeping

        keeping = Keeping(control)
    if arguments[:1] == ["--fd"]:
        port = int(arguments[1])
        os.set_inheritable(port, False)
        agent = Agent(port, is_device=False, keeping=keeping)
    else:
        agent_port.prepare_process()
        agent = Agent(agent_port.open_port(PORT_NAME), is_device=True, keeping=keeping)
    _signal.signal(_signal.SIGTERM, agent.leave)
    agent.run()
    return 0
