"""Run the service of a BOUGH_HOME.

A lock ensures that only one service runs. The service binds the socket before it adopts the machines. So an
early client waits instead of failing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn

from bough.errors import BoughError, Conflict
from bough.home import ANOTHER_SERVES
from bough.hypervisor import Hypervisor
from bough.paths import Home
from bough.service.api_socket import ApiSocket, replace_runtime_link
from bough.service.app import create_app
from bough.service.disconnect import StreamProtocol
from bough.service.log import bound_log
from bough.service.tcp import Gate, bind_tcp, is_loopback, read_token, url_of
from bough.serving import ServiceLock

log = logging.getLogger("bough.service")

#: How long open requests may take after the service was told to end.
SHUTDOWN_GRACE_S = 3
#: How long the release of the machines may take afterwards.
CLOSE_TIMEOUT_S = 20
#: How often the service checks the file of the API's socket; uvicorn ticks ten times a second.
_LOOK_EVERY_TICKS = 10


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bough.service", description=__doc__)
    parser.add_argument("--home", help="BOUGH_HOME to serve")
    parser.add_argument(
        "--listen", metavar="ADDRESS:PORT", help="also serve the API over TCP; clients need the token"
    )
    options = parser.parse_args(arguments)
    # Set the umask: the commands that start the service have different masks. The code sets the mode of each
    # file.
    os.umask(0o022)
    home = Home.at(options.home) if options.home else Home.from_environment()
    bound_log(home.service_log)
    try:
        asyncio.run(serve(home, options.listen))
    except BoughError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(ANOTHER_SERVES if isinstance(error, Conflict) else 1)


async def serve(home: Home, listen: str | None = None) -> None:
    """Serve until SIGTERM, SIGINT or POST /v1/shutdown. Machines continue afterwards.

    Args:
        listen: address and port to serve over TCP as well, with the home's token.

    Raises:
        Conflict: another service serves this BOUGH_HOME.
    """
    home.create()
    lock = ServiceLock.take(home.lock)
    try:
        replace_runtime_link(home)
        hypervisor = Hypervisor(home)
        api_socket = ApiSocket(home)
        listener = api_socket.bind()

        def leave(number: int = signal.SIGTERM) -> None:
            hypervisor.lifetimes.closing = hypervisor.faults.closing = True
            lock.tell_ending()
            server.handle_exit(number, None)

        app = create_app(hypervisor, leave)
        server = _UnixServer(_configure(app), api_socket)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, leave, number)
        beyond = _bind_beyond(home, listen) if listen else None
        await hypervisor.opening.open()
        log.info("serving %s on %s", home.root, home.api_socket)
        try:
            async with asyncio.TaskGroup() as group:
                over_tcp = _serve_tcp(home, app, beyond, group) if beyond else None
                await server.serve(sockets=[listener])
                if over_tcp is not None:
                    over_tcp.should_exit = True
        finally:
            lock.tell_ending()
            api_socket.remove()
            await _close(hypervisor)
    finally:
        lock.close()


async def _close(hypervisor: Hypervisor) -> None:
    """Release the machines within CLOSE_TIMEOUT_S.

    The next service waits for the lock, and clients wait for the next service.
    """
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await hypervisor.opening.close()
    except TimeoutError:
        left = sorted(task.get_name() for task in asyncio.all_tasks())
        log.error("the service did not end within %d s; still running: %s", CLOSE_TIMEOUT_S, ", ".join(left))


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to this module.

    A service may have two servers. And uvicorn would raise a caught signal again at the end, before this
    module has cleaned up.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _UnixServer(_Server):
    def __init__(self, config: uvicorn.Config, api_socket: ApiSocket) -> None:
        super().__init__(config)
        self._api_socket = api_socket

    async def on_tick(self, counter: int) -> bool:
        if counter % _LOOK_EVERY_TICKS == 0 and (listener := self._api_socket.bind_again()) is not None:
            for server in self.servers:
                server.close()  # closes the listening socket; open connections stay
            await self.startup(sockets=[listener])
        return await super().on_tick(counter)


def _configure(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        ws=StreamProtocol,
        # A command of 2 MiB with each byte escaped.
        ws_max_size=16 * 1024 * 1024,
        # A client with a blocked standard output cannot answer a ping that follows the data.
        ws_ping_interval=None,
        timeout_keep_alive=75,
        log_level="warning",
        log_config=None,  # use the root logger's configuration
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
    )


def _bind_beyond(home: Home, listen: str) -> tuple[socket.socket, str]:
    """Return a TCP socket, and the token for its clients."""
    return bind_tcp(listen), read_token(home.token)


def _serve_tcp(home: Home, app: Any, beyond: tuple[socket.socket, str], group: asyncio.TaskGroup) -> _Server:
    listener, token = beyond
    server = _Server(_configure(Gate(app, token)))
    group.create_task(server.serve(sockets=[listener]), name="serve TCP")
    log.info("serving %s, with the token in %s", url_of(listener), home.token)
    if not is_loopback(listener):
        log.warning("%s is not on the loopback, and its traffic is not encrypted", url_of(listener))
    return server
