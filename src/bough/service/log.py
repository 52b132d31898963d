"""The service's log, of bounded size, because a service may run for years.

The process that starts the service passes service.log as standard output and error. So the file also has
Python's own output at a crash. A file above the limit becomes service.log.1, and both streams continue in a
new file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

#: Limit for one of the two files.
LOG_BYTES = 4 * 1024 * 1024
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: Reached by a traceback of a deep recursion, or by a message that quotes a large request.
_MOST_LINE_BYTES = 64 * 1024


class BoundedStream(logging.StreamHandler):  # type: ignore[type-arg]  # generic from 3.11 on, not at run time
    """Logs to standard error, and bounds the size of the file `path` if standard error goes there."""

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
        # A full disk or a closed stream can prevent the change of files, but must not end the service.
        with contextlib.suppress(OSError, ValueError):
            self._bound()

    def _bound(self) -> None:
        stream = self.stream.fileno()
        ours = os.fstat(stream)
        if ours.st_size <= self._limit_bytes:
            return
        there = self._path.stat()
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            return  # a terminal, a journal, or another file than the service's log
        self._path.replace(self._path.with_suffix(".log.1"))
        fresh = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            for descriptor in {stream, sys.stdout.fileno(), sys.stderr.fileno()}:
                os.dup2(fresh, descriptor)
        finally:
            os.close(fresh)


def bound_log(path: Path) -> None:
    """Log to standard error from now on, with a bounded size if standard error is the file `path`."""
    logging.basicConfig(level=logging.INFO, handlers=[BoundedStream(path)], force=True)
