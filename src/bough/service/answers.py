"""Render answers: results, errors in the form of the error's class, and the progress of long calls."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from bough.errors import BoughError, InvalidInput, NoSpace, NotFound
from bough.progress import Progress, Report
from bough.storage import NO_SPACE_HINT
from bough.tasks import end_tasks

NDJSON = "application/x-ndjson"
log = logging.getLogger("bough.service")

Work = Callable[[Report], Awaitable[Any]]


def as_bough_error(error: BaseException) -> BoughError:
    """Turn any exception into one that a user may see.

    An unexpected exception is logged with its traceback.
    """
    if isinstance(error, BoughError):
        return error
    if isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        return as_bough_error(error.exceptions[0])
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return InvalidInput(f"{place or 'the request'}: {first['msg']}", problems=len(error.errors()))
    if isinstance(error, HTTPException):
        kind = NotFound if error.status_code == 404 else InvalidInput
        return kind(str(error.detail))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        # Any step may fail with this error. Incomplete steps are undone.
        where = f" for {error.filename}" if error.filename else ""
        return NoSpace(f"no space left on the host{where}", hint=NO_SPACE_HINT)
    log.error("a request failed with an unexpected error", exc_info=error)
    return BoughError(
        f"internal error of bough: {type(error).__name__}: {error}",
        hint="see service.log in BOUGH_HOME for details",
    )


def error_response(error: BaseException) -> JSONResponse:
    told = as_bough_error(error)
    status = error.status_code if isinstance(error, HTTPException) else told.http_status
    return JSONResponse({"error": told.to_dict()}, status_code=status)


async def answer_exception(_: Request, error: Exception) -> Response:
    return error_response(error)


async def long_call(request: Request, work: Work) -> Response:
    """Return the result of `work`. If the client accepts NDJSON, first send the progress, one line for each
    report.

    The work is cancelled when the client disconnects. Uninterruptible work shields itself.
    """
    if NDJSON in request.headers.get("accept", ""):
        return StreamingResponse(_stream(work), media_type=NDJSON)
    task = asyncio.ensure_future(work(lambda _: None))
    gone = asyncio.create_task(_wait_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        return JSONResponse(await task)
    finally:
        gone.cancel()


async def _wait_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(work: Work) -> AsyncIterator[bytes]:
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1000)

    def report(progress: Progress) -> None:
        if not queue.full():
            queue.put_nowait({"progress": progress.__dict__})

    async def run() -> None:
        try:
            await queue.put({"result": await work(report)})
        except Exception as error:
            await queue.put({"error": as_bough_error(error).to_dict()})

    task = asyncio.create_task(run())
    try:
        while True:
            line = await queue.get()
            yield json.dumps(line).encode() + b"\n"
            if "progress" not in line:
                return
    finally:
        await end_tasks(task)
