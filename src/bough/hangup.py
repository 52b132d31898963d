"""Notice that the other side of a connection has gone, also while nobody reads the connection.

asyncio reports the end of a stream to its reader. A reader that waits, for a command that takes no input for
one, is paused and never learns that its client was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket


class Hangup:
    """Watches one connected socket. Within a running loop.

    Attributes:
        seen: set when the other side has gone. What it sent before may still be there to be read.
    """

    def __init__(self, sock: socket.socket, *, reset_only: bool = False) -> None:
        """
        Args:
            reset_only: an end of the other side's direction is not enough: it may still read.
        """
        self.seen = asyncio.Event()
        self._reset_only = reset_only
        self._loop = asyncio.get_running_loop()
        # A descriptor of its own: asyncio watches the socket itself, and stops that when it pauses.
        self._epoll = select.epoll()
        self._epoll.register(sock.fileno(), select.EPOLLONESHOT | (0 if reset_only else select.EPOLLRDHUP))
        self._loop.add_reader(self._epoll, self._ready)

    def _ready(self) -> None:
        events = [event for _, event in self._epoll.poll(0)]
        if any(event & select.EPOLLERR or not self._reset_only for event in events):
            self.seen.set()

    def close(self) -> None:
        """Call it before the socket is closed. Harmless when called again."""
        if not self._epoll.closed:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.remove_reader(self._epoll)
            self._epoll.close()
