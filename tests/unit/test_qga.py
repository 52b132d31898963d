"""qemu-guest-agent's protocol against a small fake of the agent, and against hostile ones."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bough.errors import AgentTimeout, AgentUnavailable, BoughError, GuestRefused, ProtocolError
from bough.guest.qga import QgaChannel
from bough.guest.session import ExecRequest

COMMANDS = ["guest-ping", "guest-exec", "guest-exec-status", "guest-shutdown", "guest-set-time"]


def answer(request: dict[str, Any]) -> Any:
    """Return the answer of an honest agent."""
    arguments = request.get("arguments", {})
    match request["execute"]:
        case "guest-sync-delimited":
            return arguments["id"]
        case "guest-info":
            return {"supported_commands": [{"name": name, "enabled": True} for name in COMMANDS]}
        case "guest-exec":
            return {"pid": 7}
        case "guest-exec-status":
            out = base64.b64encode(b"hello").decode()
            return {"exited": True, "exitcode": 3, "out-data": out, "err-data": "bm8="}
    return {}


@asynccontextmanager
async def agent(
    tmp_path: Path, reply: Callable[[dict[str, Any]], bytes | None] | None = None
) -> AsyncIterator[tuple[QgaChannel, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            request = json.loads(line.lstrip(b"\xff"))
            asked.append(request)
            said = reply(request) if reply else None
            if said is None:
                delimiter = b"\xff" if "sync" in request["execute"] else b""
                said = delimiter + json.dumps({"return": answer(request)}).encode() + b"\n"
            writer.write(said)

    path = tmp_path / "agent.sock"
    async with await asyncio.start_unix_server(serve, path):
        channel = await QgaChannel.connect(path, machine="old")
        try:
            yield channel, asked
        finally:
            await channel.close()


async def test_a_command(tmp_path: Path) -> None:
    async with agent(tmp_path) as (channel, asked):
        await channel.hello(5)
        session = await channel.exec(ExecRequest(["cat"], user="joe", cwd="/tmp", env={"A": "b"}))
        await session.write(b"input")
        await session.close_stdin()
        assert [one async for one in session] == [("stdout", b"hello"), ("stderr", b"no")]
        assert session.exit.code == 3
        sent = next(request["arguments"] for request in asked if request["execute"] == "guest-exec")
        assert sent["arg"][-5:] == ["runuser", "-u", "joe", "--", "cat"]
        assert base64.b64decode(sent["input-data"]) == b"input"
        assert sent["env"] == ["A=b"]


async def test_what_it_lacks_is_said(tmp_path: Path) -> None:
    async with agent(tmp_path) as (channel, _):
        await channel.hello(5)
        with pytest.raises(GuestRefused, match="connections to its ports"):
            await channel.dial(80)
        with pytest.raises(GuestRefused, match="terminal"):
            await channel.exec(ExecRequest(["sh"], tty=True))
        with pytest.raises(GuestRefused, match="load"):
            await channel.call("load", {}, 5)
        with pytest.raises(GuestRefused, match="guest-fsfreeze"):
            await channel.call("freeze", {}, 5)


@pytest.mark.parametrize(
    "said",
    [
        b"not json\n",
        b"[1]\n",
        b'{"return": 5}\n',
        b'{"error": {"desc": "no\x1b[2J"}}\n',
        b'{"error": 3}\n',
        b"\xff\n",
    ],
)
async def test_a_hostile_answer(tmp_path: Path, said: bytes) -> None:
    def reply(request: dict[str, Any]) -> bytes | None:
        return said if request["execute"] == "guest-exec" else None

    async with agent(tmp_path, reply) as (channel, _):
        await channel.hello(5)
        session = await channel.exec(ExecRequest(["true"], stdin=False))
        assert [one async for one in session] == []
        assert isinstance(session.exit.error, GuestRefused | ProtocolError)
        assert "\x1b" not in str(session.exit.error)


async def test_a_line_without_end_and_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bough.guest.qga._MOST_LINE_BYTES", 4096)
    monkeypatch.setattr("bough.guest.qga._SYNC_EVERY_S", 0.05)

    def endless(request: dict[str, Any]) -> bytes | None:
        return b"x" * 100_000 if request["execute"] == "guest-ping" else None

    async with agent(tmp_path, endless) as (channel, _):
        await channel.hello(5)
        with pytest.raises(ProtocolError):
            await channel.ping()
    async with agent(tmp_path, lambda _: b"") as (channel, _):
        with pytest.raises(AgentTimeout):
            await channel.hello(0.2)
    with pytest.raises(AgentUnavailable):
        await QgaChannel.connect(tmp_path / "nobody", machine="old")


async def test_an_answer_that_nobody_waits_for_any_more(tmp_path: Path) -> None:
    held: list[dict[str, Any]] = []

    def reply(request: dict[str, Any]) -> bytes | None:
        if request["execute"] == "guest-exec":
            held.append(request)
            return b""
        if held and "sync" in request["execute"]:  # the late answer comes first, as from a slow guest
            late = json.dumps({"return": {"pid": 7}}).encode() + b"\n"
            held.clear()
            return late + b"\xff" + json.dumps({"return": answer(request)}).encode() + b"\n"
        return None

    async with agent(tmp_path, reply) as (channel, _):
        await channel.hello(5)
        with pytest.raises(AgentTimeout, match="guest-exec"):
            await channel.ask("guest-exec", timeout_s=0.05)
        assert await channel.ask("guest-exec-status", timeout_s=5) == answer({"execute": "guest-exec-status"})
        asking = asyncio.create_task(channel.ask("guest-exec", timeout_s=5))
        while not held:  # noqa: ASYNC110 - the agent is a function of this test
            await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.wait({asking})
        assert await channel.ask("guest-exec-status", timeout_s=5) == answer({"execute": "guest-exec-status"})


async def test_too_much_input(tmp_path: Path) -> None:
    async with agent(tmp_path) as (channel, _):
        await channel.hello(5)
        session = await channel.exec(ExecRequest(["cat"]))
        with pytest.raises(BoughError, match="12 MiB"):
            await session.write(bytes(13 << 20))
