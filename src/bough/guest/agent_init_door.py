"""The socket by which the agent talks to bough's init: requests and answers as maps of wire.py.

Each message is the length in four bytes, and the map. Only root can enter the socket's directory.
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH108, SIM105

from __future__ import annotations

import _socket
import os

from bough.guest.wire import WireError, decode_map, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Socket = _socket.socket
    Values = dict[str, object]
    Serve = Callable[["Visitor", Values], None]

NAME = "init.sock"
_LENGTH_BYTES = 4
_MOST_BYTES = 16 * 1024 * 1024
_MOST_VISITORS = 32


def pack(values: Values) -> bytes:
    payload = encode(values)
    return len(payload).to_bytes(_LENGTH_BYTES, "little") + payload


def unpack(held: bytes) -> tuple[Values | None, bytes]:
    """Return the first message, or None, and the rest. Raises WireError: the bytes are no message."""
    if len(held) < _LENGTH_BYTES:
        return None, held
    length = int.from_bytes(held[:_LENGTH_BYTES], "little")
    if length > _MOST_BYTES:
        raise WireError("too long")
    end = _LENGTH_BYTES + length
    if len(held) < end:
        return None, held
    return decode_map(held[_LENGTH_BYTES:end]), held[end:]


class Visitor:
    """A connection.

    Attributes:
        awaits: "start" or "end" of the program; "": nothing.
    """

    def __init__(self, sock: Socket) -> None:
        self.sock = sock
        self.awaits = ""
        self.held = b""

    def answer(self, values: Values) -> None:
        self.awaits = ""
        try:
            self.sock.send(pack(values))
        except OSError:
            pass  # the agent has ended; the next one asks again


class Door:
    """The socket and its connections. Nothing here blocks."""

    def __init__(self, directory: str, serve: Serve) -> None:
        self._serve = serve
        self._visitors: list[Visitor] = []
        path = f"{directory}/{NAME}"
        try:
            os.unlink(path)
        except OSError:
            pass  # there is none
        kind = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        self._listener = _socket.socket(_socket.AF_UNIX, kind, 0)
        self._listener.bind(path)
        self._listener.listen(8)

    def sources(self) -> dict[int, Callable[[], None]]:
        """Return descriptor -> what to call when it can be read."""
        found: dict[int, Callable[[], None]] = {self._listener.fileno(): self._accept}
        for visitor in self._visitors:
            found[visitor.sock.fileno()] = lambda visitor=visitor: self._read(visitor)  # type: ignore[misc]
        return found

    def waiting(self, what: str) -> list[Visitor]:
        return [visitor for visitor in self._visitors if visitor.awaits == what]

    def _accept(self) -> None:
        fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # _socket's, without socket.py
        sock = _socket.socket(fileno=fd)
        sock.setblocking(False)
        if len(self._visitors) >= _MOST_VISITORS:
            self._visitors.pop(0).sock.close()
        self._visitors.append(Visitor(sock))

    def _read(self, visitor: Visitor) -> None:
        if visitor not in self._visitors:
            return  # closed since the poll
        try:
            data = visitor.sock.recv(65536)
            visitor.held += data
            while True:
                asked, visitor.held = unpack(visitor.held)
                if asked is None:
                    break
                self._serve(visitor, asked)
        except BlockingIOError:
            return
        except (OSError, WireError):
            data = b""
        if not data:
            visitor.sock.close()
            self._visitors.remove(visitor)
