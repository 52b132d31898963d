"""The API over its Unix socket: requests on kept connections, long calls with their progress.

Blocking, usable from several threads at once. Each request has its own connection; idle connections are kept
for later requests. Every command imports this module, so the module imports little.
"""

from __future__ import annotations

# Not `socket`: its tables of constants take 2 ms to load.
import _socket
import json
import os
import select
import time
from typing import TYPE_CHECKING, Any, NoReturn

import h11

from bough.errors import DeadlineExceeded, ProtocolError, ServiceUnavailable, error_from_dict
from bough.home import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from bough.client.websocket import WebSocket
    from bough.contract.request import Request
    from bough.progress import Report

PREFIX = "/v1"
NDJSON = "application/x-ndjson"
#: Timeout of calls that the service answers at once.
QUICK_TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 256 * 1024 * 1024
MAX_IDLE = 4
_READ_BYTES = 64 * 1024


class Connection:
    """A client of one service. Made by `connect()`; every method is safe in any thread.

    Raises (all methods):
        ServiceUnavailable: no service answers at the socket, or the connection broke.
        DeadlineExceeded: no answer within the call's timeout; the service cancels the call.
        BoughError: the service's error, in the same class.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._idle: list[_Link] = []

    def send(self, request: Request, *, timeout: float | None = QUICK_TIMEOUT_S) -> Any:
        """Make a call that the service answers at once.

        Return the answer's JSON, text or bytes, as the request's route says.
        """
        kind = request.route.kind
        accept = "*/*" if kind == "bytes" else "application/json"
        with self._exchange(request, accept, timeout) as exchange:
            content = b"".join(exchange.chunks())
        if kind == "bytes":
            return content
        if kind == "text":
            return content.decode(errors="replace")
        return _parse_json(content)

    def send_long(
        self, request: Request, *, timeout: float | None = None, progress: Report | None = None
    ) -> Any:
        """Make a call that may take minutes. Any exception, also one from `progress`, cancels the call."""
        with self._exchange(request, NDJSON, timeout) as exchange:
            for line in exchange.lines():
                message = _parse_json(line)
                if "result" in message:
                    return message["result"]
                if "error" in message:
                    raise error_from_dict(message["error"])
                if progress is not None and "progress" in message:
                    report_progress(progress, message["progress"])
        raise ServiceUnavailable(
            "the service ended in the middle of a call",
            hint="see service.log in BOUGH_HOME",
            path=request.render_target(),
        )

    def open(self, request: Request) -> WebSocket:
        """Open the WebSocket of the request. Raises the service's error instead."""
        from bough.client.websocket import WebSocket

        return WebSocket(self._open(), PREFIX + request.render_target())

    def section(self, name: str) -> AbstractContextManager[None]:
        """Name the calls of a block, for a connection that keeps a record of its calls. This one does not."""
        import contextlib

        return contextlib.nullcontext()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _exchange(self, asked: Request, accept: str, timeout: float | None) -> _Exchange:
        deadline = None if timeout is None else time.monotonic() + timeout
        body = asked.render_body()
        content = b"" if body is None else json.dumps(body).encode()
        request = h11.Request(
            method=asked.route.method,
            target=PREFIX + asked.render_target(),
            headers=[
                ("Host", "bough"),
                ("Accept", accept),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(content))),
            ],
        )
        while True:
            link, kept = self._take()
            link.deadline, link.timeout = deadline, timeout
            try:
                response = link.ask(request, content)
                break
            except _Stale as error:
                link.close()
                # The service closed this kept connection meanwhile, and has not seen the request.
                if not kept:
                    raise _lost(error) from error
            except BaseException:
                link.close()
                raise
        return _Exchange(self, link, response)

    def _take(self) -> tuple[_Link, bool]:
        while self._idle:
            try:
                link = self._idle.pop()
            except IndexError:  # another thread removed the entry first
                break
            if link.is_quiet():
                return link, True
            link.close()
        return _Link(self._open()), False

    def give_back(self, link: _Link) -> None:
        if len(self._idle) < MAX_IDLE and link.start_over():
            self._idle.append(link)
        else:
            link.close()

    def _open(self) -> _socket.socket:
        return open_socket(self.path)


def open_socket(path: str) -> _socket.socket:
    """Connect to the socket. Raises ServiceUnavailable if no service listens."""
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        link.settimeout(QUICK_TIMEOUT_S)
        with SocketAddress(path) as address:
            link.connect(address)
        link.settimeout(None)
    except OSError as error:
        link.close()
        raise ServiceUnavailable(
            f"no service answers at {path} ({os.strerror(error.errno) if error.errno else error})",
            hint="start it with `bough serve`; its log is service.log in BOUGH_HOME",
            socket=path,
        ) from error
    return link


class _Stale(Exception):
    """The connection ended before a byte of the answer came."""


class _Link:
    """A connection and the state of HTTP on the connection."""

    def __init__(self, stream: _socket.socket) -> None:
        self.stream = stream
        self.deadline: float | None = None
        self.timeout: float | None = None
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=256 * 1024)

    def ask(self, request: h11.Request, content: bytes) -> h11.Response:
        try:
            data = self._http.send(request) or b""
            if content:
                data += self._http.send(h11.Data(data=content)) or b""
            data += self._http.send(h11.EndOfMessage()) or b""
            self._limit()
            self.stream.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise _Stale(str(error)) from error
        except TimeoutError:
            self._out_of_time()
        event = self.next_event(first=True)
        if not isinstance(event, h11.Response):
            raise ProtocolError(f"expected an answer, got {type(event).__name__}")
        return event

    def next_event(self, *, first: bool = False) -> Any:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                if first and not self._http.trailing_data[0]:
                    raise _Stale(str(error)) from error
                raise _lost(error) from error
            if event is not h11.NEED_DATA:
                if isinstance(event, h11.InformationalResponse):
                    continue
                if isinstance(event, h11.ConnectionClosed):
                    raise (_Stale("closed") if first else _lost(None))
                return event
            try:
                self._limit()
                data = self.stream.recv(_READ_BYTES)
            except TimeoutError:
                self._out_of_time()
            except OSError as error:
                raise (_Stale(str(error)) if first else _lost(error)) from error
            if not data and first and not self._http.trailing_data[0]:
                raise _Stale("closed")
            self._http.receive_data(data)

    def _limit(self) -> None:
        if self.deadline is None:
            self.stream.settimeout(None)
            return
        left = self.deadline - time.monotonic()
        if left <= 0:
            self._out_of_time()
        self.stream.settimeout(left)

    def _out_of_time(self) -> NoReturn:
        raise DeadlineExceeded(
            f"the service did not answer within {self.timeout:g} s", timeout_s=self.timeout
        ) from None

    def is_quiet(self) -> bool:
        """Return whether no data and no end of the connection has arrived."""
        poll = select.poll()
        poll.register(self.stream, select.POLLIN | select.POLLHUP)
        return not poll.poll(0)

    def start_over(self) -> bool:
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    def close(self) -> None:
        self.stream.close()


class _Exchange:
    """The answer to a request, during the read. Leaving early closes the connection and cancels the
    call.
    """

    def __init__(self, owner: Connection, link: _Link, response: h11.Response) -> None:
        self._owner = owner
        self._link = link
        self._ended = False
        headers = {bytes(name).lower(): bytes(value) for name, value in response.headers}
        self.content_type = headers.get(b"content-type", b"").decode("latin-1")
        self._status = response.status_code

    def __enter__(self) -> _Exchange:
        if self._status >= 400:
            try:
                content = b"".join(self.chunks())
            finally:
                self.__exit__()
            from bough.client.refusal import error_of_answer

            raise error_of_answer(self._status, content)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ended:
            self._owner.give_back(self._link)
        else:
            self._link.close()

    def chunks(self) -> Iterator[bytes]:
        total = 0
        while True:
            event = self._link.next_event()
            if isinstance(event, h11.EndOfMessage):
                self._ended = True
                return
            total += len(event.data)
            if total > MAX_ANSWER_BYTES:
                raise ProtocolError(f"the service's answer is larger than {MAX_ANSWER_BYTES} bytes")
            yield bytes(event.data)

    def lines(self) -> Iterator[bytes]:
        rest = b""
        for chunk in self.chunks():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                if line.strip():
                    yield line
        if rest.strip():
            yield rest


def _parse_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ProtocolError("the service's answer is not JSON") from error


def report_progress(progress: Report, message: Mapping[str, Any]) -> None:
    from bough.progress import Progress

    progress(
        Progress(
            str(message.get("step", "")),
            message.get("fraction"),
            str(message.get("detail") or ""),
            notice=message.get("notice") is True,
            subject=str(message.get("subject") or ""),
        )
    )


def _lost(error: BaseException | None) -> ServiceUnavailable:
    from bough.client.refusal import lost

    return lost(error)
