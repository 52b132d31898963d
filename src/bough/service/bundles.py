"""/v1/export and /v1/import: a machine as a stream of bytes over WebSocket, with progress messages.

Binary messages are the bytes. Text messages of the service are {"progress": ...}, and the last one {"result":
...} or {"error": ...}. A client that imports ends its stream with an empty binary message.
"""

from __future__ import annotations

import asyncio
import json
import queue
from typing import Any, Literal

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from bough.hypervisor import Hypervisor
from bough.hypervisor.description import describe
from bough.progress import Progress, Report
from bough.service.answers import as_bough_error
from bough.tasks import end_tasks

_MESSAGE_BYTES = 256 * 1024
_MESSAGES_HELD = 32


def routes(hypervisor: Hypervisor) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.websocket("/export")
    async def export(
        socket: WebSocket,
        source: str,
        format: Literal["bough", "qcow2", "ova"] = "bough",
        disks_only: bool = False,
        without_image: bool = False,
    ) -> None:
        async def work(report: Report) -> Any:
            async with hypervisor.bundles.export(
                source, format=format, disks_only=disks_only, thin=without_image, report=report
            ) as pieces:
                count = 0
                while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                    for at in range(0, len(piece), _MESSAGE_BYTES):
                        await socket.send_bytes(piece[at : at + _MESSAGE_BYTES])
                    count += len(piece)
                return {"bytes": count}

        await _answer(socket, work)

    @router.websocket("/import")
    async def import_bundle(
        socket: WebSocket,
        name: str | None = None,
        identity: Literal["new", "keep"] = "keep",
        cold: bool = False,
        force: bool = False,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        inflow = _Inflow()

        async def feed() -> None:
            while True:
                message = await socket.receive()
                data = message.get("bytes") if message["type"] != "websocket.disconnect" else None
                await asyncio.to_thread(inflow.put, data or b"")
                if not data:
                    return

        async def work(report: Report) -> Any:
            feeding = asyncio.create_task(feed())
            try:
                machine = await hypervisor.bundles.import_bundle(
                    inflow, name=name, identity=identity, cold=cold, force=force, report=report
                )
                if wait and machine.state == "running":
                    await machine.wait_ready(timeout_s=timeout_s, report=report)
                return describe(machine)
            finally:
                feeding.cancel()
                inflow.close()

        await _answer(socket, work)

    return router


class _Inflow:
    """The client's data, for a thread to read. The size is bounded."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes] = queue.Queue(_MESSAGES_HELD)
        self._rest = b""
        self._ended = self._closed = False

    def put(self, data: bytes) -> None:
        while not self._closed:
            try:
                self._queue.put(data, timeout=0.5)
                return
            except queue.Full:
                continue

    def close(self) -> None:
        """Drop further data, and end the stream for a reader that waits."""
        self._closed = True

    def read(self, size: int, /) -> bytes:
        while not self._rest and not self._ended:
            try:
                self._rest = self._queue.get(timeout=0.5)
            except queue.Empty:
                self._ended = self._closed
                continue
            self._ended = not self._rest
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


async def _answer(socket: WebSocket, work: Any) -> None:
    await socket.accept()
    told: asyncio.Queue[Progress] = asyncio.Queue(1000)

    def report(progress: Progress) -> None:
        if not told.full():
            told.put_nowait(progress)

    async def tell() -> None:
        while True:
            progress = await told.get()
            await socket.send_text(json.dumps({"progress": progress.__dict__}))

    telling = asyncio.create_task(tell())
    try:
        try:
            message = {"result": await work(report)}
        except (WebSocketDisconnect, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "close" not in str(error).lower():
                raise
            return  # the client disconnected
        except Exception as error:
            message = {"error": as_bough_error(error).to_dict()}
        await end_tasks(telling)
        await socket.send_text(json.dumps(message))
        await socket.close()
    except (WebSocketDisconnect, RuntimeError, OSError):
        return
    finally:
        telling.cancel()
