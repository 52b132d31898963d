"""Frames on their way to the agent: a queue in front of QEMU's socket.

Small frames overtake data, but never cut a frame. QEMU reads the socket only as fast as the guest reads its
port, so the queue is what bounds the memory of a guest that reads nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable

#: Senders of data wait while more bytes are queued ...
HIGH_WATER = 256 * 1024
#: ... and the queue for a guest that reads nothing has this limit for all other frames.
MOST_QUEUED = 4 * 1024 * 1024
_BUFFERS_PER_WRITE = 96


class FrameQueue:
    """The frames that QEMU has not taken yet.

    Args:
        on_error: called when the socket ended. The queue is closed then by its owner.

    Attributes:
        queued_bytes: size of the frames, with the rest of a frame that was written in part.
    """

    def __init__(
        self, sock: socket.socket, loop: asyncio.AbstractEventLoop, on_error: Callable[[OSError], None]
    ) -> None:
        self.queued_bytes = 0
        self._socket = sock
        self._loop = loop
        self._on_error = on_error
        self._urgent: deque[bytes] = deque()
        self._bulk: deque[bytes] = deque()
        self._cut: memoryview | None = None
        self._waits_for_room = False
        self._is_closed = False
        self._drained = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return self.queued_bytes > MOST_QUEUED

    def put_first(self, frame: bytes) -> None:
        """Queue a frame ahead of all data."""
        self._put(self._urgent, frame)

    def put_last(self, frame: bytes) -> None:
        """Queue a frame behind all others."""
        self._put(self._bulk, frame)

    async def wait_for_room(self) -> None:
        """Wait while much is queued. Returns also when the queue is cleared."""
        while self.queued_bytes > HIGH_WATER:
            self._drained.clear()
            await self._drained.wait()

    def is_taken(self) -> bool:
        """Return whether QEMU has read all bytes sent."""
        if self.queued_bytes:
            return False
        with contextlib.suppress(OSError):
            (unread,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, b"\0" * 4))
            return bool(unread == 0)
        return True

    def clear(self) -> None:
        """Drop all frames. The rest of a partly sent frame stays, so that the guest stays in step."""
        self._urgent.clear()
        self._bulk.clear()
        self.queued_bytes = 0 if self._cut is None else len(self._cut)
        self._drained.set()

    def close(self) -> None:
        """Drop all frames, and write nothing more. Call before the socket is closed."""
        self._is_closed = True
        self._loop.remove_writer(self._socket)
        self._cut = None
        self.clear()

    def _put(self, queue: deque[bytes], frame: bytes) -> None:
        queue.append(frame)
        self.queued_bytes += len(frame)
        if not self._waits_for_room and not self._is_closed:
            self._write()

    def _write(self) -> None:
        try:
            while buffers := self._next_buffers():
                sent = self._socket.sendmsg(buffers)
                self.queued_bytes -= sent
                self._forget(sent)
        except BlockingIOError:
            if not self._waits_for_room:
                self._waits_for_room = True
                self._loop.add_writer(self._socket, self._write)
        except OSError as error:
            self._on_error(error)
            return
        else:
            if self._waits_for_room:
                self._waits_for_room = False
                self._loop.remove_writer(self._socket)
        if self.queued_bytes <= HIGH_WATER // 2:
            self._drained.set()

    def _next_buffers(self) -> list[bytes | memoryview]:
        """Return the next buffers to write: the rest of a frame, then urgent frames, then data."""
        buffers: list[bytes | memoryview] = [] if self._cut is None else [self._cut]
        for queue in (self._urgent, self._bulk):
            for frame in queue:
                if len(buffers) == _BUFFERS_PER_WRITE:
                    return buffers
                buffers.append(frame)
        return buffers

    def _forget(self, sent: int) -> None:
        """Remove the first `sent` bytes, which are written."""
        if self._cut is not None:
            if sent < len(self._cut):
                self._cut = self._cut[sent:]
                return
            sent -= len(self._cut)
            self._cut = None
        for queue in (self._urgent, self._bulk):
            while queue and sent:
                frame = queue.popleft()
                if sent < len(frame):
                    self._cut = memoryview(frame)[sent:]
                    return
                sent -= len(frame)
