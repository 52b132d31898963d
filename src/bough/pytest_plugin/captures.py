"""Captures of networks while a test runs: kept if the test fails."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING

from bough.errors import BoughError

if TYPE_CHECKING:
    from bough.client.network import Network
    from bough.client.websocket import WebSocket

#: Bytes of one network that are kept; a test that transfers more loses the rest.
_MOST_BYTES = 64 * 1024 * 1024


class NetworkCapture:
    """Writes the frames of a network to a temporary file, until `close`."""

    def __init__(self, network: Network) -> None:
        self.name = network.name
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="bough-", suffix=".pcapng")  # noqa: SIM115
        self._size = 0
        self._writing = threading.Lock()
        self._socket: WebSocket | None = None
        with contextlib.suppress(BoughError):  # no machine runs yet: nothing to capture
            self._socket = network.open_capture()
            threading.Thread(target=self._write, name=f"capture {self.name}", daemon=True).start()

    def _write(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(BoughError, OSError, ValueError):
            while isinstance(data := self._socket.receive(), bytes):
                with self._writing:
                    if self._size + len(data) > _MOST_BYTES:
                        return
                    self._file.write(data)
                    self._size += len(data)

    def save(self, path: Path) -> None:
        """Write the frames so far to a file in the form of pcapng."""
        with self._writing:
            self._file.flush()
            self._file.seek(0)
            with path.open("wb") as target:
                while data := self._file.read(1024 * 1024):
                    target.write(data)
            self._file.seek(0, 2)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        with self._writing:
            self._file.close()
