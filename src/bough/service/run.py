"""The process: one per BOUGH_HOME, by a lock; its socket is bound before the machines are taken up,
so that a client that comes early waits instead of failing."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from bough.errors import BoughError, Conflict
from bough.hypervisor import Hypervisor
from bough.paths import Home
from bough.service.app import create_app

log = logging.getLogger("bough.service")

#: How long requests may take to end when the service is told to.
SHUTDOWN_GRACE_S = 3
LOG_BYTES = 4 * 1024 * 1024


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bough.service", description=__doc__)
    parser.add_argument("--home", help="BOUGH_HOME to serve")
    options = parser.parse_args(arguments)
    home = Home.at(options.home) if options.home else Home.from_environment()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(serve(home))
    except BoughError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(1)


async def serve(home: Home) -> None:
    """Until SIGTERM, SIGINT or POST /v1/shutdown. Machines go on.

    Raises:
        Conflict: another service serves this BOUGH_HOME.
    """
    home.create()
    lock = _take_lock(home)
    try:
        hypervisor = Hypervisor(home)
        listener = _bind(home.api_socket)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(hypervisor, lambda: setattr(server, "should_exit", True)),
                lifespan="off",
                ws="wsproto",
                ws_max_size=1024 * 1024,
                # A client whose standard output is blocked cannot answer a ping behind the data.
                ws_ping_interval=None,
                timeout_keep_alive=75,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
            )
        )
        await hypervisor.open()
        log.info("serving %s on %s", home.root, home.api_socket)
        try:
            await server.serve(sockets=[listener])
        finally:
            home.api_socket.unlink(missing_ok=True)
            await hypervisor.close()
    finally:
        os.close(lock)


def _take_lock(home: Home) -> int:
    # The file is never removed: a second service must lock the same inode.
    descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise Conflict(
            f"another service (pid {owner or 'unknown'}) serves {home.root} already",
            hint="stop it first, or use another BOUGH_HOME",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _bind(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # of a service that was killed; the lock says that none lives
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode is right from the first moment: the socket is bound with this umask.
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(512)
    listener.setblocking(False)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return listener
