"""A TCP port of the host that bough holds all the time, and opens to connections only at times."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_BACKLOG = 128


class HostPort:
    """A port, bound at construction. Connections are refused until `open`.

    The kernel refuses connections to a bound port without a listener, and gives the port to no other program.
    On Linux shutdown(2) ends the listening and keeps the binding.

    Raises (the constructor): OSError, OverflowError.
    """

    def __init__(self, host: str, port: int) -> None:
        self._socket = _bind(host, port)
        self._server: asyncio.Server | None = None
        self._refuse_others()

    @property
    def number(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def is_open(self) -> bool:
        return self._server is not None

    async def open(self, accept: Accept) -> None:
        """Listen. Raises OSError."""
        if self._server is None:
            # For earlier connections still remembered by the kernel (TIME_WAIT).
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._server = await asyncio.start_server(accept, sock=self._socket.dup(), backlog=_BACKLOG)

    def shut(self) -> None:
        """Refuse new connections; accepted connections stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._refuse_others()

    def close(self) -> None:
        self.shut()
        self._socket.close()

    def _refuse_others(self) -> None:
        """Disallow reuse of the address, so no other program can listen on the port."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def _bind(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
    )
    family, _, _, _, address = found[0]
    sock = _bound(family, address)
    if port:
        return sock
    # When listening ends, the kernel frees a port of its own choice, but not a port requested by number.
    with sock:
        return _bound(family, sock.getsockname())


def _bound(family: int, address: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit the option. asyncio sets the option only for sockets made with
        # IPPROTO_TCP.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return sock
