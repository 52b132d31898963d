"""A running command in a guest."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from bough.client.websocket import MAX_MESSAGE_BYTES, WebSocket
from bough.contract.commands import CLOSE, RESIZE, SIGNAL, STATUS, STDERR, STDIN, STDOUT, Command
from bough.errors import BoughError, ProtocolError, ServiceUnavailable, error_from_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

_STREAMS = {STDOUT: "stdout", STDERR: "stderr"}


class ExitStatus(NamedTuple):
    """The end of a command: by itself with `code`, or by the signal named `signal`, like "SIGTERM"."""

    code: int | None
    signal: str | None

    @property
    def shell_code(self) -> int:
        """Return the value that a shell has in $?: the code, or 128 + the signal's number."""
        if self.signal is None:
            return self.code if self.code is not None else 1
        import signal

        try:
            return 128 + signal.Signals[self.signal]
        except KeyError:
            return 128


class Process:
    """A command that runs in a machine; made by `Machine.spawn`.

    One thread may read while another writes; signals and `close` work from any thread. `close` before the
    command's end kills the command with its process group. So does the end of this program, in any way. A
    command whose output is not read blocks, as on a full pipe.
    """

    def __init__(self, socket: WebSocket, command: Command) -> None:
        self._socket = socket
        self._reading = threading.Lock()
        self._pending: deque[tuple[str, bytes]] = deque()
        self._status: ExitStatus | None = None
        self._error: BoughError | None = None
        try:
            socket.send_text(command.render())
        except BaseException:
            socket.close()
            raise

    # -- to the command ---------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write to the command's standard input. Blocks while the command does not read.

        Raises:
            BrokenPipeError: the command has ended, or has closed its standard input.
        """
        view = memoryview(data)
        for begin in range(0, len(view), MAX_MESSAGE_BYTES):
            self._send(STDIN, bytes(view[begin : begin + MAX_MESSAGE_BYTES]))

    def close_stdin(self) -> None:
        """Close standard input: the command reads an end of file. Harmless after the command's end."""
        with contextlib.suppress(BrokenPipeError):
            self._send(CLOSE, bytes([STDIN]))

    def send_signal(self, name: str) -> None:
        """Send a signal to the command's process group: "TERM", "SIGINT". Harmless after the
        command's end.
        """
        with contextlib.suppress(BrokenPipeError):
            self._send(SIGNAL, json.dumps({"name": name.upper().removeprefix("SIG")}).encode())

    def kill(self) -> None:
        """Send SIGKILL to the command's process group."""
        self.send_signal("KILL")

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the command's terminal, in characters."""
        with contextlib.suppress(BrokenPipeError):
            self._send(RESIZE, json.dumps({"rows": rows, "columns": columns}).encode())

    def _send(self, channel: int, data: bytes) -> None:
        try:
            self._socket.send(bytes([channel]) + data)
        except ServiceUnavailable as error:
            raise BrokenPipeError("the command has ended") from error

    # -- from the command -------------------------------------------------------------------------

    def read(self, timeout: float | None = None) -> tuple[str, bytes] | None:
        """Return the next output as ("stdout" or "stderr", bytes).

        None: the command has ended and all output was read.

        Raises:
            TimeoutError: nothing came in time.
            BoughError: the command could not be run, or its exit status is not known.
        """
        with self._reading:
            if self._pending:
                return self._pending.popleft()
            return self._receive(timeout)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        while (output := self.read()) is not None:
            yield output

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Wait until the command has ended. Unread output is kept in memory for `read`.

        Raises:
            TimeoutError: the command still runs.
            BoughError: as `read`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._reading:
            while self._status is None:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                output = self._receive(left)
                if output is not None:
                    self._pending.append(output)
            return self._status

    @property
    def exit_status(self) -> ExitStatus | None:
        """Return the exit status; None until `read` or `wait` has seen the command's end."""
        return self._status

    def _receive(self, timeout: float | None) -> tuple[str, bytes] | None:
        while True:
            if self._error is not None:
                raise self._error
            if self._status is not None:
                return None
            try:
                message = self._socket.receive(timeout)
            except TimeoutError:
                raise
            except BoughError as error:
                self._fail(error)
                continue
            if message is None:
                self._fail(ServiceUnavailable("the service ended before the command did"))
            elif isinstance(message, str) or not message:
                self._fail(ProtocolError("the service sent an exec message without a channel"))
            elif message[0] == STATUS:
                self._take_status(message[1:])
            elif message[0] in _STREAMS:
                return _STREAMS[message[0]], message[1:]

    def _fail(self, error: BoughError) -> None:
        self._error = error
        self._socket.close()

    def _take_status(self, content: bytes) -> None:
        try:
            self._status = read_status(content)
        except BoughError as error:
            self._fail(error)
        else:
            self._socket.close()

    # -- its end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection. A command that still runs is killed."""
        self._socket.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_status(content: bytes) -> ExitStatus:
    """Return a command's status from the status message. Raises the error in the message, if
    there is any.
    """
    try:
        status = json.loads(content)
        error = status.get("error")
    except (ValueError, AttributeError):
        raise ProtocolError("the service sent an exit status that cannot be read") from None
    if error is not None:
        raise error_from_dict(error)
    signal = status.get("signal")
    name = None if signal is None else "SIG" + str(signal).upper().removeprefix("SIG")
    return ExitStatus(status.get("exit_code"), name)


def feed(process: Process, data: bytes) -> threading.Thread | None:
    """Write `data` and the end of file: a small text at once, a larger text in a thread, because the caller
    reads meanwhile.
    """
    if len(data) <= 32 * 1024:
        _feed(process, data)
        return None
    thread = threading.Thread(target=_feed, args=(process, data), name="bough stdin", daemon=True)
    thread.start()
    return thread


def _feed(process: Process, data: bytes) -> None:
    try:
        process.write(data)
    except BrokenPipeError:
        return  # the command did not read all of it, like `head`
    process.close_stdin()
