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

# How much of a command's input the host may send ahead of what the command has read.
INPUT_WINDOW = 512 * 1024
_MAX_WINDOW = 64 * 1024 * 1024
# A stream gives way to the others after so many frames.
_BURST = 8
# A command that is to end has so long to do it by itself.
_GRACE_S = 2.0
_LOOK_EACH_S = 1.0
# A program that takes nothing of a closed connection's last bytes gets them for so long.
_LINGER_S = 60.0


EPOLLIN = select.EPOLLIN
EPOLLOUT = select.EPOLLOUT


class Refused(Exception):
    """What was asked for cannot be done; told to the host, not a fault of the agent."""


def describe_error(error: BaseException) -> dict[str, object]:
    """What an ERROR frame says."""
    code = getattr(error, "errno", None)
    name = None
    if code is not None:
        import errno

        name = errno.errorcode.get(code)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    filename = getattr(error, "filename", None)
    if isinstance(filename, (str, bytes)):
        text = f"{os.fsdecode(filename)}: {text}"
    # Text for people: a name that is not UTF-8 is shown as well as it can be.
    shown = text[:4000].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return {"message": shown, "errno": name}


class Session:
    """What Agent asks of a session. Each ends with one ERROR or EXIT frame, then it is forgotten."""

    agent: Agent
    id: int
    can_resume = False

    def handle(self, kind: int, stream: int, payload: memoryview) -> None:
        raise NotImplementedError

    def abandon(self) -> None:
        """End all of it; no frame may be sent for it any more."""
        raise NotImplementedError

    def output_ended(self, outlet: Outlet) -> None:
        raise NotImplementedError

    def input_ended(self) -> None:
        """The input was closed, at the host's wish or because nobody reads it."""

    def was_read(self) -> None:
        """Bytes of an output were read."""

    def closed(self, stream: int) -> None:
        """The descriptor of that stream was closed."""

    def describe(self, state: dict[str, object]) -> dict[str, object]:
        """What a host that resumes the session is told; `state` is what that host has of it."""
        raise NotImplementedError

    def resume(self, state: dict[str, object]) -> None:
        """Go on from `state`, what the host has of the session."""
        raise NotImplementedError

    def finish(self, values: dict[str, object]) -> None:
        if self.agent.sessions.get(self.id) is self:
            del self.agent.sessions[self.id]
            self.agent.send_values(wire.EXIT, self.id, values)


class Outlet:
    """A descriptor whose bytes go to the host, as far as its credit reaches.

    Attributes:
        last_bytes: once known, how many bytes may still come before it counts as ended.
        passed: how many bytes were read.
        mark: where `passed` is kept for the next agent.
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
        """Read when there is something; not called in the middle of being read."""
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
        """What is in the descriptor now is the last that matters."""
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
                count = 0  # a terminal that nobody has open any more, a connection reset
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
    """A descriptor that takes bytes from the host; gives credit back as they are taken.

    Attributes:
        passed: how many bytes were written.
        mark: where `passed` is kept for the next agent.
    """

    def __init__(self, session: Session, fd: int, stream: int, end: Callable[[int], None]) -> None:
        """`end` is called with the descriptor at the end of the input, before it is closed."""
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
        """The host sends again what was not written yet."""
        if self._queue:
            self.session.agent.unwatch(self.fd)
        self._queue.clear()
        self._taken = 0
        self._ending = False

    @property
    def waiting(self) -> int:
        """Bytes that the descriptor has not taken yet."""
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
        """What could not be written; nothing once nobody reads."""
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
                return  # it was closed
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
    """A command, in a session (setsid) of its own.

    Attributes:
        slot: of the memory that the next agent reads (agent_kept.py); -1: the keeper does not know of it.
        is_open: it runs, and its streams are watched.
    """

    slot = -1
    is_open = False
    can_resume = True
    #: Of one that was taken over: what is not right about its streams, by stream.
    _torn: frozenset[int] = frozenset()
    #: Taken over, and no host has asked for it yet.
    _waits = False
    _early_status: int | None = None

    def __init__(self, agent: Agent, session_id: int, request: dict[str, object]) -> None:
        self.agent = agent
        self.id = session_id
        self._status: dict[str, object] | None = None
        self._window = _window(request)
        self._process = process = agent_spawn.start(request, apart=agent.carries)
        # Kept until it ended: a program that closes its streams first would be hung up before its exit.
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
        """A command of the agent before; it waits for a host that resumes it."""
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
        """The keeper tells of its end, unless that was killed too, or is no subreaper."""
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
        """The keeper tells how it ended."""
        if self._waits:
            self._early_status = wait_status
        else:
            self._exited(wait_status)

    def streams(self) -> dict[str, int]:
        """The descriptors that the next agent needs."""
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
        """`lost`: bytes of stdout and stderr that were read and did not come; -1: perhaps."""
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
        """One that was started apart runs now, or said why it cannot."""
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
            self._begun(0)  # its end closed the other side: this does not wait
        # A child of it may hold the pipes open for years: what it wrote itself is in them now.
        for outlet in self._outlets:
            if self._terminal < 0:
                outlet.drain_until_empty()
            elif outlet.fd >= 0:
                self._drain_terminal(outlet)
        self._finish_if_over()

    def _drain_terminal(self, outlet: Outlet) -> None:
        # The end of a session's leader hangs its terminal up: reads give what is left, then an error.
        # Where another process opened it again they would block instead, so look once more, later.
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
        """Hang up, as the end of a login does; what is still there after the grace is killed."""
        from bough.guest.agent_signals import signal_session

        session = self.pid
        if not signal_session(session, ("CONT", "HUP", "TERM")):
            return

        def kill() -> None:
            # Until none is left, as a process may fork while we look.
            if signal_session(session, ("KILL",)):
                self.agent.call_later(0.05, kill)

        self.agent.call_later(_GRACE_S, kill)


class Connection(Session):
    """A TCP connection to a port that is reached from inside of the guest."""

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
        """To the next place that there is. Raises OSError."""
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
        """Close as close(2) does: what is queued is still delivered, for as long as the guest takes it."""
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
        # A server that uses Nagle's algorithm, sshd for one, waits with its next bytes for our kernel's
        # acknowledgement, which comes 40 ms late unless asked for (tcp(7), TCP_QUICKACK).
        try:
            self._socket.setsockopt(6, 12, 1)
        except OSError:
            pass  # a mount's, or closed by the other side

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
        """Go on with the next place; the first one's error is told where there is none."""
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
            pass  # the other side was quicker

    def _finish_if_over(self) -> None:
        if (
            self._inlet is not None
            and self._inlet.fd < 0
            and self._outlet is not None
            and self._outlet.fd < 0
        ):
            self.abandon()
            self.finish({"code": 0})
