"""A tunnel into a guest, joined to a stream of the host."""

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
    """Both directions until both have ended, or one breaks; half-closed connections stay half open.

    Args:
        was_read: called after each read of `reader`.
    """

    async def outward() -> None:
        while data := await reader.read(64 * 1024):
            was_read()
            try:
                await tunnel.write(data)
            except BrokenPipeError:
                return  # the guest takes no more, and may still have something to say
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
