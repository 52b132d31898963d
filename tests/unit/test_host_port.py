"""Listening TCP ports of this host."""

from __future__ import annotations

import asyncio
import socket

from bough.machines.host_port import HostPort
from bough.service.tcp import bind_tcp


def _delays(link: socket.socket) -> bool:
    """Return whether the kernel holds small segments back until earlier segments are acknowledged."""
    return link.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0


async def test_connections_to_a_forwarded_port_send_small_segments_at_once() -> None:
    """asyncio does that only for some sockets. The 40 ms of a client's late acknowledgement would remain."""
    delays: asyncio.Queue[bool] = asyncio.Queue()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        delays.put_nowait(_delays(writer.get_extra_info("socket")))
        writer.close()

    port = HostPort("127.0.0.1", 0)
    for _ in range(2):  # also when the port was shut and opened again
        await port.open(accept)
        _, writer = await asyncio.open_connection("127.0.0.1", port.number)
        assert await asyncio.wait_for(delays.get(), 10) is False
        writer.close()
        port.shut()
    port.close()


def test_connections_to_the_api_send_small_segments_at_once() -> None:
    with bind_tcp("127.0.0.1:0") as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert not _delays(accepted)
