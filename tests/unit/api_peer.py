"""A small server on a Unix socket, for tests of the HTTP and WebSocket client: h11 and wsproto, no mocks."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

#: Possible answers of a handler: status, content type, parts of the body.
Answer = tuple[int, str, list[bytes]]


class ApiPeer:
    """A server that answers each HTTP request with `answer(method, path, body)` and counts connections."""

    def __init__(self, path: Path, answer: Callable[[str, str, bytes], Answer | None]) -> None:
        self.path = str(path)
        self.connections = 0
        self._answer = answer
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        http = h11.Connection(h11.SERVER)
        with suppress(OSError, h11.RemoteProtocolError), connection:
            while True:
                request, body = self._request(http, connection)
                if request is None:
                    return
                answer = self._answer(request.method.decode(), request.target.decode(), body)
                if answer is None:
                    return
                status, kind, parts = answer
                # No content length: each part is sent as a chunk as soon as it exists.
                head = h11.Response(status_code=status, headers=[("Content-Type", kind)])
                connection.sendall(http.send(head) or b"")
                for part in parts:
                    connection.sendall(http.send(h11.Data(data=part)) or b"")
                connection.sendall(http.send(h11.EndOfMessage()) or b"")
                http.start_next_cycle()

    @staticmethod
    def _request(http: h11.Connection, connection: socket.socket) -> tuple[Any, bytes]:
        request, body = None, b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(connection.recv(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return request, body
            else:
                return None, b""

    def drop_connections(self) -> None:
        """Close all connections, as a service with idle connections does."""
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.drop_connections()


class SocketPeer:
    """The service's end of one WebSocket, in the test's thread."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self._frames = WSConnection(ConnectionType.SERVER)
        self._events: list[Any] = []

    def accept(self) -> str:
        request = self.next()
        assert isinstance(request, Request)
        self.send(AcceptConnection())
        return request.target

    def reject(self, status: int, body: Any) -> None:
        assert isinstance(self.next(), Request)
        headers = [(b"content-type", b"application/json")]
        self.send(RejectConnection(status_code=status, headers=headers, has_body=True))
        self.send(RejectData(data=json.dumps(body).encode()))

    def send(self, event: Any) -> None:
        self.stream.sendall(self._frames.send(event))

    def send_bytes(self, data: bytes, *, finished: bool = True) -> None:
        self.send(BytesMessage(data=data, message_finished=finished))

    def next(self) -> Any:
        """Return the next event: a whole message, or the close; None if the client disconnected without a
        close.
        """
        parts: list[Any] = []
        while True:
            while not self._events:
                data = self.stream.recv(65536)
                if not data:
                    return None
                self._frames.receive_data(data)
                self._events = list(self._frames.events())
            event = self._events.pop(0)
            if not isinstance(event, BytesMessage | TextMessage):
                return event
            parts.append(event.data)
            if event.message_finished:
                return parts[0][:0].join(parts)

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.send(CloseConnection(code=code, reason=reason))
