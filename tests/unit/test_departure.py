"""Streams of the service whose client disconnects, in every way: nothing is left on either side.

The service's routes and the agent are real; the guest is this host.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from fastapi import FastAPI

from bough.client.websocket import WebSocket
from bough.errors import GuestRefused
from bough.guest.channel import AgentChannel
from bough.hypervisor import Hypervisor
from bough.machines.console import Console
from bough.machines.events import Events
from bough.machines.ports import PortServer
from bough.machines.record import PortForward
from bough.service import commands, streams, websocket
from bough.service.disconnect import StreamProtocol
from bough.service.routes import Routes
from tests.unit.agent_process import AgentProcess, running_agent

TIMES = 40
#: More than all buffers between a client and its guest hold.
MUCH = bytes(16 << 20)


class Peer:
    """A TCP server in the role of a guest's program; `answer` handles each connection."""

    def __init__(self, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> None:
        self._answer = answer
        self.open = 0
        self.received = bytearray()

    async def __aenter__(self) -> Peer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        with contextlib.suppress(OSError):
            await self._answer(reader, writer)
            while data := await reader.read(1 << 16):
                self.received += data
        self.open -= 1
        writer.close()


async def _greets(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")


async def _reads_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    await asyncio.Event().wait()


class Machine:
    """The part of bough.machines.machine.Machine that streams need."""

    def __init__(self, channel: AgentChannel, root: Path) -> None:
        self.name = "here"
        self.paths = type("Paths", (), {"console_log": root / "log"})
        self.record = type("Record", (), {"container": None, "spec": None})
        self._channel = channel
        self.screen = Console(root / "console.sock", root / "log")

    async def agent(self) -> AgentChannel:
        return self._channel

    def console(self) -> Console:
        return self.screen


class Host:
    """The parts of the hypervisor that streams use; the class is also the inventory and the lifetimes."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.machines = self.lifetimes = self
        self.events = Events()
        self.held = 0
        #: Collaborators of the hypervisor, all in one object.
        self.machines = self.lifetimes = self

    def find(self, _: str) -> Machine:
        return self._machine

    @contextlib.contextmanager
    def hold(self, _: object) -> Any:
        self.held += 1
        yield
        self.held -= 1


class Service:
    def __init__(self, path: Path, agent: AgentProcess, channel: AgentChannel, host: Host) -> None:
        self.path, self.agent, self.channel, self.host = path, agent, channel, host

    def connect(self, target: str) -> WebSocket:
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(str(self.path))
        return WebSocket(cast(Any, stream), "/v1/" + target)

    async def open(self, target: str) -> WebSocket:
        return await asyncio.to_thread(self.connect, target)

    def guest_descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.agent.process.pid}/fd").iterdir()))

    async def wait_idle(self, tasks: int, descriptors: int) -> None:
        async with asyncio.timeout(20):
            while (  # noqa: ASYNC110 - nobody tells of the guest's descriptors
                self.channel.has_sessions
                or len(asyncio.all_tasks()) > tasks
                or self.guest_descriptors() > descriptors
            ):
                await asyncio.sleep(0.01)


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setattr(websocket, "LINGER_S", 0.2)
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        async with running_agent() as (channel, agent):
            host = Host(Machine(channel, root))
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(root / "api.sock"))
            listener.listen(128)
            app = FastAPI()
            routes = Routes(cast(Hypervisor, host))
            for part in (streams, commands):
                part.add_routes(routes)
            app.include_router(routes.router)
            config = uvicorn.Config(app, lifespan="off", ws=StreamProtocol, log_level="error")
            server = uvicorn.Server(config)
            server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
            serving = asyncio.create_task(server._serve([listener]))
            try:
                yield Service(root / "api.sock", agent, channel, host)
            finally:
                server.should_exit = True
                await serving


def kill(link: WebSocket) -> None:
    """Close the connection as a killed process does, without a word."""
    link._stream.close()


def half_close(link: WebSocket) -> None:
    link.send(b"")
    link._stream.close()


ENDS = {"close": WebSocket.close, "kill": kill, "half": half_close}


@pytest.mark.parametrize("end", ENDS)
async def test_tunnels(service: Service, end: str) -> None:
    async with Peer(_greets) as peer:
        await service.wait_idle(len(asyncio.all_tasks()), service.guest_descriptors())
        tasks, descriptors = len(asyncio.all_tasks()), service.guest_descriptors()
        for count in range(TIMES):
            link = await service.open(f"machines/here/tunnel?port={peer.port}")
            assert await asyncio.to_thread(link.receive) == b"hello"
            if count % 2:
                link.send(b"bye")
            ENDS[end](link)
        await service.wait_idle(tasks, descriptors)
        assert peer.open == 0
        assert peer.received == b"bye" * (TIMES // 2)


@pytest.mark.parametrize("end", ENDS)
async def test_a_tunnel_whose_guest_takes_nothing(service: Service, end: str) -> None:
    async with Peer(_reads_nothing) as peer:
        tasks, descriptors = len(asyncio.all_tasks()), service.guest_descriptors()
        link = await service.open(f"machines/here/tunnel?port={peer.port}")
        assert await asyncio.to_thread(link.receive) == b"hello"
        link._stream.settimeout(0.5)
        with contextlib.suppress(Exception):
            await asyncio.to_thread(link.send, MUCH)
        ENDS[end](link) if end != "half" else kill(link)
        await service.wait_idle(tasks + 1, descriptors)  # the peer's own socket


async def test_what_a_client_sent_before_it_closed_arrives(service: Service) -> None:
    """All data arrives, as from a closed TCP socket: more than the guest takes at once, from a client that
    has gone.
    """
    begin = asyncio.Event()

    async def late(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await begin.wait()

    async with Peer(late) as peer:
        link = await service.open(f"machines/here/tunnel?port={peer.port}")
        part, parts = os.urandom(256 << 10), 28

        def send() -> None:
            for _ in range(parts):
                link.send(part)
            link.close()

        sending = asyncio.create_task(asyncio.to_thread(send))
        await asyncio.sleep(0.1)
        begin.set()
        await sending
        async with asyncio.timeout(20):
            while len(peer.received) < parts * len(part) or peer.open:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert bytes(peer.received) == part * parts


async def test_the_last_words_of_a_guest_that_takes_no_more(service: Service) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.shutdown(socket.SHUT_RD)
        await asyncio.sleep(0.2)
        writer.write(b"413 too large")
        writer.write_eof()

    async with Peer(answer) as peer:
        link = await service.open(f"machines/here/tunnel?port={peer.port}")
        await asyncio.to_thread(link.send, b"a request")
        assert await asyncio.to_thread(link.receive, 10) == b"413 too large"
        assert await asyncio.to_thread(link.receive, 10) == b""
        link.close()


@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize("feeds", [False, True], ids=["idle", "feeds"])
async def test_commands(service: Service, end: str, feeds: bool) -> None:
    """The client of a command that reads nothing disconnects, also while the client's data waits
    to be read.
    """
    tasks, descriptors = len(asyncio.all_tasks()), service.guest_descriptors()
    links = []
    for _ in range(4 if feeds else TIMES):
        link = await service.open("machines/here/exec")
        link.send_text(json.dumps({"argv": ["sh", "-c", "echo hello; sleep 1000"]}))
        assert await asyncio.to_thread(link.receive) == b"\x01hello\n"
        links.append(link)
    for link in links:
        if feeds:
            link._stream.settimeout(0.5)
            with contextlib.suppress(Exception):
                await asyncio.to_thread(link.send, b"\0" + MUCH[: 1 << 18])
                for _ in range(64):
                    await asyncio.to_thread(link.send, b"\0" + MUCH[: 1 << 18])
        ENDS[end](link)
    await service.wait_idle(tasks, descriptors)


@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize("target", ["machines/here/hold", "events"])
async def test_holds_and_events(service: Service, target: str, end: str) -> None:
    tasks, descriptors = len(asyncio.all_tasks()), service.guest_descriptors()
    for _ in range(TIMES):
        ENDS[end](await service.open(target))
    await service.wait_idle(tasks, descriptors)
    assert service.host.held == 0
    assert not service.host.events._watchers


@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize("feeds", [False, True], ids=["idle", "feeds"])
async def test_consoles(service: Service, tmp_path: Path, end: str, feeds: bool) -> None:
    """The guest reads nothing from its console."""
    console = service.host.find("here").screen
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(console._socket))
        listener.listen()
        await console.connect()
        qemu, _ = listener.accept()
    try:
        tasks, descriptors = len(asyncio.all_tasks()), service.guest_descriptors()
        for _ in range(4 if feeds else TIMES):
            link = await service.open("machines/here/console")
            if feeds:
                link._stream.settimeout(0.2)
                with contextlib.suppress(Exception):
                    for _ in range(64):
                        await asyncio.to_thread(link.send, MUCH[: 1 << 18])
            ENDS[end](link)
        await service.wait_idle(tasks, descriptors)
        assert not console._attached
    finally:
        qemu.close()
        await console.close()


@pytest.mark.parametrize("end", ["close", "reset", "half"])
@pytest.mark.parametrize("takes", [True, False], ids=["reads", "reads nothing"])
async def test_ports(service: Service, end: str, takes: bool) -> None:
    if not takes and end != "reset":
        pytest.skip("what such a client sent waits for its guest, as everywhere")
    ports = PortServer("here", service.channel.dial)
    async with Peer(_greets if takes else _reads_nothing) as peer:
        await ports.follow(service.channel)
        forward = await ports.listen(PortForward(host_port=0, guest_port=peer.port))
        tasks, descriptors = len(asyncio.all_tasks()), service.guest_descriptors()
        for _ in range(TIMES if takes else 2):
            reader, writer = await asyncio.open_connection("127.0.0.1", forward.host_port)
            assert await reader.read(5) == b"hello"
            if not takes:
                writer.write(MUCH)
                await asyncio.sleep(0.3)
            if end == "reset":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            elif end == "half":
                writer.write_eof()
                assert await reader.read() == b""
                writer.close()
            else:
                writer.close()
        await service.wait_idle(tasks + (0 if takes else 2), descriptors)
    await ports.close()


async def test_a_port_is_open_while_something_listens(service: Service) -> None:
    ports = PortServer("here", service.channel.dial)
    with socket.create_server(("127.0.0.1", 0)) as place:
        guest_port = int(place.getsockname()[1])
    forward = await ports.listen(PortForward(host_port=0, guest_port=guest_port))
    await ports.follow(service.channel)

    def connect() -> bytes:
        with socket.create_connection(("127.0.0.1", forward.host_port), timeout=10) as link:
            link.shutdown(socket.SHUT_WR)
            return link.recv(100)

    for address in ("127.0.0.1", "::1", "127.0.0.7"):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(connect)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, guest_port))
            listener.listen()
            served = await asyncio.start_server(_greet_and_close, sock=listener)
            async with asyncio.timeout(20):
                while (await asyncio.to_thread(_try, connect)) is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert await asyncio.to_thread(connect) == b"hello"
            served.close()
        with pytest.raises(ConnectionError):  # the port was open: this connection finds out
            await asyncio.to_thread(connect)
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", forward.host_port)).close()
    await ports.close()


async def _greet_and_close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    writer.close()


def _try(action: Callable[[], bytes]) -> bytes | None:
    try:
        return action()
    except ConnectionError:
        return None


async def test_ports_of_an_agent_that_cannot_report(service: Service) -> None:
    """An agent of an older bough: the port is open as before, and a connection that the guest refuses is
    reset.
    """

    class Older(AgentChannel):
        async def watch_ports(self, ports: Any) -> Any:
            raise GuestRefused("expected an address and a port", errno="EINVAL")

    service.channel.__class__ = Older
    ports = PortServer("here", service.channel.dial)
    with socket.create_server(("127.0.0.1", 0)) as place:
        guest_port = int(place.getsockname()[1])
    forward = await ports.listen(PortForward(host_port=0, guest_port=guest_port))
    await ports.follow(service.channel)
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", forward.host_port)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()
    await ports.close()
