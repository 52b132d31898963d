"""Connects a tunnel into a guest with a stream of the host."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from bough.errors import BoughError
from bough.guest.session import Tunnel


async def relay(
    tunnel: Tunnel,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    was_read: Callable[[], None] = lambda: None,
) -> None:
    """Copy both directions until both have ended, or one breaks. Half-closed connections stay half-closed.

    Args:
        was_read: called after each read of `reader`.
    """

    async def outward() -> None:
        while data := await reader.read(64 * 1024):
            was_read()
            try:
                await tunnel.write(data)
            except BrokenPipeError:
                return  # the guest reads no more, and may still send
        await tunnel.write_eof()

    async def inward() -> None:
        while data := await tunnel.read():
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(outward())
            group.create_task(inward())
        await tunnel.close()
    except* (BoughError, OSError):
        pass
    finally:
        await tunnel.abort()
