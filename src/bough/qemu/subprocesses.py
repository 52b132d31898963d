"""End a program that was started through asyncio, whatever it is in the middle of."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from bough.qemu.pid import Pid

_ROUND_S = 0.02


async def end_subprocess(process: asyncio.subprocess.Process) -> None:
    """Kill it and what it wraps; it has ended then, and its pipes are closed, with what was unread in them.

    Args:
        process: started with `start_new_session`, so that it and its helpers are a group.
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
    if (top := Pid.of(number)) is not None:
        top.innermost().kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(number, signal.SIGKILL)
