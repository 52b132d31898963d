"""A blocking WebSocket over the service's Unix socket: one thread may read while another writes.

This module implements frames itself (RFC 6455, section 5), and needs only modules that every command has
loaded. A WebSocket library takes as long to load as the rest of `bough exec` (decision 9).
"""

from __future__ import annotations

import _thread
import select
import time

from bough.errors import BoughError, ProtocolError, ServiceUnavailable

TYPE_CHECKING = False  # typing takes longer to load than this module
if TYPE_CHECKING:
    from _socket import socket as Socket
    from collections.abc import Callable
    from typing import Any


#: The service takes messages of at most 1 MiB.
MAX_MESSAGE_BYTES = 256 * 1024
MAX_INCOMING_BYTES = 64 * 1024 * 1024
OPEN_TIMEOUT_S = 60.0
#: A service whose guest takes no input reads no more messages.
END_TIMEOUT_S = 5.0
_READ_BYTES = 256 * 1024
_MAX_HEAD_BYTES = 64 * 1024
_CLOSED_WITH_ERROR = 4000

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_FINAL = 0x80
# A client masks frames to protect proxies (section 10.3). A Unix socket has no proxy, and a key of zeros
# leaves the bytes unchanged.
_MASKED = 0x80
_KEY = bytes(4)
_SHUT_RDWR = 2


class WebSocket:
    """An open WebSocket.

    Raises (the constructor):
        BoughError: the service's answer, instead of a WebSocket.
    """

    def __init__(self, stream: Socket, target: str) -> None:
        self._stream = stream
        self._sending = _thread.allocate_lock()
        self._closed = False
        #: A close frame was sent: no other frame may follow (section 5.5.1).
        self._ending = False
        self._parts: list[bytes] = []
        self._kind = 0
        try:
            stream.settimeout(OPEN_TIMEOUT_S)
            self._held = bytearray(_upgrade(stream, target))
            stream.settimeout(None)
        except BaseException as error:
            stream.close()
            if isinstance(error, OSError):
                raise ServiceUnavailable(f"the service did not open {target}: {error}") from error
            raise

    def fileno(self) -> int:
        return self._stream.fileno()

    def send(self, data: bytes) -> None:
        """Send one binary message. Blocks while the service does not read.

        Raises:
            ServiceUnavailable: either side has closed the WebSocket.
        """
        self._send(_BINARY, data)

    def send_text(self, text: str) -> None:
        self._send(_TEXT, text.encode())

    def _send(self, kind: int, data: bytes) -> None:
        with self._sending:
            if self._closed or self._ending:
                raise _broken(None)
            try:
                self._stream.sendall(_frame(kind, data))
            except (OSError, ValueError) as error:
                raise _broken(error) from error

    def receive(self, timeout: float | None = None) -> bytes | str | None:
        """Return the next message; None if the other side has closed in good order.

        Raises:
            TimeoutError: no message came in time; try again.
            BoughError: the other side closed with an error.
            ServiceUnavailable: the connection broke.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            while (frame := self._next_frame()) is not None:
                kind, final, data = frame
                if kind == _PING:
                    if not self._ending:
                        self._send(_PONG, data)
                elif kind == _CLOSE:
                    self._answer_close(data)
                    return None
                elif kind != _PONG:
                    message = self._gather(kind, final, data)
                    if message is not None:
                        return message
            if self._closed:
                return None
            self._read(deadline)

    @property
    def is_pending(self) -> bool:
        """Return whether bytes were received that a poll of `fileno` does not show."""
        return bool(self._held)

    def _next_frame(self) -> tuple[int, bool, bytes] | None:
        """Return the next frame; None if the frame is not complete yet."""
        held = self._held
        if len(held) < 2:
            return None
        kind, length, begin = held[0] & 0x0F, held[1] & 0x7F, 2
        if held[0] & 0x70 or held[1] & _MASKED or kind not in _KINDS:
            raise ProtocolError("the service sent an invalid WebSocket frame")
        if length >= 126:
            begin = 4 if length == 126 else 10
            length = int.from_bytes(held[2:begin], "big")
        if length > MAX_INCOMING_BYTES:
            raise ProtocolError(f"the service sent a message of more than {MAX_INCOMING_BYTES} bytes")
        if len(held) < begin + length:
            return None
        final, data = bool(held[0] & _FINAL), bytes(held[begin : begin + length])
        del held[: begin + length]
        return kind, final, data

    def _gather(self, kind: int, final: bool, data: bytes) -> bytes | str | None:
        """Assemble a message from one or several frames."""
        if (kind == _CONTINUATION) != bool(self._parts):
            raise ProtocolError("the service sent parts of a WebSocket message out of order")
        if kind != _CONTINUATION:
            self._kind = kind
        if not final or self._parts:
            self._parts.append(data)
            if sum(map(len, self._parts)) > MAX_INCOMING_BYTES:
                raise ProtocolError(f"the service sent a message of more than {MAX_INCOMING_BYTES} bytes")
            if not final:
                return None
            data, self._parts = b"".join(self._parts), []
        if self._kind == _BINARY:
            return data
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ProtocolError("the service sent text that is not UTF-8") from None

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
        self._held += data

    def _wait_readable(self, timeout: float) -> None:
        # Not settimeout: a timeout would also apply to the sending thread.
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        if not poll.poll(timeout * 1000):
            raise TimeoutError

    def _answer_close(self, data: bytes) -> None:
        code = int.from_bytes(data[:2], "big")
        reason = data[2:].decode(errors="replace")
        with self._sending:
            if not self._closed and not self._ending:
                _try(self._stream.sendall, _frame(_CLOSE, data[:2]))
            self._closed = True
        self._stream.close()
        if code == _CLOSED_WITH_ERROR:
            raise BoughError(reason or "the service closed the WebSocket with an error")
        if code in (1002, 1003, 1007, 1009):
            raise ProtocolError(f"the service broke the WebSocket protocol: {reason}")
        if code in (1011, 1012, 1006):
            raise _broken(reason)

    def end(self, timeout_s: float = END_TIMEOUT_S) -> None:
        """Close as soon as the service has read all messages; for the thread that receives.

        `close` with unread data breaks the connection, and the service may lose the last messages. Output
        that comes meanwhile is dropped. A service that reads too slowly gets the rest after a `close`.
        """
        with self._sending:
            if self._closed:
                return
            _try(self._stream.sendall, _frame(_CLOSE, (1000).to_bytes(2, "big")))
            self._ending = True
        deadline = time.monotonic() + timeout_s
        try:
            while self.receive(deadline - time.monotonic()) is not None:
                pass
        except (TimeoutError, BoughError):
            pass
        self.close()

    def close(self) -> None:
        """Close, from any thread. A thread that waits in `receive` gets ServiceUnavailable."""
        if self._closed:
            return
        self._closed = True
        if self._sending.acquire(timeout=0.1):  # the shutdown below ends a blocked sender
            self._stream.settimeout(0.1)
            if not self._ending:
                _try(self._stream.sendall, _frame(_CLOSE, (1000).to_bytes(2, "big")))
            self._sending.release()
        _try(self._stream.shutdown, _SHUT_RDWR)
        self._stream.close()

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_KINDS = (_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG)


def _try(action: Callable[[Any], object], argument: Any) -> None:
    """Do an action; the other side may have closed the connection already."""
    try:
        action(argument)
    except (OSError, ValueError):
        pass


def _frame(kind: int, data: bytes) -> bytes:
    size = len(data)
    if size < 126:
        head = bytes((_FINAL | kind, _MASKED | size))
    elif size < 1 << 16:
        head = bytes((_FINAL | kind, _MASKED | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FINAL | kind, _MASKED | 127)) + size.to_bytes(8, "big")
    return head + _KEY + data


def _upgrade(stream: Socket, target: str) -> bytes:
    """Request the WebSocket. Return the bytes of the WebSocket that have already arrived.

    Raises the service's error.
    """
    # The key proves to a browser that the other side is no cache (section 1.3). A Unix socket has no cache.
    request = (
        f"GET {target} HTTP/1.1\r\nHost: bough\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n"
    )
    stream.sendall(request.encode("ascii"))
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = stream.recv(_READ_BYTES)
        if not data or len(answer) > _MAX_HEAD_BYTES:
            raise _broken(None)
        answer += data
    if answer.startswith(b"HTTP/1.1 101 "):
        return answer.partition(b"\r\n\r\n")[2]
    from bough.client.refusal import read_refusal

    raise read_refusal(stream, answer)


def _broken(error: object) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"the connection to the service ended{f' ({error})' if error else ''}",
        hint="it may have been restarted: try again; its log is service.log in BOUGH_HOME",
    )
