"""The service's requests: one JSON object a line, each answered by a line.

    {"do": "hello"}                    {"ok": {"protocol": 1, "pid": ..., "network": ...}}
    {"do": "attach", "member": {...}}  {"ok": {}}
    {"do": "detach", "port": "..."}    {"ok": {"detached": true}}
    {"do": "connect", "port": "...", "pid": 1}   {"ok": {}}; an uplink process; its socket comes with the line
    {"do": "faults", "set": [{...}]}   {"ok": {"faults": [...]}}; without "set", only tells their counts
    {"do": "counters"}                 {"ok": {"ports": [...]}}
    {"do": "capture", "ports": []}     {"ok": {}}, then pcapng until the connection closes
    {"do": "hold", "most_s": 5}        {"ok": {}}; no frame is carried until "release", at most for 5 s
    {"do": "release"}                  {"ok": {}}
    {"do": "end"}                      {"ok": {}}, then the switch ends

A hold also ends with its connection. An error is {"error": sentence}. The socket is in a directory of the
service's user alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from bough.networks.switch.capture import Capture
from bough.networks.switch.fabric import Fabric
from bough.networks.switch.link_fault import LinkFault
from bough.networks.switch.port import Port
from bough.networks.switch.settings import Member, parse_port

PROTOCOL = 1
_MOST_CONNECTIONS = 32
_MOST_LINE_BYTES = 1 << 20
#: Frames that wait for the reader of a capture; more are left out.
_MOST_WAITING_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 16
#: Descriptors that come with one read.
_MOST_DESCRIPTORS = 4


class Ended(Exception):
    """The service has ended the switch."""


class Control:
    """The listening socket, and its connections."""

    def __init__(self, listener: socket.socket, fabric: Fabric, poll: select.epoll) -> None:
        self._listener = listener
        self._fabric = fabric
        self._poll = poll
        self._connections: dict[int, Connection] = {}
        listener.setblocking(False)
        poll.register(listener, select.EPOLLIN)

    def owner_of(self, number: int, events: int) -> Callable[[], None] | None:
        """Return the handler of a ready descriptor; None: the descriptor belongs to another part."""
        if number == self._listener.fileno():
            return self._accept
        connection = self._connections.get(number)
        return None if connection is None else lambda: self._serve(connection, events)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sock, _ = self._listener.accept()
            if len(self._connections) >= _MOST_CONNECTIONS:
                sock.close()
                return
            sock.setblocking(False)
            self._connections[sock.fileno()] = Connection(sock, self._fabric, self._poll)

    def _serve(self, connection: Connection, events: int) -> None:
        try:
            connection.serve(events)
        except (OSError, ValueError):
            self._connections.pop(connection.number, None)
            connection.close()


class Connection:
    """A connection of the service. A capture is a connection of its own."""

    def __init__(self, sock: socket.socket, fabric: Fabric, poll: select.epoll) -> None:
        self._sock = sock
        self._fabric = fabric
        self._poll = poll
        self._in = bytearray()
        self._out = bytearray()
        self._capture: Capture | None = None
        self._ports: frozenset[str] = frozenset()
        self._holds = False
        self._received: list[int] = []
        self._events = select.EPOLLIN
        self.number = sock.fileno()
        poll.register(sock, self._events)

    def serve(self, events: int) -> None:
        """Read requests and send what waits.

        Raises:
            OSError: the connection is closed. ValueError: the line is too long. Ended
        """
        if events & select.EPOLLOUT:
            self._flush()
        if events & ~select.EPOLLOUT:
            data, received, _, _ = socket.recv_fds(self._sock, _CHUNK_BYTES, _MOST_DESCRIPTORS)
            self._received += received
            if not data:
                raise ConnectionResetError
            self._in += data
            while (end := self._in.find(b"\n")) >= 0:
                line = bytes(self._in[:end])
                del self._in[: end + 1]
                self._answer(line)
            if len(self._in) > _MOST_LINE_BYTES:
                raise ValueError("a line of more than 1 MiB")

    def close(self) -> None:
        if self._capture is not None:
            self._fabric.watchers.remove(self)
            self._capture = None
        if self._holds:  # the service has ended
            self._fabric.release()
        for descriptor in self._received:
            os.close(descriptor)
        self._poll.unregister(self._sock)
        self._sock.close()

    def _answer(self, line: bytes) -> None:
        ended = False
        try:
            request = json.loads(line)
            answer: dict[str, Any] = {"ok": self._do(request)}
            ended = request["do"] == "end"
        except KeyError as error:
            answer = {"error": f"{error} is missing"}
        except (ValueError, TypeError, AttributeError) as error:
            answer = {"error": str(error)}
        except OSError as error:
            answer = {"error": f"{error.filename or 'a file'}: {error.strerror}"}
        self._send(json.dumps(answer).encode() + b"\n")
        if ended:
            raise Ended
        if self._capture is not None and self not in self._fabric.watchers:
            self._send(self._capture.begin([port.member for port in self._fabric.ports()]))
            self._fabric.watchers.append(self)

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        what, fabric = request["do"], self._fabric
        if what == "hello":
            return {"protocol": PROTOCOL, "pid": os.getpid(), "network": fabric.settings.network}
        if what == "detach":
            return {"detached": fabric.detach(parse_port(request["port"]))}
        if what == "counters":
            return {"ports": fabric.describe()}
        if what == "faults":
            if "set" in request:
                fabric.set_faults([LinkFault.from_dict(one) for one in request["set"]])
            return {"faults": fabric.describe_faults()}
        if what == "connect":
            fabric.connect(parse_port(request["port"]), int(request["pid"]), self._take_socket())
        elif what == "attach":
            fabric.attach(Member.from_dict(request["member"]))
        elif what == "capture":
            self._ports = frozenset(map(parse_port, request.get("ports", ())))
            self._capture = self._capture or Capture(fabric.settings)
        elif what == "hold":
            fabric.hold(float(request["most_s"]))
            self._holds = True
        elif what == "release":
            fabric.release()
            self._holds = False
        elif what != "end":
            raise ValueError(f"unknown request {str(what)[:40]!r}")
        return {}

    def _take_socket(self) -> socket.socket:
        """Return the socket that came with the request. Raises ValueError: none came."""
        if not self._received:
            raise ValueError("a socket is missing")
        return socket.socket(fileno=self._received.pop(0))

    def saw(self, port: Port | None, frame: bytes) -> None:
        """Write a frame of the network to the capture."""
        capture = self._capture
        if capture is None or (self._ports and (port is None or port.name not in self._ports)):
            return
        if len(self._out) + len(frame) > _MOST_WAITING_BYTES:
            capture.miss()
            return
        self._send(capture.frame(None if port is None else port.member, frame, time.time_ns()))

    def met(self, members: Sequence[Member]) -> None:
        """Write the names of the present members to the capture."""
        if self._capture is not None:
            self._send(self._capture.names(members))

    def _send(self, data: bytes) -> None:
        waits = bool(self._out)
        self._out += data
        if not waits:
            self._flush()

    def _flush(self) -> None:
        """Send the waiting data, as far as the service reads. A broken connection is closed by its next
        event.
        """
        with contextlib.suppress(OSError):
            sent = self._sock.send(self._out)
            del self._out[:sent]
        events = select.EPOLLIN | (select.EPOLLOUT if self._out else 0)
        if events != self._events:
            self._events = events
            self._poll.modify(self._sock, events)
