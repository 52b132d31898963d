"""Start and end programs through asyncio, safely at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

from bough.qemu.pid import Pid

_ROUND_S = 0.02


async def start_subprocess(*argv: str, **options: Any) -> asyncio.subprocess.Process:
    """Start a program in a session of its own (`asyncio.create_subprocess_exec`). A cancelled call leaves
    nothing.

    asyncio's own call, if cancelled, waits for the pipes of the killed program, perhaps for ever (see below).
    """
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*argv, start_new_session=True, **options))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.shield(_end_once_started(starting))  # also after a second cancellation
        raise


async def _end_once_started(starting: asyncio.Future[asyncio.subprocess.Process]) -> None:
    with contextlib.suppress(OSError):  # the program was not started
        await end_subprocess(await starting)


async def end_subprocess(process: asyncio.subprocess.Process) -> None:
    """Kill a program and the children. Afterwards all have ended, and the pipes are closed, unread data
    included.

    Args:
        process: from `start_subprocess`, so that program and helpers form a group.
    """
    while process.returncode is None:
        _kill(process.pid)
        # Until Python 3.13 `wait` also waits for the pipes: for ever if a pipe is full and unread, or if
        # another process holds its other end. This loop asks for the status instead.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ROUND_S):
                await process.wait()
    process._transport.close()  # type: ignore[attr-defined]  # there is no public way


def _kill(number: int) -> None:
    # The innermost first: bubblewrap leaves processes in another session alive, and ends with these
    # processes. A process of another user, in a namespace made by bough, ends with the namespace.
    with contextlib.suppress(PermissionError):
        if (top := Pid.of(number)) is not None:
            top.innermost().kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(number, signal.SIGKILL)
