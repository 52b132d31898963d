"""A blocking WebSocket over the service's Unix socket: one thread may read while another writes."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import Any

import h11
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from bough.client.connection import QUICK_TIMEOUT_S, error_of_answer
from bough.errors import BoughError, ProtocolError, ServiceUnavailable

#: The service takes messages of at most 1 MiB.
MAX_MESSAGE_BYTES = 256 * 1024
MAX_INCOMING_BYTES = 64 * 1024 * 1024
_READ_BYTES = 256 * 1024
_CLOSED_WITH_ERROR = 4000


class WebSocket:
    """Open when constructed.

    Raises (the constructor):
        BoughError: what the service answered instead of opening it.
    """

    def __init__(self, stream: socket.socket, target: str) -> None:
        self._stream = stream
        self._sending = threading.Lock()
        self._closed = False
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._events: Any = iter(())
        try:
            stream.settimeout(QUICK_TIMEOUT_S)
            early = _upgrade(stream, target)
            stream.settimeout(None)
        except BaseException as error:
            stream.close()
            if isinstance(error, OSError):
                raise ServiceUnavailable(f"the service did not open {target}: {error}") from error
            raise
        self._frames = Frames(ConnectionType.CLIENT, trailing_data=early)
        self._events = self._frames.events() if early else iter(())

    def fileno(self) -> int:
        return self._stream.fileno()

    def send(self, data: bytes) -> None:
        """One binary message. Waits while the service does not take it.

        Raises:
            ServiceUnavailable: it was closed by either side.
        """
        self._send(BytesMessage(data=data))

    def send_text(self, text: str) -> None:
        self._send(TextMessage(data=text))

    def _send(self, event: Any) -> None:
        with self._sending:
            try:
                self._stream.sendall(self._frames.send(event))
            except (OSError, LocalProtocolError, ValueError) as error:
                raise _broken(error) from error

    def receive(self, timeout: float | None = None) -> bytes | str | None:
        """The next message; None when the other side has closed in good order.

        Raises:
            TimeoutError: none came in time; try again.
            BoughError: it was closed with an error.
            ServiceUnavailable: it broke.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            for event in self._events:
                if isinstance(event, BytesMessage | TextMessage):
                    message = self._gather(event)
                    if message is not None:
                        return message
                elif isinstance(event, Ping):
                    self._send(event.response())
                elif isinstance(event, CloseConnection):
                    self._answer_close(event)
                    return None
            if self._closed:
                return None
            self._read(deadline)

    def _gather(self, event: BytesMessage | TextMessage) -> bytes | str | None:
        """wsproto hands out a message in the pieces in which it came."""
        if event.message_finished and not self._parts:
            return bytes(event.data) if isinstance(event, BytesMessage) else event.data
        data = bytes(event.data) if isinstance(event, BytesMessage) else event.data.encode()
        self._parts.append(data)
        self._parts_bytes += len(data)
        if self._parts_bytes > MAX_INCOMING_BYTES:
            raise ProtocolError(f"the service sent a message of more than {MAX_INCOMING_BYTES} bytes")
        if not event.message_finished:
            return None
        whole = b"".join(self._parts)
        self._parts, self._parts_bytes = [], 0
        return whole if isinstance(event, BytesMessage) else whole.decode()

    def _read(self, deadline: float | None) -> None:
        try:
            if deadline is not None:
                self._wait_readable(max(0.0, deadline - time.monotonic()))
            data = self._stream.recv(_READ_BYTES)
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            raise _broken(error) from error
        if not data:
            raise _broken(None)
        try:
            self._frames.receive_data(data)
            self._events = self._frames.events()
        except RemoteProtocolError as error:
            raise ProtocolError(f"the service sent what is no WebSocket: {error}") from error

    def _wait_readable(self, timeout: float) -> None:
        # Not settimeout: it would hold for the thread that sends as well.
        import select

        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        if not poll.poll(timeout * 1000):
            raise TimeoutError

    def _answer_close(self, event: CloseConnection) -> None:
        if self._frames.state is ConnectionState.REMOTE_CLOSING:
            with self._sending:
                with contextlib.suppress(OSError):
                    self._stream.sendall(self._frames.send(event.response()))
        self._closed = True
        self._stream.close()
        if event.code == _CLOSED_WITH_ERROR:
            raise BoughError(event.reason or "the service ended it with an error")
        if event.code in (1002, 1003, 1007, 1009):
            raise ProtocolError(f"what the service sent is no WebSocket: {event.reason}")
        if event.code in (1011, 1012, 1006):
            raise _broken(event.reason)

    def close(self) -> None:
        """From any thread; a thread that waits in `receive` ends with ServiceUnavailable."""
        if self._closed:
            return
        self._closed = True
        if self._sending.acquire(timeout=0.1):  # a sender that waits is ended by the shutdown below
            try:
                self._stream.settimeout(0.1)
                self._stream.sendall(self._frames.send(CloseConnection(code=1000)))
            except (OSError, LocalProtocolError, ValueError):
                pass
            finally:
                self._sending.release()
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _upgrade(stream: socket.socket, target: str) -> bytes:
    """Ask for the WebSocket; returns what came of it already.

    Raises: the error that the service answered with.
    """
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=256 * 1024)
    # The key proves to a browser that the other side is no cache (RFC 6455, section 1.3); here none is.
    import base64

    headers = [
        ("Host", "bough"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", base64.b64encode(os.urandom(16)).decode()),
    ]
    data = http.send(h11.Request(method="GET", target=target, headers=headers)) or b""
    stream.sendall(data + (http.send(h11.EndOfMessage()) or b""))
    content = b""
    status = 0
    while True:
        try:
            event = http.next_event()
        except h11.RemoteProtocolError as error:
            raise _broken(error) from error
        if event is h11.NEED_DATA:
            http.receive_data(stream.recv(_READ_BYTES))
        elif isinstance(event, h11.InformationalResponse) and event.status_code == 101:
            return bytes(http.trailing_data[0])
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            content += event.data
        elif isinstance(event, h11.EndOfMessage):
            raise error_of_answer(status, content)
        elif isinstance(event, h11.ConnectionClosed):
            raise _broken(None)


def _broken(error: object) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"the connection to the service ended{f' ({error})' if error else ''}",
        hint="it may have been restarted: try again; its log is service.log in BOUGH_HOME",
    )
