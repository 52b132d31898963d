"""QMP against a small server over a real socket, honest and hostile."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bough.errors import DeadlineExceeded, QmpLost, QmpRefused, WrongState
from bough.qemu.qmp import MAX_EVENTS, MAX_MESSAGE_BYTES, Qmp

GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}
}

Session = Callable[["Server"], Awaitable[None]]


class Server:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.buffer = ""

    def send(self, message: Any) -> None:
        self.writer.write(json.dumps(message).encode() + b"\r\n")

    async def command(self) -> dict[str, Any]:
        """Read the next command. Commands follow each other without a line end."""
        while True:
            with contextlib.suppress(ValueError):
                command, end = json.JSONDecoder().raw_decode(self.buffer)
                self.buffer = self.buffer[end:]
                return dict(command)
            data = await self.reader.read(65536)
            if not data:
                raise ConnectionResetError
            self.buffer += data.decode()

    async def answer(self, value: Any) -> dict[str, Any]:
        command = await self.command()
        self.send({"return": value, "id": command.get("id")})
        return command


@contextlib.asynccontextmanager
async def served(path: Path, session: Session) -> AsyncIterator[Qmp]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = Server(reader, writer)
        server.send(GREETING)
        await server.answer({})
        with contextlib.suppress(ConnectionError):
            await session(server)
        writer.close()

    listener = await asyncio.start_unix_server(serve, path)
    async with listener:
        qmp = await Qmp.connect(path)
        try:
            yield qmp
        finally:
            await qmp.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp.sock"


async def test_execute_returns_what_qemu_returned(path: Path) -> None:
    asked: list[dict[str, Any]] = []

    async def session(server: Server) -> None:
        asked.append(await server.answer({"status": "running"}))
        asked.append(await server.answer(None))
        await server.reader.read()

    async with served(path, session) as qmp:
        assert await qmp.execute("query-status") == {"status": "running"}
        await qmp.execute("block_resize", **{"node-name": "disk0", "size": 5})
        assert qmp.version == (7, 2)
    assert "arguments" not in asked[0]
    assert asked[1]["arguments"] == {"node-name": "disk0", "size": 5}


async def test_a_refusal_carries_qemus_words(path: Path) -> None:
    async def session(server: Server) -> None:
        command = await server.command()
        server.send({"error": {"class": "GenericError", "desc": "no such node"}, "id": command["id"]})
        await server.answer(1)
        await server.reader.read()

    async with served(path, session) as qmp:
        with pytest.raises(QmpRefused, match="no such node") as caught:
            await qmp.execute("blockdev-del")
        assert caught.value.command == "blockdev-del"
        assert await qmp.execute("still-works") == 1


async def test_events_come_in_order_and_end_when_qemu_does(path: Path) -> None:
    async def session(server: Server) -> None:
        server.send({"event": "STOP", "timestamp": {}})
        await server.answer(None)
        server.send({"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}, "timestamp": {}})

    async with served(path, session) as qmp:
        await qmp.execute("quit")
        events = [event async for event in qmp.events()]
        assert [event["event"] for event in events] == ["STOP", "SHUTDOWN"]
        assert events[1]["data"]["reason"] == "guest-shutdown"
        assert qmp.lost_because is not None
        with pytest.raises(QmpLost):
            await qmp.execute("query-status")


async def test_a_loss_during_a_command_is_told_as_such(path: Path) -> None:
    async def session(server: Server) -> None:
        await server.command()

    async with served(path, session) as qmp:
        with pytest.raises(QmpLost, match="query-status"):
            await qmp.execute("query-status")


async def test_closed_by_us_is_not_lost(path: Path) -> None:
    async def session(server: Server) -> None:
        await server.reader.read()

    async with served(path, session) as qmp:
        listening = asyncio.create_task(anext(qmp.events(), None))
        await asyncio.sleep(0)
        await qmp.close()
        assert await listening is None
        assert qmp.lost_because is None
        with pytest.raises(WrongState):
            await qmp.execute("query-status")


async def test_silence_is_a_deadline_and_the_connection_stays(path: Path) -> None:
    async def session(server: Server) -> None:
        late = await server.command()
        command = await server.command()
        server.send({"return": "too late", "id": late["id"]})
        server.send({"return": "mine", "id": command["id"]})
        await server.reader.read()

    async with served(path, session) as qmp:
        with pytest.raises(DeadlineExceeded):
            await qmp.execute("slow", timeout_s=0.02)
        assert await qmp.execute("quick") == "mine"


@pytest.mark.parametrize(
    "garbage",
    [
        b"not json\r\n",
        b"[" * 100_000 + b"\r\n",
        b'"a string"\r\n',
        b"x" * (MAX_MESSAGE_BYTES + 1) + b"\r\n",
        b'{"event": 5, "timestamp": {}}\r\n',
        b'{"event": "X", "data": [], "timestamp": {}}\r\n',
        b'{"event": "X"}\r\n' * (MAX_EVENTS + 10),
    ],
    ids=["no-json", "deep", "no-object", "endless", "event-type", "event-data", "flood"],
)
async def test_what_is_not_qmp_ends_the_connection(path: Path, garbage: bytes) -> None:
    async def session(server: Server) -> None:
        server.writer.write(garbage)
        await server.reader.read()

    with pytest.raises(QmpLost):
        async with served(path, session) as qmp:
            await qmp.execute("query-status", timeout_s=5)


async def test_nobody_there(path: Path) -> None:
    with pytest.raises(QmpLost):
        await Qmp.connect(path)


async def test_no_greeting(path: Path) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(mute, path):
        with pytest.raises(QmpLost, match="greet"):
            await Qmp.connect(path, timeout_s=0.05)


@pytest.mark.parametrize("place", ["the greeting", "the first answer"])
async def test_an_event_before(path: Path, place: str) -> None:
    """QEMU sends an event while its monitor accepts a client."""
    connections = 0
    event = {"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        server = Server(reader, writer)
        if connections == 1 and place == "the greeting":
            server.send(event)
        server.send(GREETING)
        if connections == 1 and place == "the first answer":
            server.send(event)
        with contextlib.suppress(ConnectionError):
            await server.answer({})
            await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        await (await Qmp.connect(path)).close()
    assert connections == 2


@pytest.mark.parametrize("answer", [None, 5, "running", True, [1]])
async def test_an_answer_that_is_not_an_object(path: Path, answer: Any) -> None:
    async def session(server: Server) -> None:
        await server.answer(answer)
        await server.reader.read()

    async with served(path, session) as qmp:
        with pytest.raises(QmpLost, match="query-status"):
            await qmp.query("query-status")


@pytest.mark.parametrize("answer", [None, 5, "jobs", {"id": "merge-disk0"}])
async def test_an_answer_that_is_not_a_list(path: Path, answer: Any) -> None:
    async def session(server: Server) -> None:
        await server.answer(answer)
        await server.reader.read()

    async with served(path, session) as qmp:
        with pytest.raises(QmpLost, match="query-jobs"):
            await qmp.query_list("query-jobs")


async def test_what_a_list_holds_is_bounded_and_of_one_kind(path: Path) -> None:
    async def session(server: Server) -> None:
        await server.answer([1, None, *({"id": str(n)} for n in range(2000))])
        await server.reader.read()

    async with served(path, session) as qmp:
        listed = await qmp.query_list("query-jobs")
    assert 900 < len(listed) <= 1000
    assert all(isinstance(item, dict) for item in listed)
