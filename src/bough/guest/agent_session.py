"""Sessions of the agent: commands and TCP connections, as streams with credit."""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: SIM105

from __future__ import annotations

import os
import select

from bough.guest import agent_spawn, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bough.guest.agent import Agent
    from bough.guest.agent_kept import Mark

# Bytes of a command's input that the host may send before the command reads them.
INPUT_WINDOW = 512 * 1024
_MAX_WINDOW = 64 * 1024 * 1024
# Number of frames after which a stream lets the other streams continue.
_BURST = 8
# Time for an aborted command to end by itself.
_GRACE_S = 2.0
_LOOK_EACH_S = 1.0
# Time for a program to read the last bytes of a closed connection.
_LINGER_S = 60.0


EPOLLIN = select.EPOLLIN
EPOLLOUT = select.EPOLLOUT


class Refused(Exception):
    """A request that cannot be served. The host gets the message; the agent is not at fault."""


def describe_error(error: BaseException) -> dict[str, object]:
    """Return the content of an ERROR frame."""
    code = getattr(error, "errno", None)
    name = None
    if code is not None:
        import errno

        name = errno.errorcode.get(code)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    filename = getattr(error, "filename", None)
    if isinstance(filename, (str, bytes)):
        text = f"{os.fsdecode(filename)}: {text}"
    # Text for people: a name that is not UTF-8 is shown as well as possible.
    shown = text[:4000].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return {"message": shown, "errno": name}


class Session:
    """The interface between Agent and a session. Each session ends with one ERROR or EXIT frame."""

    agent: Agent
    id: int
    can_resume = False

    def handle(self, kind: int, stream: int, payload: memoryview) -> None:
        raise NotImplementedError

    def abandon(self) -> None:
        """Stop everything. No frame of this session may be sent any more."""
        raise NotImplementedError

    def output_ended(self, outlet: Outlet) -> None:
        raise NotImplementedError

    def input_ended(self) -> None:
        """Handle the end of the input: the host closed it, or no process reads it."""

    def was_read(self) -> None:
        """Handle bytes that were read from an output."""

    def closed(self, stream: int) -> None:
        """Handle the closing of that stream's descriptor."""

    def describe(self, state: dict[str, object]) -> dict[str, object]:
        """Return facts for a host that resumes the session. `state` is that host's view of it."""
        raise NotImplementedError

    def resume(self, state: dict[str, object]) -> None:
        """Continue from `state`, the host's view of the session."""
        raise NotImplementedError

    def finish(self, values: dict[str, object]) -> None:
        if self.agent.sessions.get(self.id) is self:
            del self.agent.sessions[self.id]
            self.agent.send_values(wire.EXIT, self.id, values)


class Outlet:
    """A descriptor whose bytes go to the host, as far as the credit allows.

    Attributes:
        last_bytes: bytes that still come before the stream counts as ended; None: not known yet.
        passed: number of bytes read.
        mark: place of `passed` in memory for the next agent.
    """

    def __init__(self, session: Session, fd: int, stream: int, credit: int) -> None:
        if fd >= 0:
            os.set_blocking(fd, False)
        self.session = session
        self.fd = fd
        self.stream = stream
        self.credit = credit
        self.last_bytes: int | None = None
        self.passed = 0
        self.mark: Mark | None = None
        self.watched = False
        self.resume()

    def resume(self) -> None:
        """Read when bytes arrive. Not called during a read."""
        if self.fd >= 0 and not self.watched:
            self.watched = True
            self.session.agent.watch(self.fd, EPOLLIN, self.readable)

    def pause(self) -> None:
        if self.watched:
            self.watched = False
            self.session.agent.unwatch(self.fd)

    def add_credit(self, count: int) -> None:
        self.credit = min(self.credit + count, _MAX_WINDOW)
        self.resume()

    def drain_until_empty(self) -> None:
        """End the stream after the bytes that are in the descriptor now."""
        if self.fd >= 0:
            self.last_bytes = agent_spawn.bytes_to_read(self.fd)
            if self.last_bytes == 0:
                self.end()

    def readable(self, _events: int) -> None:
        agent = self.session.agent
        for _ in range(_BURST):
            limit = self.credit - wire.FRAME_COST
            if self.last_bytes is not None:
                limit = min(limit, self.last_bytes)
            if agent.blocked:
                self.pause()
                agent.when_writable(self.resume)
                return
            if limit <= 0:
                self.pause()
                return
            if self.mark is not None:
                self.mark.touch(self.passed)
            try:
                count = agent.send_from(self.fd, limit, self.session.id, self.stream)
            except BlockingIOError:
                count = -1
            except OSError:
                count = 0  # a terminal that no process has open any more, or a reset connection
            self.passed += max(count, 0)
            if self.mark is not None:
                self.mark.set(self.passed)
            if count < 0:
                return
            if count == 0:
                self.end()
                return
            self.credit -= count + wire.FRAME_COST
            self.session.was_read()
            if self.last_bytes is not None:
                self.last_bytes -= count
                if self.last_bytes == 0:
                    self.end()
                    return

    def end(self) -> None:
        if self.fd >= 0:
            self.close()
            self.session.output_ended(self)

    def close(self) -> None:
        if self.fd >= 0:
            self.pause()
            os.close(self.fd)
            self.fd = -1
            self.session.closed(self.stream)


class Inlet:
    """A descriptor that gets bytes from the host. Written bytes return credit to the host.

    Attributes:
        passed: number of bytes written.
        mark: place of `passed` in memory for the next agent.
    """

    def __init__(self, session: Session, fd: int, stream: int, end: Callable[[int], None]) -> None:
        """Watch a descriptor.

        Args:
            end: called with the descriptor at the end of the input, before the descriptor is closed.
        """
        if fd >= 0:
            os.set_blocking(fd, False)
        self.session = session
        self.fd = fd
        self.stream = stream
        self._end = end
        self.passed = 0
        self.mark: Mark | None = None
        self._queue: list[tuple[memoryview, int]] = []
        self._taken = 0
        self._ending = False

    def start_over(self) -> None:
        """Drop unwritten bytes: the host sends them again."""
        if self._queue:
            self.session.agent.unwatch(self.fd)
        self._queue.clear()
        self._taken = 0
        self._ending = False

    @property
    def waiting(self) -> int:
        """Return the bytes that are not written yet."""
        return sum(len(payload) for payload, _ in self._queue)

    def data(self, payload: memoryview) -> None:
        cost = len(payload) + wire.FRAME_COST
        if not self._queue:
            payload = self._write(payload)
            if not payload:
                self._give_credit(cost)
                return
            self.session.agent.watch(self.fd, EPOLLOUT, self._writable)
        self._queue.append((memoryview(bytes(payload)), cost))

    def finish(self) -> None:
        self._ending = True
        if not self._queue:
            self._finished()

    def close(self) -> None:
        self._queue.clear()
        if self.fd >= 0:
            self.session.agent.unwatch(self.fd)
            os.close(self.fd)
            self.fd = -1
            self.session.closed(self.stream)

    def _write(self, payload: memoryview) -> memoryview:
        """Write, and return the rest; nothing once no process reads."""
        if self.fd < 0:
            return payload[:0]
        if self.mark is not None:
            self.mark.touch(self.passed)
        try:
            count = os.write(self.fd, payload)
            self.passed += count
            return payload[count:]
        except BlockingIOError:
            return payload
        except OSError:
            self.close()
            self.session.agent.send(wire.STOP, self.session.id, b"", self.stream)
            self.session.input_ended()
            return payload[:0]
        finally:
            if self.mark is not None:
                self.mark.set(self.passed)

    def _writable(self, _events: int) -> None:
        while self._queue:
            payload, cost = self._queue[0]
            rest = self._write(payload)
            if not self._queue:
                return  # the descriptor was closed
            if rest:
                self._queue[0] = (rest, cost)
                return
            self._queue.pop(0)
            self._give_credit(cost)
        self.session.agent.unwatch(self.fd)
        if self._ending:
            self._finished()

    def _finished(self) -> None:
        if self.fd >= 0:
            self._end(self.fd)
            self.close()
            self.session.input_ended()

    def _give_credit(self, cost: int) -> None:
        self._taken += cost
        if self._taken >= INPUT_WINDOW // 4:
            payload = wire.CREDIT_PAYLOAD.pack(self._taken)
            self._taken = 0
            self.session.agent.send(wire.CREDIT, self.session.id, payload, self.stream)


def _window(request: dict[str, object]) -> int:
    window = request.get("window")
    return min(window, _MAX_WINDOW) if isinstance(window, int) else 64 * 1024


_NAMES = {wire.STDIN: "stdin", wire.STDOUT: "stdout", wire.STDERR: "stderr"}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


class Command(Session):
    """A command, in its own session (setsid).

    Attributes:
        slot: slot in the memory that the next agent reads (agent_kept.py); -1: the keeper does not keep it.
        is_open: the command runs, and its streams are watched.
    """

    slot = -1
    is_open = False
    can_resume = True
    #: Streams of an adopted command whose count is unknown.
    _torn: frozenset[int] = frozenset()
    #: The command was adopted, and no host has resumed it yet.
    _waits = False
    _early_status: int | None = None

    def __init__(self, agent: Agent, session_id: int, request: dict[str, object]) -> None:
        self.agent = agent
        self.id = session_id
        self._status: dict[str, object] | None = None
        self._window = _window(request)
        self._process = process = agent_spawn.start(request, apart=agent.carries)
        # Kept open until the command's end: closing it would hang up a program that closes its streams before
        # its exit.
        self._terminal = process.terminal
        self.pid = process.pid
        agent.on_exit(process.pid, self._exited)
        self._inlet = Inlet(self, process.stdin, wire.STDIN, self._end_of_input)
        self._outlets: list[Outlet] = []
        if process.failure >= 0:
            agent.watch(process.failure, EPOLLIN, self._begun)
        else:
            self._opened()

    def handle(self, kind: int, stream: int, payload: memoryview) -> None:
        if kind == wire.DATA:
            self._inlet.data(payload)
        elif kind == wire.EOF:
            self._inlet.finish()
        elif kind == wire.CREDIT:
            (count,) = wire.CREDIT_PAYLOAD.unpack(payload)
            for outlet in self._outlets:
                if outlet.stream == stream:
                    outlet.add_credit(count)
        elif kind == wire.SIGNAL:
            from bough.guest.agent_signals import signal_group

            signal_group(self.pid, bytes(payload).decode("ascii", "replace"))
        elif kind == wire.RESIZE and self._terminal >= 0:
            agent_spawn.set_terminal_size(self._terminal, *wire.SIZE_PAYLOAD.unpack(payload))
        elif kind == wire.ABORT:
            self._close()
            self._kill()
            if self._status is not None:
                self.finish(self._status)

    def abandon(self) -> None:
        self._forget()
        self._close()
        self._kill()

    def output_ended(self, _outlet: Outlet) -> None:
        self._finish_if_over()

    def _opened(self) -> None:
        process = self._process
        self.agent.send_values(wire.OPENED, self.id, {"pid": self.pid})
        self._outlets = [Outlet(self, process.stdout, wire.STDOUT, self._window)]
        if process.stderr >= 0:
            self._outlets.append(Outlet(self, process.stderr, wire.STDERR, self._window))
        process.stdout = process.stderr = -1
        self.is_open = True
        if self.agent.keeping is not None:
            self.agent.keeping.expect()

    # -- from one agent to the next (agent_kept.py) ---------------------------------------------------

    @classmethod
    def adopt(cls, agent: Agent, session_id: int, process: agent_spawn.Process, marks: list[Mark]) -> Command:
        """Adopt a command of the previous agent. The command waits for a host that resumes it."""
        self = cls.__new__(cls)
        self.agent = agent
        self.id = session_id
        self._status = None
        self._window = 0
        self._process = process
        self._terminal = process.terminal
        self.pid = process.pid
        self._waits = True
        self._inlet = Inlet(self, process.stdin, wire.STDIN, self._end_of_input)
        outlets = ((process.stdout, wire.STDOUT), (process.stderr, wire.STDERR))
        self._outlets = [Outlet(self, fd, stream, 0) for fd, stream in outlets]
        process.stdin = process.stdout = process.stderr = -1
        self._torn = frozenset(stream for stream, mark in enumerate(marks) if mark.read() is None)
        for end in self._ends():
            end.passed = marks[end.stream].read() or 0
            end.mark = marks[end.stream]
        self.is_open = True
        agent.sessions[session_id] = self
        agent.call_later(_LOOK_EACH_S, self._look)
        return self

    def _look(self, *, again: bool = False) -> None:
        """Check that an adopted command still runs.

        The keeper reports the command's end, unless the keeper was killed too, or is no subreaper.
        """
        if self.agent.sessions.get(self.id) is not self or self._status is not None:
            return
        gone = self._early_status is None and not self._waits and not _lives(self.pid)
        if gone and again:
            for outlet in self._outlets:
                outlet.drain_until_empty()
            self._status = {"error": "the agent was killed: the exit status is not known"}
            self._finish_if_over()
        else:
            self.agent.call_later(_LOOK_EACH_S, lambda: self._look(again=gone))

    def exited_before(self, wait_status: int) -> None:
        """Handle the keeper's report of how the command ended."""
        if self._waits:
            self._early_status = wait_status
        else:
            self._exited(wait_status)

    def streams(self) -> dict[str, int]:
        """Return the descriptors that the next agent needs."""
        if self._terminal >= 0:
            return {"terminal": self._terminal}
        return {_NAMES[end.stream]: end.fd for end in self._ends() if end.fd >= 0}

    def _ends(self) -> list[Inlet | Outlet]:
        return [self._inlet, *self._outlets]

    def mark(self, marks: list[Mark]) -> None:
        for end in self._ends():
            end.mark = marks[end.stream]
            end.mark.set(end.passed)

    def closed(self, stream: int) -> None:
        if self.slot >= 0 and self._terminal < 0 and self.agent.keeping is not None:
            self.agent.keeping.close(self, _NAMES[stream])

    def describe(self, state: dict[str, object]) -> dict[str, object]:
        """Return the account of the streams for the host.

        `lost`: bytes of stdout and stderr that were read and did not arrive; -1: perhaps some.
        """
        received = state.get("received")
        lost = {wire.STDOUT: 0, wire.STDERR: 0}
        if isinstance(received, list) and len(received) == 2:
            for outlet in self._outlets:
                lost[outlet.stream] = outlet.passed - received[outlet.stream - 1]
        for stream in self._torn - {wire.STDIN}:
            lost[stream] = -1
        written = None if wire.STDIN in self._torn else self._inlet.passed
        return {"id": self.id, "written": written, "lost": list(lost.values())}

    def resume(self, state: dict[str, object]) -> None:
        self._waits = False
        self._inlet.start_over()
        credit = state.get("credit")
        if isinstance(credit, list) and len(credit) == 2:
            for outlet in self._outlets:
                outlet.credit = min(credit[outlet.stream - 1], _MAX_WINDOW)
                outlet.resume()
        if self._inlet.fd < 0:
            self.agent.send(wire.STOP, self.id, b"", wire.STDIN)
        if self._early_status is not None:
            self._exited(self._early_status)

    def finish(self, values: dict[str, object]) -> None:
        self._forget()
        super().finish(values)

    def _forget(self) -> None:
        if self.slot >= 0 and self.agent.keeping is not None:
            self.agent.keeping.forget(self)

    # -- its end --------------------------------------------------------------------------------------

    def _begun(self, _events: int) -> None:
        """Report that a command in a separate child now runs, or why it cannot."""
        told = os.read(self._process.failure, 65536)
        self._close_failure()
        if not told:
            self._opened()
            return
        self._close()
        if self.agent.sessions.pop(self.id, None) is self:
            self.agent.send_values(wire.ERROR, self.id, wire.decode_map(told))

    def _close_failure(self) -> None:
        if self._process.failure >= 0:
            self.agent.unwatch(self._process.failure)
            os.close(self._process.failure)
            self._process.failure = -1

    def _end_of_input(self, fd: int) -> None:
        if self._terminal >= 0:
            os.write(fd, b"\x04")

    def _exited(self, wait_status: int) -> None:
        self._status = agent_spawn.describe_exit(wait_status)
        if self._process.failure >= 0:
            self._begun(0)  # the child's end closed the other side, so this read does not block
        # A child of the command may hold the pipes open for years. The command's own output is in them now.
        for outlet in self._outlets:
            if self._terminal < 0:
                outlet.drain_until_empty()
            elif outlet.fd >= 0:
                self._drain_terminal(outlet)
        self._finish_if_over()

    def _drain_terminal(self, outlet: Outlet) -> None:
        # The end of a session's leader hangs up its terminal: reads give the rest, then an error. If another
        # process reopened the terminal, reads would block instead, so look again later.
        def look() -> None:
            if outlet.fd >= 0 and agent_spawn.bytes_to_read(outlet.fd) == 0:
                outlet.end()
            elif outlet.fd >= 0:
                self.agent.call_later(0.1, look)

        self.agent.call_later(0.1, look)

    def _finish_if_over(self) -> None:
        if self._status is not None and all(outlet.fd < 0 for outlet in self._outlets):
            self._close()
            self.finish(self._status)

    def _close(self) -> None:
        self._close_failure()
        self._inlet.close()
        for outlet in self._outlets:
            outlet.close()
        process = self._process
        for fd in (process.stdout, process.stderr):
            if fd >= 0:
                os.close(fd)
        process.stdout = process.stderr = -1
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    def _kill(self) -> None:
        """Hang up, as the end of a login does. Kill what still runs after a grace period."""
        from bough.guest.agent_signals import signal_session

        session = self.pid
        if not signal_session(session, ("CONT", "HUP", "TERM")):
            return

        def kill() -> None:
            # Repeat until none is left: a process may fork during the search.
            if signal_session(session, ("KILL",)):
                self.agent.call_later(0.05, kill)

        self.agent.call_later(_GRACE_S, kill)


class Connection(Session):
    """A TCP connection to a port that is reached from inside the guest."""

    _places: Iterator[tuple[str, int, int]] = iter(())
    _error: OSError | None = None

    def __init__(self, agent: Agent, session_id: int, request: dict[str, object]) -> None:
        from bough.guest import agent_dial

        self.agent = agent
        self.id = session_id
        self._window = _window(request)
        self._inlet: Inlet | None = None
        self._outlet: Outlet | None = None
        self._places = agent_dial.addresses(request)
        self._connect()

    def _connect(self) -> None:
        """Connect to the next place. Raises OSError."""
        from bough.guest import agent_dial

        self._socket, pending = agent_dial.connect(self._places)
        if pending:
            self.agent.watch(self._socket.fileno(), EPOLLOUT, self._connected)
        else:
            self._connected(EPOLLOUT)

    def handle(self, kind: int, stream: int, payload: memoryview) -> None:
        if kind == wire.ABORT:
            if stream == wire.AFTER_DATA and self._inlet is not None and self._inlet.waiting:
                self._deliver(self._inlet)
            else:
                self.abandon()
                self.finish({"code": 0})
        elif self._inlet is None or self._outlet is None:
            return
        elif kind == wire.DATA:
            self._inlet.data(payload)
        elif kind == wire.EOF:
            self._inlet.finish()
        elif kind == wire.CREDIT and stream == wire.STDOUT:
            self._outlet.add_credit(wire.CREDIT_PAYLOAD.unpack(payload)[0])

    def abandon(self) -> None:
        self.agent.unwatch(self._socket.fileno())
        for end in (self._inlet, self._outlet):
            if end is not None:
                end.close()
        self._socket.close()

    def _deliver(self, inlet: Inlet) -> None:
        """Close as close(2) does: queued bytes are still delivered, as long as the guest reads."""
        if self._outlet is not None:
            self._outlet.close()
        inlet.finish()
        waiting = inlet.waiting

        def look() -> None:
            if self.agent.sessions.get(self.id) is self and inlet.waiting:
                if inlet.waiting == waiting:
                    self.abandon()
                    self.finish({"code": 0})
                else:
                    self._deliver(inlet)

        self.agent.call_later(_LINGER_S, look)

    def was_read(self) -> None:
        # A server with Nagle's algorithm, such as sshd, delays its next bytes until our kernel acknowledges.
        # The acknowledgement comes 40 ms late unless requested (tcp(7), TCP_QUICKACK).
        try:
            self._socket.setsockopt(6, 12, 1)
        except OSError:
            pass  # a socket of a mount, or closed by the other side

    def output_ended(self, outlet: Outlet) -> None:
        self.agent.send(wire.EOF, self.id, b"", outlet.stream)
        self._finish_if_over()

    def input_ended(self) -> None:
        self._finish_if_over()

    def _connected(self, _events: int) -> None:
        fd = self._socket.fileno()
        self.agent.unwatch(fd)
        code = self._socket.getsockopt(1, 4)  # SOL_SOCKET, SO_ERROR
        if code:
            self._socket.close()
            self._refused(OSError(code, os.strerror(code)))
            return
        self.agent.send_values(wire.OPENED, self.id, {})
        self._inlet = Inlet(self, os.dup(fd), wire.STDIN, self._end_of_input)
        self._outlet = Outlet(self, os.dup(fd), wire.STDOUT, self._window)

    def _refused(self, error: OSError) -> None:
        """Continue with the next place. Without one, report the first place's error."""
        self._error = self._error or error
        try:
            self._connect()
        except OSError:
            del self.agent.sessions[self.id]
            self.agent.send_error(self.id, self._error)

    def _end_of_input(self, _fd: int) -> None:
        try:
            self._socket.shutdown(1)
        except OSError:
            pass  # the other side has already closed

    def _finish_if_over(self) -> None:
        if (
            self._inlet is not None
            and self._inlet.fd < 0
            and self._outlet is not None
            and self._outlet.fd < 0
        ):
            self.abandon()
            self.finish({"code": 0})
