"""Start a program through asyncio, and end it, whatever it or we are in the middle of."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

from bough.qemu.pid import Pid

_ROUND_S = 0.02


async def start_subprocess(*argv: str, **options: Any) -> asyncio.subprocess.Process:
    """`asyncio.create_subprocess_exec` in a session of its own. Cancelled, nothing of it is left.

    Cancelled itself, that one waits for the pipes of what it kills, which may be for ever (see below).
    """
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*argv, start_new_session=True, **options))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.shield(_end_once_started(starting))  # also if we are cancelled again
        raise


async def _end_once_started(starting: asyncio.Future[asyncio.subprocess.Process]) -> None:
    with contextlib.suppress(OSError):  # it was not started
        await end_subprocess(await starting)


async def end_subprocess(process: asyncio.subprocess.Process) -> None:
    """Kill it and what it wraps; it has ended then, and its pipes are closed, with what was unread in them.

    Args:
        process: of `start_subprocess`, so that it and its helpers are a group.
    """
    while process.returncode is None:
        _kill(process.pid)
        # `wait` also waits for the pipes (until Python 3.13): for ever, where one is full and nobody reads
        # it any more, or somebody else has its other end. The loop asks for the status itself instead.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ROUND_S):
                await process.wait()
    process._transport.close()  # type: ignore[attr-defined]  # there is no public way


def _kill(number: int) -> None:
    # The innermost first: bubblewrap leaves alive what is in a session of its own, and ends when that does.
    # It may be another user's, one of a namespace that we have made: it goes with the namespace.
    with contextlib.suppress(PermissionError):
        if (top := Pid.of(number)) is not None:
            top.innermost().kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(number, signal.SIGKILL)
