"""The channel against a hostile guest: a guest may end its channel, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bough.errors import AgentTimeout, AgentUnavailable, BoughError, GuestRefused, ProtocolError
from bough.guest import wire
from bough.guest.channel import AgentChannel
from bough.guest.frame_queue import MOST_QUEUED
from bough.guest.session import OUTPUT_WINDOW, ExecRequest, ExecSession


class Guest:
    """The guest's end of the wire, controlled by the test."""

    def __init__(self) -> None:
        self.host_end, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        self.reader = wire.FrameReader(wire.SYNC)
        self.nonce = 0

    async def frame(self) -> tuple[int, int, int, bytes]:
        """Return (kind, stream, session, payload) of the host's next frame."""
        loop = asyncio.get_running_loop()
        while (frame := self.reader.next()) is None:
            data = await loop.sock_recv(self.sock, 65536)
            room = self.reader.room()
            room[: len(data)] = data
            self.reader.added(len(data))
        kind, stream, nonce, session, payload = frame
        if kind == wire.HELLO:
            self.nonce = nonce
        return kind, stream, session, bytes(payload)

    async def until(self, kind: int) -> tuple[int, bytes]:
        """Return (session, payload) of the next frame of that kind."""
        while (frame := await self.frame())[0] != kind:
            pass
        return frame[2], frame[3]

    def welcome(self, hello: bytes, **values: object) -> bytes:
        answer = {
            "token": wire.decode_map(hello)["token"],
            "version": wire.VERSION,
            "window": 65536,
            **values,
        }
        return wire.SYNC + wire.pack(wire.WELCOME, self.nonce, 0, wire.encode(answer))

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def tell(self, kind: int, session: int = 0, payload: bytes = b"", stream: int = 0) -> None:
        await self.send(wire.pack(kind, self.nonce, session, payload, stream))


@contextlib.asynccontextmanager
async def greeted() -> AsyncIterator[tuple[AgentChannel, Guest]]:
    guest = Guest()
    channel = AgentChannel(guest.host_end, machine="evil")
    hello = asyncio.create_task(channel.hello(5))
    _, payload = await guest.until(wire.HELLO)
    await guest.send(guest.welcome(payload))
    await hello
    try:
        yield channel, guest
    finally:
        await channel.close()
        guest.sock.close()


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[AgentChannel, Guest, ExecSession]]:
    async with greeted() as (channel, guest):
        opening = asyncio.create_task(channel.exec(ExecRequest(["x"])))
        session_id, _ = await guest.until(wire.EXEC)
        await guest.tell(wire.OPENED, session_id, wire.encode({}))
        yield channel, guest, await opening


async def lost(channel: AgentChannel) -> BoughError:
    async with asyncio.timeout(5):
        await channel.lost.wait()
    assert channel.lost_reason is not None
    return channel.lost_reason


def frames(session: int) -> Iterator[tuple[str, int, int, bytes, int]]:
    """Yield (reason, kind, session, payload, stream) of frames that no honest agent sends."""
    values = wire.encode({})
    yield "another's session", wire.DATA, session + 1, b"x", 1
    yield "no session", wire.EXIT, 0, wire.encode({"code": 0}), 0
    yield "a second opening", wire.OPENED, session, values, 0
    yield "refused while it runs", wire.ERROR, session, wire.encode({"message": "no"}), 0
    yield "an unknown stream", wire.DATA, session, b"x", 7
    yield "stdin of the host", wire.DATA, session, b"x", 0
    yield "no bytes", wire.DATA, session, b"", 1
    yield "a pong without a ping", wire.PONG, 0, b"x", 0
    yield "a result without a call", wire.RESULT, session, values, 0
    yield "progress without a call", wire.PROGRESS, session, values, 0
    yield "a request", wire.EXEC, 99, values, 0
    yield "a hello", wire.HELLO, 0, values, 0
    yield "a short credit", wire.CREDIT, session, b"\1", 0
    yield "endless credit", wire.CREDIT, session, b"\xff\xff\xff\xff", 0
    yield "an exit that is none", wire.EXIT, session, values, 0
    yield "an exit code that is none", wire.EXIT, session, wire.encode({"code": 1 << 40}), 0
    yield "a signal that is none", wire.EXIT, session, wire.encode({"signal": "\x1b[2J"}), 0
    yield "no values", wire.EXIT, session, b"\xff", 0


@pytest.mark.parametrize("at", range(len(list(frames(1)))), ids=[case[0] for case in frames(1)])
async def test_a_frame_that_may_not_be_ends_the_channel(at: int) -> None:
    async with running() as (channel, guest, session):
        _, kind, session_id, payload, stream = list(frames(session.id))[at]
        await guest.tell(kind, session_id, payload, stream)
        assert isinstance(await lost(channel), ProtocolError)
        assert [chunk async for chunk in session] == []
        assert isinstance(session.exit.error, ProtocolError)
        with pytest.raises(ProtocolError):
            await channel.ping()


async def test_more_than_its_credit_ends_the_channel() -> None:
    async with running() as (channel, guest, session):
        chunk = bytes(wire.MAX_PAYLOAD)
        with contextlib.suppress(OSError):
            for _ in range(2 * OUTPUT_WINDOW // len(chunk)):
                await guest.tell(wire.DATA, session.id, chunk, wire.STDOUT)
        assert isinstance(await lost(channel), ProtocolError)
        held = sum(len(data) for _, data in session._chunks)
        assert held <= OUTPUT_WINDOW


async def test_tiny_frames_use_up_credit_too() -> None:
    async with running() as (channel, guest, session):
        tiny = wire.pack(wire.DATA, guest.nonce, session.id, b"x", wire.STDOUT)
        with contextlib.suppress(OSError):
            await guest.send(tiny * (2 * OUTPUT_WINDOW // wire.FRAME_COST))
        assert isinstance(await lost(channel), ProtocolError)
        assert len(session._chunks) <= OUTPUT_WINDOW // wire.FRAME_COST


async def test_a_guest_that_reads_nothing_is_sent_little() -> None:
    async with running() as (channel, _, session):
        writer = asyncio.create_task(session.write(bytes(64 << 20)))
        with contextlib.suppress(AgentUnavailable):
            for _ in range(500_000):
                await session.resize(1, 1)
        assert channel._frames.queued_bytes <= MOST_QUEUED + wire.MAX_FRAME
        with pytest.raises(AgentUnavailable):
            await channel.ping(timeout_s=0.01)
        await session.abort()
        await writer


async def test_a_flood_lets_others_have_their_turn() -> None:
    """A guest floods the host with costly frames; the event loop still serves other tasks."""
    async with running() as (channel, guest, session):
        await session.abort()
        credit = wire.pack(wire.CREDIT, guest.nonce, session.id, wire.CREDIT_PAYLOAD.pack(0), wire.STDIN)

        async def flood() -> None:
            with contextlib.suppress(OSError):
                while not channel.lost.is_set():
                    await guest.send(credit * 1000)

        flooding = asyncio.create_task(flood())
        for _ in range(100):
            await asyncio.sleep(0)
        await channel.close()
        await flooding


async def test_an_old_session_answers_too_late() -> None:
    """Frames from before a new greeting are dropped silently."""
    async with running() as (channel, guest, session):
        again = asyncio.create_task(channel.hello(5))
        stale = wire.pack(wire.DATA, guest.nonce, session.id, b"stale", 1)
        _, payload = await guest.until(wire.HELLO)
        await guest.send(stale + stale[:100] + guest.welcome(payload))
        await again
        assert isinstance(session.exit.error, AgentUnavailable)
        ping = asyncio.create_task(channel.ping())
        await guest.tell(wire.PONG, 0, (await guest.until(wire.PING))[1])
        assert await ping < 5


async def test_a_replayed_welcome_ends_the_channel() -> None:
    async with greeted() as (channel, guest):
        values = wire.encode({"token": bytes(16), "version": wire.VERSION, "window": 65536})
        await guest.send(wire.SYNC + wire.pack(wire.WELCOME, guest.nonce, 0, values))
        assert isinstance(await lost(channel), ProtocolError)


@pytest.mark.parametrize("values", [{"window": 1 << 40}, {"window": -1}, {"window": "x"}])
async def test_a_welcome_that_makes_no_sense(values: dict[str, object]) -> None:
    guest = Guest()
    channel = AgentChannel(guest.host_end, machine="evil")
    hello = asyncio.create_task(channel.hello(5))
    _, payload = await guest.until(wire.HELLO)
    await guest.send(guest.welcome(payload, **values))
    with pytest.raises(ProtocolError):
        await hello
    guest.sock.close()


async def test_another_version_is_told() -> None:
    guest = Guest()
    channel = AgentChannel(guest.host_end, machine="old")
    hello = asyncio.create_task(channel.hello(5))
    _, payload = await guest.until(wire.HELLO)
    await guest.send(guest.welcome(payload, version=99))
    with pytest.raises(AgentUnavailable, match="version 99"):
        await hello
    await channel.close()
    guest.sock.close()


async def test_a_new_agent_ends_what_the_old_one_did() -> None:
    async with running() as (channel, guest, session):
        await guest.send(wire.SYNC + wire.pack(wire.READY, 0))
        assert [chunk async for chunk in session] == []
        assert isinstance(session.exit.error, AgentUnavailable)
        assert not channel.lost.is_set()
        again = asyncio.create_task(channel.hello(5))
        _, payload = await guest.until(wire.HELLO)
        await guest.send(guest.welcome(payload))
        await again


async def test_what_a_guest_says_does_nothing_to_a_terminal() -> None:
    async with greeted() as (channel, guest):
        call = asyncio.create_task(channel.call("x", {}, 5))
        call_id, _ = await guest.until(wire.CALL)
        values = {"message": "\x1b]0;owned\x07no" + "x" * 9000, "errno": "\x9b2J", "output": "\x1b[2J"}
        await guest.tell(wire.ERROR, call_id, wire.encode(values))
        with pytest.raises(GuestRefused) as caught:
            await call
        told = str(caught.value.to_dict())
        assert "\x1b" not in told
        assert "\x9b" not in told
        assert len(told) < 10_000


async def test_an_endless_result_ends_the_channel() -> None:
    async with greeted() as (channel, guest):
        call = asyncio.create_task(channel.call("x", {}, 5))
        call_id, _ = await guest.until(wire.CALL)
        with contextlib.suppress(OSError):
            while not channel.lost.is_set():
                await guest.tell(wire.RESULT, call_id, bytes(wire.MAX_PAYLOAD), stream=1)
        with pytest.raises(ProtocolError):
            await call


async def test_an_answer_that_nobody_waits_for_any_more() -> None:
    async with greeted() as (channel, guest):
        late = asyncio.create_task(channel.call("freeze", {}, 0.01))
        late_id, _ = await guest.until(wire.CALL)
        with pytest.raises(AgentTimeout, match="freeze"):
            await late
        cancelled = asyncio.create_task(channel.call("settle", {}, 5))
        cancelled_id, _ = await guest.until(wire.CALL)
        cancelled.cancel()
        await asyncio.wait({cancelled})
        await guest.tell(wire.RESULT, cancelled_id, wire.encode({}))
        await guest.tell(wire.RESULT, late_id, wire.encode({}))
        call = asyncio.create_task(channel.call("load", {}, 5))
        call_id, _ = await guest.until(wire.CALL)
        await guest.tell(wire.RESULT, call_id, wire.encode({"one": 1}))
        assert await call == {"one": 1}
        assert not channel.lost.is_set()


async def test_no_answer_is_a_timeout() -> None:
    guest = Guest()
    channel = AgentChannel(guest.host_end, machine="silent")
    with pytest.raises(AgentTimeout, match="silent"):
        await channel.hello(0.01)
    await channel.close()
    guest.sock.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.builds(
                lambda kind, stream, session, payload: (kind, stream, session, payload),
                st.integers(1, wire.LAST_KIND),
                st.integers(0, 3),
                st.integers(0, 4),
                st.binary(max_size=100)
                | st.builds(wire.encode, st.dictionaries(st.text(), st.integers(-9, 999))),
            ),
        ),
        max_size=20,
    )
)
def test_fuzz(parts: list[bytes | tuple[int, int, int, bytes]]) -> None:
    """Every request ends, with a result or one of bough's errors, whatever the guest sends."""

    async def attack() -> None:
        async with running() as (channel, guest, session):
            call = asyncio.create_task(channel.call("load", {}, 5))
            ping = asyncio.create_task(channel.ping())
            await asyncio.sleep(0)
            with contextlib.suppress(OSError):
                for part in parts:
                    if isinstance(part, bytes):
                        await guest.send(part)
                    else:
                        kind, stream, session_id, payload = part
                        await guest.tell(kind, session_id, payload, stream)
                        await asyncio.sleep(0)
            await channel.close()
            results = await asyncio.gather(call, ping, return_exceptions=True)
            assert all(isinstance(result, (dict, float, BoughError)) for result in results)
            async for _ in session:
                pass
            exit_status = session.exit
            assert (exit_status.code, exit_status.signal, exit_status.error) != (None, None, None)

    asyncio.run(attack())
