"""The service's log, bounded for as long as it runs: a service may run for years.

Whoever starts the service gives it service.log as its standard output and error, so that also what Python
itself prints at a crash is kept. When that file has grown too large it becomes service.log.1, and both
streams go on in a fresh one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

#: Of one file; there are two.
LOG_BYTES = 4 * 1024 * 1024
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: A traceback of a deep recursion, or a request that quotes a large body.
_MOST_LINE_BYTES = 64 * 1024


class BoundedStream(logging.StreamHandler):  # type: ignore[type-arg]  # generic from 3.11 on, not at run time
    """To standard error; where that is `path`, the file is bounded."""

    def __init__(self, path: Path, *, limit_bytes: int = LOG_BYTES) -> None:
        super().__init__(sys.stderr)
        self._path = path
        self._limit_bytes = limit_bytes
        self.setFormatter(logging.Formatter(_FORMAT))

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if len(text) <= _MOST_LINE_BYTES:
            return text
        half = _MOST_LINE_BYTES // 2
        return f"{text[:half]}\n... {len(text) - 2 * half} characters more ...\n{text[-half:]}"

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        # One that cannot be turned over (a full disk, a closed stream) must not end the service.
        with contextlib.suppress(OSError, ValueError):
            self._bound()

    def _bound(self) -> None:
        stream = self.stream.fileno()
        ours = os.fstat(stream)
        if ours.st_size <= self._limit_bytes:
            return
        there = self._path.stat()
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            return  # a terminal, a journal, or somebody else's file
        self._path.replace(self._path.with_suffix(".log.1"))
        fresh = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            for descriptor in {stream, sys.stdout.fileno(), sys.stderr.fileno()}:
                os.dup2(fresh, descriptor)
        finally:
            os.close(fresh)


def bound_log(path: Path) -> None:
    """From now on everything that is logged goes to standard error, bounded where that is `path`."""
    logging.basicConfig(level=logging.INFO, handlers=[BoundedStream(path)], force=True)
