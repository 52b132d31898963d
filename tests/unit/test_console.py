import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bough.machines import console as module
from bough.machines.console import Console, read_console


@pytest.fixture
def short() -> Iterator[Path]:
    """Yield a path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


class Chardev:
    """QEMU's socket chardev, as its single client sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.typed = b""
        self.connected: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> "Chardev":
        self.server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected.set_result(writer)
        while data := await reader.read(1000):
            self.typed += data
            writer.write(data.upper())


async def test_what_is_printed_is_logged_and_shown(short: Path) -> None:
    async with Chardev(short / "s") as chardev:
        console = Console(short / "s", short / "console.log")
        await console.connect()
        queue = console.attach()
        await console.write(b"login: root\r")
        assert await queue.get() == b"LOGIN: ROOT\r"
        (await chardev.connected).close()
        assert await queue.get() is None
        await console.close()
    assert read_console(short / "console.log") == "LOGIN: ROOT\r"


async def test_the_log_is_bounded_and_keeps_the_end(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_BYTES", 10_000)
    async with Chardev(short / "s") as chardev:
        console = Console(short / "s", short / "console.log")
        await console.connect()
        idle = console.attach()  # a client that never reads must not stop the others
        writer = await chardev.connected
        for number in range(5000):
            writer.write(f"line {number}\r\n".encode())
            await writer.drain()
        writer.close()
        await console.read_rest()
        await console.close()
    files = [short / "console.log", short / "console.log.1"]
    # A read of up to 64 KiB is written whole; after that the bound applies.
    assert sum(path.stat().st_size for path in files if path.exists()) < 2 * 10_000 + 2 * 65_536
    assert read_console(short / "console.log").endswith("line 4999\r\n")
    assert idle.qsize() <= module.QUEUE_CHUNKS


async def test_a_guest_that_prints_without_end_is_held_to_its_rate(short: Path) -> None:
    async with Chardev(short / "s") as chardev:
        console = Console(short / "s", short / "console.log", bytes_per_s=50_000)
        await console.connect()
        queue = console.attach()
        writer = await chardev.connected

        async def flood() -> None:
            while not writer.is_closing():
                writer.write(b"x" * 100_000)
                await writer.drain()

        flooding = asyncio.create_task(flood())
        started = time.monotonic()
        taken = 0
        while taken < 200_000:
            taken += len(await queue.get() or b"")
        # The output of one second may come at once, and one read is shown before the wait for the bound.
        assert time.monotonic() - started >= 200_000 / 50_000 - 2 - 0.1
        flooding.cancel()
        writer.close()
        await console.close()
