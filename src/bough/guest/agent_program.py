"""Operations on the container program, which bough's init runs (agent_init_process.py)."""

# contextlib costs an emulated guest 20 ms to load.
# ruff: noqa: SIM105

from __future__ import annotations

import _socket
import select

from bough.guest import agent_init_door as door
from bough.guest import wire
from bough.guest.agent_init_setup import RUN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bough.guest.agent_calls import Agent, Arguments

#: Directory of the init's socket.
place = RUN


def start_program(agent: Agent, call: int, arguments: Arguments) -> None:
    """Start the program. {"argv", "env", "cwd", "user", "stop_signal"} -> {"pid"}.

    While the program runs, a second call answers the same pid.
    """
    _Request(agent, call, {**arguments, "operation": "start"})


def await_program(agent: Agent, call: int, _arguments: Arguments) -> None:
    """Wait for the end of the program. {} -> {"code"} or {"signal"}, and "output": the last 4 KiB."""
    _Request(agent, call, {"operation": "await"})


class _Request:
    """A request to the init. The answer goes to the host that asked, if it is still connected."""

    def __init__(self, agent: Agent, call: int, asked: Arguments) -> None:
        self._agent = agent
        self._call = call
        self._nonce = agent.nonce
        self._held = b""
        self._is_open = True
        self._sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
        try:
            self._sock.connect(f"{place}/{door.NAME}")
            self._sock.sendall(door.pack(asked))
        except OSError:
            self._sock.close()
            raise OSError(95, "only a guest with bough's init runs a program at its start") from None
        agent.watch(self._sock.fileno(), select.EPOLLIN, self._readable)
        agent.on_reset.append(self._close)

    def _readable(self, _events: int) -> None:
        try:
            data = self._sock.recv(65536)
            self._held += data
            answer, self._held = door.unpack(self._held)
        except (OSError, wire.WireError):
            data, answer = b"", None
        if answer is not None:
            self._tell(answer)
        elif not data:
            self._tell({"message": "the guest's init has closed the connection", "errno": None})

    def _tell(self, answer: dict[str, object]) -> None:
        kind = wire.ERROR if "message" in answer else wire.RESULT
        if self._nonce == self._agent.nonce:
            self._agent.send_values(kind, self._call, answer)
            if "output" in answer:
                # The agent sends all pending frames before it ends.
                try:
                    self._sock.sendall(door.pack({"operation": "taken"}))
                except OSError:
                    pass  # the guest powers off already
        self._close()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._agent.unwatch(self._sock.fileno())
            self._sock.close()
