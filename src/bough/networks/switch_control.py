"""The service's end of a switch's control socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from bough.errors import Conflict, SwitchLost
from bough.home import SocketAddress
from bough.networks.switch.control import PROTOCOL

_ANSWER_S = 10.0
_MOST_LINE_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 16


class SwitchControl:
    """A connection to a switch. Requests run one at a time, in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()
        self._closed = asyncio.Event()
        self._lines: asyncio.Queue[bytes] = asyncio.Queue(1)
        self._reading = asyncio.create_task(self._read(), name="read from a switch")

    @classmethod
    async def connect(cls, path: Path) -> SwitchControl:
        """Connect to the switch at `path`.

        Raises:
            SwitchLost: no switch of this protocol answers there.
        """
        try:
            with SocketAddress(path) as address:
                reader, writer = await asyncio.open_unix_connection(address, limit=_MOST_LINE_BYTES)
        except OSError as error:
            raise SwitchLost(f"no switch answers at {path}: {error.strerror or error}") from error
        control = cls(reader, writer)
        try:
            hello = await control.ask("hello")
        except BaseException:
            await control.close()
            raise
        if hello.get("protocol") != PROTOCOL:
            await control.close()
            raise SwitchLost("the switch is of another version of bough")
        return control

    async def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Return the switch's answer.

        Raises:
            Conflict: the switch refused the request.
            SwitchLost
        """
        async with self._turn:
            if self._closed.is_set():
                raise SwitchLost("the switch has ended")
            self._writer.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            try:
                async with asyncio.timeout(_ANSWER_S):
                    answer = json.loads(await self._lines.get())
            except BaseException as error:
                # The answer may still come: it must not be taken for another request's.
                self._writer.close()
                if isinstance(error, TimeoutError):
                    raise SwitchLost(f"the switch did not answer within {_ANSWER_S:g} s") from error
                raise
        if "error" in answer:
            raise Conflict(f"the switch refused a request: {answer['error']}")
        if "ok" not in answer:
            raise SwitchLost("the switch has ended")
        return dict(answer["ok"])

    async def wait_closed(self) -> None:
        """Wait until the switch has ended, or the connection is closed. Safe to cancel."""
        await self._closed.wait()

    async def close(self) -> None:
        """Let go of the switch, which goes on."""
        self._reading.cancel()
        self._writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._reading
        self._closed.set()

    async def _read(self) -> None:
        try:
            while (line := await self._reader.readline()).endswith(b"\n"):
                await self._lines.put(line)
        except (OSError, ValueError):
            pass
        finally:
            self._closed.set()
            with contextlib.suppress(asyncio.QueueFull):
                self._lines.put_nowait(b"{}")  # wakes the request that waits


def hand_over(path: Path, port: str, pid: int, end: socket.socket) -> None:
    """Connect an uplink process to a port of the switch at `path`. Blocks.

    Args:
        end: our end of the stream of frames to the process; the switch gets a copy.

    Raises:
        SwitchLost: no switch answers. Conflict: the switch refused the request.
    """
    request = {"do": "connect", "port": port, "pid": pid}
    try:
        with SocketAddress(path) as address, socket.socket(socket.AF_UNIX) as control:
            control.settimeout(_ANSWER_S)
            control.connect(address)
            socket.send_fds(control, [json.dumps(request).encode() + b"\n"], [end.fileno()])
            with control.makefile("rb") as answers:
                answer = json.loads(answers.readline(_CHUNK_BYTES))
    except (OSError, ValueError) as error:
        raise SwitchLost(f"no switch answers at {path}: {error}") from error
    if "error" in answer:
        raise Conflict(f"the switch refused a request: {answer['error']}")


async def read_capture(path: Path, ports: Sequence[str]) -> AsyncIterator[bytes]:
    """Return the frames of a network from now on, in the form of pcapng, until the switch ends.

    Args:
        ports: only frames from these ports; none: all frames.

    Raises:
        SwitchLost: no switch answers at `path`.
    """
    try:
        with SocketAddress(path) as address:
            reader, writer = await asyncio.open_unix_connection(address, limit=_MOST_LINE_BYTES)
        writer.write(json.dumps({"do": "capture", "ports": list(ports)}).encode() + b"\n")
        answer = await reader.readline()
    except OSError as error:
        raise SwitchLost(f"no switch answers at {path}: {error.strerror or error}") from error
    if b'"ok"' not in answer:
        writer.close()
        raise SwitchLost("the switch refused the capture")
    return _chunks(reader, writer)


async def _chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[bytes]:
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                yield data
    finally:
        writer.close()
