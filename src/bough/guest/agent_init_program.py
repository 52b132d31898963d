"""The container program below bough's init: its start, its output on the console, and its end."""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH103, SIM105

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    Values = dict[str, object]

_CONSOLE = "/dev/console"
#: End of the output that is kept for the host.
TAIL_BYTES = 4096
#: Output that waits for the console. The program waits if there is more.
_MOST_WAITING = 65536
_READ_BYTES = 16384


class Console:
    """The guest's console. A console that does not take bytes never blocks process 1.

    Attributes:
        fd: -1: the guest has no console; output is dropped.
    """

    def __init__(self, path: str = _CONSOLE) -> None:
        self._waiting = bytearray()
        try:
            self.fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self.fd = -1

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= _MOST_WAITING

    def write(self, data: bytes) -> None:
        if self.fd >= 0:
            self._waiting += data
            self.flush()

    def flush(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: os.write(self.fd, self._waiting)]
        except BlockingIOError:
            pass
        except OSError:
            self._waiting.clear()  # a console that was hung up


class Program:
    """The program, from the request of the host to its end.

    Attributes:
        pid: of the program.
        failure: descriptor that ends when the program runs; before its end, an error may come. -1: it ended.
        output: descriptor of the program's standard output and error; -1 after the end.
        status: wait status; None: the program runs.
        error: why the program could not be started.
        tail: end of the output.
    """

    def __init__(self, request: Values) -> None:
        """Start the program. Raises OSError: no process can be made."""
        from bough.guest import agent_spawn

        _make_directory(request.get("cwd"))
        asked = {**request, "stdin": False, "merge": True, "tty": False}
        process = agent_spawn.start(asked, apart=True)
        self.pid = process.pid
        self.failure = process.failure
        self.output = process.stdout
        self.status: int | None = None
        self.error: Values | None = None
        self.tail = b""
        self.stop_signal = parse_signal(request.get("stop_signal"))
        self._told = b""
        for fd in (self.failure, self.output):
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)

    @property
    def is_running(self) -> bool:
        return self.status is None and self.error is None

    @property
    def has_begun(self) -> bool:
        """Whether it is known that the program runs, or why it does not."""
        return self.failure < 0

    def read_failure(self) -> None:
        """Read from the descriptor `failure`."""
        if self.failure < 0:
            return  # closed since the poll
        try:
            data = os.read(self.failure, 65536)
        except BlockingIOError:
            return
        self._told += data
        if data:
            return
        os.close(self.failure)
        self.failure = -1
        if self._told:
            from bough.guest.wire import decode_map

            self.error = decode_map(self._told)

    def read_output(self, console: Console) -> bool:
        """Copy some output to the console. Return whether there may be more."""
        if self.output < 0:
            return False  # closed since the poll
        try:
            data = os.read(self.output, _READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            os.close(self.output)
            self.output = -1
            return False
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        console.write(data)
        return not console.is_full

    def describe_end(self) -> Values:
        """Return the answer to await_program."""
        from bough.guest.agent_spawn import describe_exit

        assert self.status is not None
        return {**describe_exit(self.status), "output": self.tail}

    def stop(self) -> None:
        """Send the stop signal."""
        self._kill(self.stop_signal)

    def kill(self) -> None:
        self._kill(9)

    def _kill(self, number: int) -> None:
        if self.status is None:
            try:
                os.kill(self.pid, number)
                os.kill(self.pid, 18)  # a stopped program must go on to end
            except OSError:
                pass  # it has just ended


def _make_directory(path: object) -> None:
    """Make the working directory, as Docker does. If that fails, the program's start tells why."""
    if isinstance(path, str) and path.startswith("/"):
        try:
            os.makedirs(path, exist_ok=True)
        except OSError:
            pass


def parse_signal(value: object) -> int:
    """Return the number of a signal: "TERM", "SIGTERM", "RTMIN+3", "15", 15. Anything else is SIGTERM."""
    import _signal  # type: ignore[import-not-found]  # signal costs what enum costs

    text = str(value).upper()
    name, plus, more = text.removeprefix("SIG").partition("+")
    number = int(name) if name.isdigit() else getattr(_signal, "SIG" + name, 0)
    number += int(more) if plus and more.isdigit() else 0
    return number if isinstance(number, int) and 0 < number <= 64 else int(_signal.SIGTERM)
