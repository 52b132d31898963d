"""Notice that the peer of a connection has left, even while no task reads the connection.

asyncio reports the end of a stream only to a reader. A reader pauses if, for example, a command takes no
input, and then misses the death of the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket


class Hangup:
    """A watch on one connected socket. Needs a running event loop.

    Attributes:
        seen: set when the peer has gone. Earlier data of the peer may still be unread.
    """

    def __init__(self, sock: socket.socket, *, reset_only: bool = False) -> None:
        """Start to watch the socket.

        Args:
            reset_only: ignore the end of the peer's sending direction: the peer may still read.
        """
        self.seen = asyncio.Event()
        self._reset_only = reset_only
        self._loop = asyncio.get_running_loop()
        # A separate epoll descriptor: asyncio watches the socket, too, and stops when the reader pauses.
        self._epoll = select.epoll()
        self._epoll.register(sock.fileno(), select.EPOLLONESHOT | (0 if reset_only else select.EPOLLRDHUP))
        self._loop.add_reader(self._epoll, self._ready)

    def _ready(self) -> None:
        events = [event for _, event in self._epoll.poll(0)]
        if any(event & select.EPOLLERR or not self._reset_only for event in events):
            self.seen.set()

    def close(self) -> None:
        """Stop watching. Call `close` before the socket is closed; a second call is harmless."""
        if not self._epoll.closed:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.remove_reader(self._epoll)
            self._epoll.close()
