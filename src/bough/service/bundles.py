"""/v1/export and /v1/import: a machine as a stream of bytes over WebSocket, with progress messages; and as an
artifact of a registry.

Binary messages are the bytes. Text messages of the service are {"progress": ...}, and at the end {"result":
...} or {"error": ...}. An importing client ends the stream with an empty binary message.
"""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from bough.contract.bundles import ExportMachine, ImportMachine, PullMachine, PushMachine
from bough.errors import InvalidInput, NotFound
from bough.hypervisor import Hypervisor
from bough.hypervisor.description import describe
from bough.machines.machine import Machine
from bough.progress import Progress, Report
from bough.project_bundle import MAGIC, Peeked, read_magic
from bough.service.answers import as_bough_error
from bough.service.routes import Routes

_MESSAGE_BYTES = 256 * 1024
_MESSAGES_HELD = 32
#: Further progress is dropped while the client does not read.
_STEPS_HELD = 1000


def add_routes(routes: Routes) -> None:
    routes.stream(ExportMachine, export_machine)
    routes.stream(ImportMachine, import_machine)
    routes.long(PushMachine, push_machine)
    routes.long(PullMachine, pull_machine)


async def export_machine(hypervisor: Hypervisor, asked: ExportMachine, socket: WebSocket) -> None:
    async def send(pieces: Iterator[bytes]) -> int:
        count = 0
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            for at in range(0, len(piece), _MESSAGE_BYTES):
                await socket.send_bytes(piece[at : at + _MESSAGE_BYTES])
            count += len(piece)
        return count

    async def work(report: Report) -> dict[str, int]:
        if _is_project(hypervisor, asked.source):
            _check_project(asked)
            exporting = hypervisor.project_bundles.export(
                asked.source, thin=asked.without_image, report=report
            )
            async with aclosing(exporting) as members:
                return {"bytes": sum([await send(pieces) async for pieces in members])}
        async with hypervisor.bundles.export(
            asked.source,
            format=asked.format,
            disks_only=asked.disks_only,
            thin=asked.without_image,
            report=report,
        ) as pieces:
            return {"bytes": await send(pieces)}

    await _answer(socket, work)


def _is_project(hypervisor: Hypervisor, reference: str) -> bool:
    """Return whether the name means a project. A machine or a snapshot of that name comes first."""
    try:
        hypervisor.machines.find_source(reference)
    except NotFound:
        return hypervisor.project_bundles.knows(reference)
    return False


def _check_project(asked: ExportMachine) -> None:
    """Raise InvalidInput if a project cannot be exported so."""
    if asked.format != "bough" or asked.disks_only:
        raise InvalidInput(
            "a project is exported as a bundle, with the memory of its machines",
            hint=f"bough export {asked.source} {asked.source}.bough",
        )


async def import_machine(hypervisor: Hypervisor, asked: ImportMachine, socket: WebSocket) -> None:
    async def work(report: Report) -> dict[str, Any]:
        inflow = _Inflow()
        feeding = asyncio.create_task(_feed(socket, inflow))
        try:
            return await _import(hypervisor, asked, inflow, report)
        finally:
            feeding.cancel()
            inflow.close()

    await _answer(socket, work)


async def _import(
    hypervisor: Hypervisor, asked: ImportMachine, inflow: _Inflow, report: Report
) -> dict[str, Any]:
    magic = await asyncio.to_thread(read_magic, inflow)
    if magic == MAGIC:
        return await _import_project(hypervisor, asked, inflow, report)
    machine = await hypervisor.bundles.import_bundle(
        Peeked(magic, inflow),
        name=asked.name,
        identity=asked.identity,
        cold=asked.cold,
        force=asked.force,
        accelerator=asked.accelerator,
        report=report,
    )
    return await _described(machine, asked, report)


async def _import_project(
    hypervisor: Hypervisor, asked: ImportMachine, inflow: _Inflow, report: Report
) -> dict[str, Any]:
    if asked.identity == "new":
        raise InvalidInput(
            "the machines of a project keep their identities, because they know each other",
            hint="import the bundle without --identity new",
        )
    record = await hypervisor.project_bundles.import_bundle(
        inflow,
        name=asked.name,
        cold=asked.cold,
        force=asked.force,
        accelerator=asked.accelerator,
        timeout_s=asked.timeout_s,
        report=report,
    )
    return hypervisor.projects.describe(record)


async def push_machine(hypervisor: Hypervisor, asked: PushMachine, report: Report) -> dict[str, Any]:
    if _is_project(hypervisor, asked.source):
        raise InvalidInput(
            f"{asked.source} is a project, and a registry takes one machine at a time",
            hint=f"export the project to a file: bough export {asked.source} {asked.source}.bough",
        )
    return await hypervisor.artifacts.push_machine(
        asked.source, asked.target, disks_only=asked.disks_only, report=report
    )


async def _described(machine: Machine, asked: ImportMachine | PullMachine, report: Report) -> dict[str, Any]:
    """Describe an imported machine, once it answers if the client waits for that."""
    if asked.wait and machine.state == "running":
        await machine.wait_ready(timeout_s=asked.timeout_s, report=report)
    return describe(machine)


async def pull_machine(hypervisor: Hypervisor, asked: PullMachine, report: Report) -> dict[str, Any]:
    machine = await hypervisor.artifacts.pull_machine(
        asked.origin,
        name=asked.name,
        identity=asked.identity,
        cold=asked.cold,
        force=asked.force,
        accelerator=asked.accelerator,
        report=report,
    )
    return await _described(machine, asked, report)


async def _feed(socket: WebSocket, inflow: _Inflow) -> None:
    while True:
        message = await socket.receive()
        data = message.get("bytes") if message["type"] != "websocket.disconnect" else None
        await asyncio.to_thread(inflow.put, data or b"")
        if not data:
            return


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
        """Drop further data, and end the stream for a waiting reader."""
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


async def _answer(socket: WebSocket, work: Callable[[Report], Awaitable[Any]]) -> None:
    await socket.accept()
    told: asyncio.Queue[Progress | None] = asyncio.Queue()

    def report(progress: Progress) -> None:
        if told.qsize() < _STEPS_HELD:
            told.put_nowait(progress)

    async def tell() -> None:
        while (progress := await told.get()) is not None:
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
        told.put_nowait(None)
        await telling  # the last notices go before the result
        await socket.send_text(json.dumps(message))
        await socket.close()
    except (WebSocketDisconnect, RuntimeError, OSError):
        return
    finally:
        telling.cancel()
