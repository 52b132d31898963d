"""A TCP connection to a port inside a guest, similar to a socket."""

from __future__ import annotations

import threading

from bough.client.websocket import MAX_MESSAGE_BYTES, WebSocket
from bough.errors import ServiceUnavailable


class Tunnel:
    """A connection. Made by `Machine.tunnel`. One thread may read while another writes."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._reading = threading.Lock()
        self._rest = b""
        self._ended = False

    def recv(self, size: int = 64 * 1024) -> bytes:
        """Return at most `size` bytes, as soon as there are any; b"" at the end.

        Raises:
            ConnectionResetError: the connection broke.
        """
        with self._reading:
            while not self._rest and not self._ended:
                try:
                    message = self._socket.receive()
                except ServiceUnavailable as error:
                    raise ConnectionResetError(error.message) from error
                if message is None or not message:
                    self._ended = True
                else:
                    self._rest = message if isinstance(message, bytes) else message.encode()
            data, self._rest = self._rest[:size], self._rest[size:]
            return data

    def sendall(self, data: bytes) -> None:
        """Send all of the data. Raises BrokenPipeError if the other side has closed."""
        view = memoryview(data)
        for begin in range(0, len(view), MAX_MESSAGE_BYTES):
            self._send(bytes(view[begin : begin + MAX_MESSAGE_BYTES]))

    def shutdown_write(self) -> None:
        """Close the sending direction. The other side reads an end; its remaining data can still be read."""
        self._send(b"")

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except ServiceUnavailable as error:
            raise BrokenPipeError(error.message) from error

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
