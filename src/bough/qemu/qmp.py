"""QMP, QEMU's control protocol: a thin typed layer over the library qemu.qmp.

The layer adds bough's errors, bounds on all input from a hostile QEMU, and the difference between "closed
here" and "broken".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.events import EventListener
from qemu.qmp.message import Message
from qemu.qmp.qmp_client import GreetingError, NegotiationError

from bough.errors import DeadlineExceeded, QmpLost, QmpRefused, WrongState
from bough.home import SocketAddress

#: The longest answer, query-qmp-schema, has about 200 KiB.
MAX_MESSAGE_BYTES = 2 * 1024 * 1024
#: Events waiting for a reader; QEMU sends frequent ones once a second at most.
MAX_EVENTS = 1000
#: Bound on lists of devices, jobs and block nodes.
MAX_LISTED = 1000
_CLOSE_TIMEOUT_S = 2.0
_GREETING_PAUSE_S = 0.01

# The caller gets every failure as an exception; the library's log would repeat it.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class _NotGreeted(Exception):
    """QEMU sent no greeting, or no valid message. Raised and caught in this file only."""


def _is_early_event(error: Exception) -> bool:
    return isinstance(error, GreetingError) or (
        isinstance(error, NegotiationError) and isinstance(error.exc, AssertionError)
    )


class Qmp:
    """A QMP connection. QEMU serves one client at a time: a second client waits until the first has
    disconnected.
    """

    def __init__(self, client: QMPClient, listener: _BoundedListener) -> None:
        self._client = client
        self._listener = listener
        self._closing = asyncio.Event()
        self._ended = asyncio.Event()
        self._reason = "QEMU closed the connection"
        self._watcher = asyncio.create_task(self._watch(), name="qmp watcher")

    @classmethod
    async def connect(cls, path: Path, *, timeout_s: float = 60.0) -> Qmp:
        """Connect and negotiate. Safe to cancel.

        Raises:
            QmpLost: no listener at `path`, a peer that does not speak QMP, or no greeting in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                # A starting QEMU may send an event before its greeting: before the first client, the monitor
                # treats "no capabilities requested yet" as "negotiated" (monitor_qapi_event_emit()). The
                # event may also come between the
                # client's first command and the answer, and the library takes the event for the answer. A
                # later connection gets its greeting.
                while True:
                    with contextlib.suppress(_NotGreeted):
                        return await cls._connect(path)
                    await asyncio.sleep(_GREETING_PAUSE_S)
        except TimeoutError:
            raise QmpLost(f"QEMU did not greet within {timeout_s:g} s", hint="see its log") from None

    @classmethod
    async def _connect(cls, path: Path) -> Qmp:
        client = QMPClient()
        # An attribute, because versions of the library differ in its parameter.
        client.readbuflen = MAX_MESSAGE_BYTES
        listener = _BoundedListener()
        # The library's default listener keeps all events for ever.
        client.events.event_filter = lambda _: False
        client.register_listener(listener)
        try:
            with SocketAddress(path) as address:
                await client.connect(address)
        except (QMPError, AssertionError) as error:
            # The library asserts that a new connection is still open.
            with contextlib.suppress(Exception):
                await client.disconnect()
            if isinstance(error, ConnectError) and _is_early_event(error.exc):
                raise _NotGreeted from error
            raise QmpLost(f"no QMP connection at {path}: {error}") from error
        except OSError as error:
            raise QmpLost(f"no QMP connection at {path}: {error.strerror}") from error
        return cls(client, listener)

    async def execute(self, command: str, /, *, timeout_s: float = 60.0, **arguments: Any) -> Any:
        """Run a command and return QEMU's answer: untrusted data.

        Pass arguments with a "-" in their name as `**{"node-name": "disk0"}`.

        Raises:
            QmpRefused: QEMU answered with an error; the message has its words.
            QmpLost: the connection ended first.
            DeadlineExceeded: no answer; the command may still be executed.
            WrongState: this end has been closed.
        """
        self._check_open()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.execute(command, arguments or None)
        except TimeoutError:
            raise DeadlineExceeded(f"QEMU did not answer {command} within {timeout_s:g} s") from None
        except ExecuteError as error:
            raise QmpRefused(str(error)[:2000], command=command, error_class=error.error_class) from error
        except ExecInterruptedError as error:
            await self._ended.wait()
            raise self._lost(command) from error
        except QMPError as error:
            self._check_open()
            raise self._lost(command) from error

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version in QEMU's greeting; (0, 0) if unreadable."""
        greeting = self._client.greeting
        told = greeting.QMP.version.get("qemu") if greeting is not None else None
        major, minor = (told.get(part) for part in ("major", "minor")) if isinstance(told, dict) else (0, 0)
        return (major, minor) if isinstance(major, int) and isinstance(minor, int) else (0, 0)

    async def monitor(self, line: str, *, vcpu: int | None = None) -> str:
        """Return the answer of QEMU's human monitor, for tasks without a QMP command. Raises as `execute`.

        Args:
            vcpu: the vCPU whose registers and tables the line refers to; default: the first.
        """
        arguments: dict[str, Any] = {"command-line": line}
        if vcpu is not None:
            arguments["cpu-index"] = vcpu
        return str(await self.execute("human-monitor-command", **arguments))

    async def query(self, command: str, /, **arguments: Any) -> dict[str, Any]:
        """Run a command that returns an object. Raises as `execute`, and QmpLost for another answer."""
        answer = await self.execute(command, **arguments)
        if not isinstance(answer, dict):
            raise QmpLost(f"QEMU's answer to {command} is malformed")
        return answer

    async def query_list(self, command: str, /, **arguments: Any) -> list[dict[str, Any]]:
        """Run a command with a list as result; return the list's objects, MAX_LISTED at most."""
        answer = await self.execute(command, **arguments)
        if not isinstance(answer, list):
            raise QmpLost(f"QEMU's answer to {command} is malformed")
        return [item for item in answer[:MAX_LISTED] if isinstance(item, dict)]

    async def send_fd(self, name: str, descriptor: int) -> None:
        """Pass QEMU an open file, for use as "fd:<name>" (migration) or by netdev and chardev.

        Raises as `execute`; `descriptor` stays open here.
        """
        self._check_open()
        # The descriptor travels with a space before the command; JSON ignores the space.
        self._client.send_fd_scm(descriptor)
        await self.execute("getfd", fdname=name)

    async def add_fd(self, number: int, descriptor: int) -> None:
        """Pass QEMU an open file, for use as the file /dev/fdset/<number>; see `send_fd`.

        QEMU uses the file for such a name only if its open flags match.
        """
        self._check_open()
        self._client.send_fd_scm(descriptor)
        arguments: dict[str, Any] = {"fdset-id": number}
        await self.execute("add-fd", **arguments)

    async def remove_fd(self, number: int) -> None:
        arguments: dict[str, Any] = {"fdset-id": number}
        await self.execute("remove-fd", **arguments)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield events in order, each to a single caller; end when the connection is closed or lost.

        After the end, `lost_because` is None if the connection was closed here. Events are untrusted.
        """
        while True:
            event = await self._next_event()
            if event is None:
                return
            yield dict(event)

    @property
    def lost_because(self) -> str | None:
        """Cause of a broken connection; None while the connection is open, and after `close`."""
        return self._reason if self._ended.is_set() and not self._closing.is_set() else None

    async def close(self) -> None:
        """Close the connection; QEMU runs on. Idempotent; takes 2 s at most."""
        self._closing.set()
        await asyncio.shield(self._watcher)

    async def _next_event(self) -> Message | None:
        if not self._listener.empty() or self._ended.is_set():
            return None if self._listener.empty() else await self._listener.get()
        get = asyncio.create_task(self._listener.get())
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({get, ended}, return_when=asyncio.FIRST_COMPLETED)
            return get.result() if get.done() else None
        finally:
            get.cancel()
            ended.cancel()

    async def _watch(self) -> None:
        """Wait for the end and disconnect: the library allows one disconnect."""
        closing = asyncio.create_task(self._closing.wait())
        try:
            while not closing.done():
                changed = asyncio.create_task(self._client.runstate_changed())
                await asyncio.sleep(0)  # registered here: no change is missed
                if self._client.runstate is Runstate.RUNNING:
                    await asyncio.wait({closing, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if self._client.runstate is not Runstate.RUNNING:
                    break
        finally:
            closing.cancel()
            await self._disconnect()
            self._ended.set()

    async def _disconnect(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._client.disconnect()
        except (EOFError, ConnectionError):
            pass
        # The library re-raises the error that ended the reader: ValueError for a message of too many bytes,
        # RecursionError for deep nesting.
        except Exception as error:
            self._reason = f"{type(error).__name__}: {str(error)[:200]}"

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise WrongState("the QMP connection has been closed")
        if self._ended.is_set():
            raise self._lost(None)

    def _lost(self, command: str | None) -> QmpLost:
        doing = f" during {command}" if command else ""
        return QmpLost(f"the connection to QEMU was lost{doing}: {self._reason}", command=command)


class _BoundedListener(EventListener):
    """A listener that keeps MAX_EVENTS events at most, and no history."""

    async def put(self, event: Message) -> None:
        if self._queue.qsize() >= MAX_EVENTS:
            raise ValueError(f"more than {MAX_EVENTS} unread events")
        if not isinstance(event["event"], str) or not isinstance(event.get("data", {}), dict):
            raise ValueError("a malformed event")
        await self._queue.put(event)
