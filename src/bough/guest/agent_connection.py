"""Connections of the agent: TCP to a port reached from inside the guest."""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: SIM105

from __future__ import annotations

import os
import select

from bough.guest import wire
from bough.guest.agent_session import Inlet, Outlet, Session, first_credit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bough.guest.agent_session import Agent

# Time for a program to read the last bytes of a closed connection.
_LINGER_S = 60.0


class Connection(Session):
    """A TCP connection to a port reached from inside the guest."""

    _places: Iterator[tuple[str, int, int]] = iter(())
    _error: OSError | None = None

    def __init__(self, agent: Agent, session_id: int, request: dict[str, object]) -> None:
        from bough.guest import agent_dial

        self.agent = agent
        self.id = session_id
        self._window = first_credit(request)
        self._inlet: Inlet | None = None
        self._outlet: Outlet | None = None
        self._places = agent_dial.addresses(request)
        self._connect()

    def _connect(self) -> None:
        """Connect to the next place. Raises OSError."""
        from bough.guest import agent_dial

        self._socket, pending = agent_dial.connect(self._places)
        if pending:
            self.agent.watch(self._socket.fileno(), select.EPOLLOUT, self._connected)
        else:
            self._connected(select.EPOLLOUT)

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
