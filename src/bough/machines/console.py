"""The serial console of a running machine: a bounded log, and attached clients.

QEMU's chardev accepts one client and drops output while no client is connected. So the service stays
connected while the machine runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

from bough.home import SocketAddress
from bough.storage import read_tail
from bough.tasks import end_tasks

#: The log holds at least this number of bytes of the latest output and at most twice as many, in two files.
LOG_BYTES = 1024 * 1024
READ_BYTES = 64 * 1024
#: A client that does not read loses output beyond this many chunks; the guest never waits for a client.
QUEUE_CHUNKS = 256


class Console:
    """The console of one machine.

    Args:
        bytes_per_s: a guest that prints more must wait, as for a slow serial line. So a guest can exhaust
            neither the service's processor time nor the host's disk.

    Attributes:
        printed: number of bytes since the connection began.
    """

    def __init__(self, socket: Path, log: Path, *, bytes_per_s: int = 1024 * 1024) -> None:
        self._socket = socket
        self._log = log
        self._rate = bytes_per_s
        self.printed = 0
        self._due = 0.0
        self._closing = asyncio.Event()
        self._attached: set[asyncio.Queue[bytes | None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Connect. Raises OSError: QEMU does not listen, or has ended."""
        with SocketAddress(self._socket) as address:
            reader, self._writer = await asyncio.open_unix_connection(address, limit=READ_BYTES)
        self._reading = asyncio.create_task(self._read(reader), name=f"console {self._log}")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        size = self._log.stat().st_size if self._log.exists() else 0
        stream = self._log.open("ab", buffering=0)
        try:
            while data := await reader.read(min(READ_BYTES, self._rate)):
                self.printed += len(data)
                if size + len(data) > LOG_BYTES:
                    stream.close()
                    self._log.replace(self._log.with_suffix(".log.1"))
                    stream = self._log.open("ab", buffering=0)
                    size = 0
                # A full disk of the host costs log lines, not the machine.
                with contextlib.suppress(OSError):
                    size += stream.write(data)
                for queue in self._attached:
                    if not queue.full():
                        queue.put_nowait(data)
                await self._pace(len(data))
        except ConnectionError:
            pass
        finally:
            stream.close()
            for queue in self._attached:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(None)

    async def _pace(self, count: int) -> None:
        """Wait until `count` more bytes are allowed. An unused allowance of up to one second is kept."""
        now = time.monotonic()
        self._due = max(self._due, now - 1) + count / self._rate
        if self._due > now:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._due - now):
                    await self._closing.wait()

    def attach(self) -> asyncio.Queue[bytes | None]:
        """Return a queue with all output from now on. A None in the queue is the end of QEMU."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE_CHUNKS)
        self._attached.add(queue)
        return queue

    def detach(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._attached.discard(queue)

    async def write(self, data: bytes) -> None:
        """Type `data`. Wait while the guest does not read. Raises ConnectionError: not connected."""
        if self._writer is None:
            raise ConnectionError("the console is not connected")
        self._writer.write(data)
        await self._writer.drain()

    async def read_rest(self) -> None:
        """Read the last output after QEMU has ended, for 0.5 s at most."""
        self._closing.set()
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=0.5)

    async def close(self) -> None:
        """Disconnect."""
        self._closing.set()
        if self._reading is not None:
            await end_tasks(self._reading)
        if self._writer is not None:
            self._writer.close()


def read_console(log: Path, limit_bytes: int = 4096) -> str:
    """Return the end of the console output, from both files of the log."""
    recent = read_tail(log, limit_bytes)
    missing = limit_bytes - len(recent)
    return read_tail(log.with_suffix(".log.1"), missing) + recent if missing > 0 else recent
