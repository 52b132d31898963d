"""The handshake with an agent: hellos until a welcome comes (docs/agent.md, "Handshake")."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bough.errors import AgentUnavailable, BoughError, ProtocolError
from bough.guest import wire
from bough.guest.facts import AgentFacts, clean_name
from bough.guest.frame_queue import FrameQueue

_MAX_INPUT_WINDOW = 4 * 1024 * 1024
_FIRST_RETRY_S = 0.1
#: Retry interval for an agent that ran before its guest was snapshotted. A second hello would only delay the
#: agent.
_AWAKE_RETRY_S = 3.0
_LAST_RETRY_S = 1.0


@dataclass(frozen=True)
class Welcome:
    """An agent's answer to a hello.

    Attributes:
        input_window: first credit of each session's stdin, in bytes.
        long_commands: the agent takes commands in parts.
        resumes: commands go on when the agent is restarted.
        sessions: the commands that go on, as the guest wrote the list.
    """

    facts: AgentFacts
    input_window: int
    long_commands: bool
    resumes: bool
    sessions: object


class Handshake:
    """The handshakes of a channel, one after the other.

    Attributes:
        nonce: of the current handshake; 0 before the first.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, frames: FrameQueue, machine: str) -> None:
        self.nonce = 0
        self._loop = loop
        self._frames = frames
        self._machine = machine
        self._token = b""
        self._welcome: asyncio.Future[Welcome] | None = None
        self._again = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Return whether a hello waits for its answer."""
        return self._welcome is not None

    def begin(self) -> bytes:
        """Begin a handshake with a new nonce. Return the first bytes of the expected answer."""
        self.nonce = struct.unpack("<I", os.urandom(4))[0] or 1
        self._token = os.urandom(16)
        self._welcome = self._loop.create_future()
        return wire.SYNC + wire.HEADER.pack(wire.MARK, wire.WELCOME, 0, self.nonce, 0, 0)[:8]

    def end(self) -> None:
        """Stop waiting for an answer."""
        self._welcome = None

    def repeat(self) -> None:
        """Send the hello again: another agent has started, or the guest closed its port."""
        self._again.set()

    def fail(self, reason: BoughError) -> None:
        """End the wait with an error: the channel is lost."""
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_exception(reason)
            self._welcome.exception()

    async def greet(self, render: Callable[[], Mapping[str, object]], call: bytes | None) -> Welcome:
        """Send hellos until the answer comes. `begin` comes first.

        QEMU holds a hello while the guest has not opened its port, and delivers the hello at the agent's
        start. Further hellos would only be more to read. A delivered hello without an answer may have become
        part of an earlier unfinished frame. Padding ends such a frame.

        Args:
            render: returns further values of a hello.
            call: frames of a call that the agent reads together with the first hello.

        Raises:
            AgentUnavailable: the agent speaks another version of the protocol.
        """
        welcome = self._welcome
        if welcome is None:
            raise RuntimeError("greet comes after begin")
        delay = _FIRST_RETRY_S if call is None else _AWAKE_RETRY_S
        self._send(render(), padded=False)
        if call is not None:
            self._frames.put_first(call)
        while not await self._comes_within(delay, welcome):
            if self._again.is_set():
                self._send(render(), padded=False)
            elif self._frames.is_taken():
                self._send(render(), padded=True)
                delay = min(2 * delay, _LAST_RETRY_S)
        return welcome.result()

    async def _comes_within(self, delay_s: float, welcome: asyncio.Future[Welcome]) -> bool:
        """Wait for the answer, a repetition, or the end of the delay. Return whether the answer came."""
        self._again.clear()
        again = self._loop.create_task(self._again.wait())
        try:
            await asyncio.wait((welcome, again), timeout=delay_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            again.cancel()
        return welcome.done()

    def _send(self, further: Mapping[str, object], *, padded: bool) -> None:
        payload = wire.encode({"token": self._token, "version": wire.VERSION, **further})
        frame = wire.SYNC + wire.pack(wire.HELLO, self.nonce, 0, payload)
        self._frames.put_first(wire.PADDING + frame if padded else frame)

    def read_answer(self, nonce: int, payload: memoryview) -> Welcome | None:
        """Take a welcome; None: it says nothing new, or ends the handshake with an error.

        Raises:
            ProtocolError: no hello asked for this answer, or a value is invalid.
        """
        values = wire.decode_map(payload)
        if nonce != self.nonce or values.get("token") != self._token:
            raise ProtocolError("an answer to a hello that was not sent")
        if self._welcome is None or self._welcome.done():
            return None  # more than one hello was sent
        if values.get("version") != wire.VERSION:
            self._welcome.set_exception(self._other_version(values.get("version")))
            return None
        return _parse(values)

    def finish(self, welcome: Welcome) -> None:
        """Let `greet` return."""
        if self._welcome is not None:
            self._welcome.set_result(welcome)

    def _other_version(self, version: object) -> AgentUnavailable:
        text = f"the agent of machine {self._machine!r} speaks protocol version {clean_name(str(version))}"
        return AgentUnavailable(
            f"{text}, not {wire.VERSION}",
            hint="build its image again: bough image build --rebuild",
            machine=self._machine,
        )


def _parse(values: dict[str, object]) -> Welcome:
    window = values.get("window")
    if not isinstance(window, int) or not 0 < window <= _MAX_INPUT_WINDOW:
        raise ProtocolError("an invalid window")
    return Welcome(
        AgentFacts.from_guest(values),
        input_window=window,
        long_commands=values.get("long_commands") is True,
        resumes=values.get("resumes") is True,
        sessions=values.get("sessions"),
    )
