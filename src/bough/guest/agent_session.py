"""Sessions of the agent, and streams with credit.

agent_command.py, agent_connection.py, agent_listeners.py and agent_door.py have the kinds of sessions.
"""

from __future__ import annotations

import os
import select

from bough.guest import agent_spawn, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from bough.guest.agent_tally import Mark

    class Agent(Protocol):
        """The parts of agent.Agent that sessions use."""

        sessions: dict[int, Session]
        blocked: bool
        carries: bool

        def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None: ...
        def unwatch(self, fd: int) -> None: ...
        def call_later(self, seconds: float, action: Callable[[], None]) -> None: ...
        def when_writable(self, action: Callable[[], None]) -> None: ...
        def send(self, kind: int, session: int = 0, payload: bytes = b"", stream: int = 0) -> None: ...
        def send_values(self, kind: int, session: int, values: object) -> None: ...
        def send_error(self, session: int, error: BaseException) -> None: ...
        def send_from(self, fd: int, limit: int, session: int, stream: int) -> int: ...


# Bytes of a command's input that the host may send ahead of the command's reads.
INPUT_WINDOW = 512 * 1024
MAX_WINDOW = 64 * 1024 * 1024
# Number of frames of a stream before the turn of the other streams.
_BURST = 8

EPOLLIN = select.EPOLLIN
EPOLLOUT = select.EPOLLOUT


class Session:
    """The interface between Agent and a session. Each session ends with one ERROR or EXIT frame."""

    agent: Agent
    id: int
    can_resume = False

    def handle(self, kind: int, stream: int, payload: memoryview) -> None:
        raise NotImplementedError

    def abandon(self) -> None:
        """Stop everything. No frame of the session may be sent any more."""
        raise NotImplementedError

    def output_ended(self, outlet: Outlet) -> None:
        raise NotImplementedError

    def input_ended(self) -> None:
        """Handle the end of the input: closed by the host, or without a reader."""

    def was_read(self) -> None:
        """Handle bytes read from an output."""

    def closed(self, stream: int) -> None:
        """Handle the closing of the stream's descriptor."""

    def describe(self, state: dict[str, object]) -> dict[str, object]:
        """Return facts for a host that resumes the session. `state` is the host's view of the session."""
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
        last_bytes: number of bytes until the stream counts as ended; None: not known yet.
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
        self.credit = min(self.credit + count, MAX_WINDOW)
        self.resume()

    def drain_until_empty(self) -> None:
        """End the stream after the bytes now in the descriptor."""
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
                count = 0  # a terminal closed by all processes, or a reset connection
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
    """A descriptor for bytes from the host. Written bytes return credit to the host.

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
        """Drop unwritten bytes: the host sends these bytes again."""
        if self._queue:
            self.session.agent.unwatch(self.fd)
        self._queue.clear()
        self._taken = 0
        self._ending = False

    @property
    def waiting(self) -> int:
        """Return the bytes not written yet."""
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


def first_credit(request: dict[str, object]) -> int:
    """Return the bytes allowed to the agent on each stream of a new session."""
    window = request.get("window")
    return min(window, MAX_WINDOW) if isinstance(window, int) else 64 * 1024
