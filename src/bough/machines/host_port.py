"""A TCP port of the host that is ours all the time, and accepts connections only at times."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_BACKLOG = 128


class HostPort:
    """Bound when constructed, and refusing connections until `open`.

    The kernel refuses connections to a port that is bound and not listened on, and gives that port to nobody
    else. On Linux shutdown(2) ends the listening, and the binding stays.

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
            # For connections of before that the kernel still remembers (TIME_WAIT).
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._server = await asyncio.start_server(accept, sock=self._socket.dup(), backlog=_BACKLOG)

    def shut(self) -> None:
        """Refuse connections; those that were accepted stay."""
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
        """A socket of another program that allows reuse cannot listen here, as ours does not allow it."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def _bind(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
    )
    family, _, _, _, address = found[0]
    sock = _bound(family, address)
    if port:
        return sock
    # A port that the kernel chose is given back at the end of listening, one that was asked for is not.
    with sock:
        return _bound(family, sock.getsockname())


def _bound(family: int, address: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return sock
