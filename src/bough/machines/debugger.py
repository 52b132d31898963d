"""QEMU's debugger server, started only while it is needed."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bough.qemu.qmp import Qmp
from bough.tasks import finish


@asynccontextmanager
async def debugger(qmp: Qmp) -> AsyncIterator[socket.socket]:
    """Yield a connection to the debugger server, for qemu/gdb.py. The vCPUs must be paused, and stay paused.
    Raises BoughError.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            await qmp.send_fd("debugger", theirs.fileno())
        address = {"type": "fd", "data": {"str": "debugger"}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        await qmp.execute("chardev-add", id="debugger", backend=backend)
        await qmp.monitor("gdbserver chardev:debugger")
        try:
            yield ours
        finally:
            await finish(qmp.monitor("gdbserver none"))  # also removes the chardev
