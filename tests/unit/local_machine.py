"""A fake machine whose guest is this host: each command runs here, as a process.

The class serves tests of clients that run commands in a guest; `sh` and `tar` are real.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from bough.client.process import ExitStatus


class LocalProcess:
    """The part of bough.client.process.Process that tests need."""

    def __init__(self, argv: tuple[str, ...], env: Mapping[str, str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            argv,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env={**os.environ, **env},
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )
        self._output: queue.Queue[tuple[str, bytes] | None] = queue.Queue(16)
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("stdout", self._process.stdout), ("stderr", self._process.stderr))
        ]
        for reader in self._readers:
            reader.start()
        self._left = 2
        self._reading = threading.Lock()

    def _read(self, name: str, stream: Any) -> None:
        while data := stream.read(64 * 1024):
            self._output.put((name, data))
        self._output.put(None)

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self._process.stdin.write(view) :]

    def close_stdin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def read(self, timeout: float | None = None) -> tuple[str, bytes] | None:
        with self._reading:
            while self._left:
                output = self._output.get(timeout=timeout)
                if output is not None:
                    return output
                self._left -= 1
            return None

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        while (output := self.read()) is not None:
            yield output

    def wait(self) -> ExitStatus:
        while self.read() is not None:
            pass
        code = self._process.wait()
        return ExitStatus(code, None) if code >= 0 else ExitStatus(None, signal.Signals(-code).name)

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def __enter__(self) -> LocalProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalMachine:
    """The part of bough.client.Machine that copying needs."""

    name = "local"

    def spawn(self, *argv: str, env: Mapping[str, str] | None = None, as_image: bool = True) -> LocalProcess:
        return LocalProcess(argv, env or {})
