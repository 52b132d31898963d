"""The streams of a copy's command in a guest, and the progress of the copy."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from bough.client.copying.report import MOST_BYTES
from bough.errors import BoughError
from bough.units import format_size

if TYPE_CHECKING:
    from bough.client.process import Process
    from bough.progress import Report

_BUFFER = 256 * 1024


class Sink:
    """Gathers written bytes into messages of a good size."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if len(data) >= _BUFFER:
            self.flush()
            self._process.write(data)
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            self._process.write(b"".join(parts))


class Source:
    """A command's standard output as a readable file. Its standard error is kept."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._rest = b""
        self._said = bytearray()

    def read(self, size: int) -> bytes:
        parts = []
        while size > 0:
            if not self._rest:
                output = self._process.read()
                if output is None:
                    break
                stream, data = output
                if stream == "stderr":
                    self._said += data[: max(0, MOST_BYTES - len(self._said))]
                    continue
                self._rest = data
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish(self) -> tuple[int, bytes]:
        """Return the exit status and standard error. Other output is dropped."""
        while self.read(_BUFFER):
            pass
        return self._process.wait().shell_code, bytes(self._said)


class Answer:
    """Reads the output of a receiving command in a thread. So the command never blocks during our
    writes.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._said = bytearray()
        self._error: BoughError | None = None
        self._thread = threading.Thread(target=self._read, name="bough copy", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for _, data in self._process:
                self._said += data[: max(0, MOST_BYTES - len(self._said))]
        except BoughError as error:
            self._error = error

    def wait(self) -> tuple[int, bytes]:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._process.wait().shell_code, bytes(self._said)


class Meter:
    """Counts bytes and reports them at most ten times a second."""

    def __init__(self, report: Report | None, what: str, total: int | None) -> None:
        self._report = report
        self._what = what
        self.total = total
        self._done = 0
        self._begin = self._told = time.monotonic()

    def count(self, size: int) -> None:
        self._done += size
        if self._report is None:
            return
        now = time.monotonic()
        if now - self._told < 0.1 and self._done != self.total:
            return
        self._told = now
        from bough.progress import Progress

        rate = self._done / max(now - self._begin, 0.001)
        fraction = min(1.0, self._done / self.total) if self.total else None
        detail = f"{format_size(self._done)}, {format_size(int(rate))}/s"
        self._report(Progress(f"copying {self._what}", fraction, detail))
