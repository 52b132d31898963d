"""Commands over a WebSocket: channels, ends, errors, a client that disconnects."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from wsproto.events import CloseConnection, Ping, Pong

from bough.client.process import ExitStatus, Process, feed
from bough.client.tunnel import Tunnel
from bough.client.websocket import WebSocket
from bough.contract.commands import CLOSE, RESIZE, SIGNAL, STATUS, STDERR, STDIN, STDOUT, Command
from bough.errors import BoughError, GuestRefused, NotFound, ProtocolError, ServiceUnavailable
from tests.unit.api_peer import SocketPeer

Play = Callable[[Callable[[SocketPeer], Any]], socket.socket]


@pytest.fixture
def play() -> Iterator[Play]:
    """Run the service's part in a thread; an error in the thread fails the test."""
    threads: list[tuple[threading.Thread, socket.socket]] = []
    failed: list[BaseException] = []

    def start(part: Callable[[SocketPeer], Any]) -> socket.socket:
        ours, theirs = socket.socketpair()

        def run() -> None:
            try:
                part(SocketPeer(theirs))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        threads.append((thread, theirs))
        return ours

    yield start
    for thread, stream in threads:
        thread.join(5)
        assert not thread.is_alive()
        stream.close()
    assert not failed, failed


def status(**fields: Any) -> bytes:
    return bytes([STATUS]) + json.dumps({"exit_code": None, "signal": None, "error": None, **fields}).encode()


def command(play: Play, part: Callable[[SocketPeer], Any], **request: Any) -> Process:
    return Process(WebSocket(play(part), "/v1/machines/x/exec"), Command(argv=["true"], **request))


def test_streams_and_exit(play: Play) -> None:
    def part(peer: SocketPeer) -> None:
        assert peer.accept() == "/v1/machines/x/exec"
        assert json.loads(peer.next()) == {"argv": ["true"], "user": "bob"}
        peer.send_bytes(bytes([STDOUT]) + b"out\0\xff")
        peer.send_bytes(bytes([STDERR]) + b"err")
        peer.send_bytes(status(exit_code=7))

    process = command(play, part, user="bob")
    assert list(process) == [("stdout", b"out\0\xff"), ("stderr", b"err")]
    assert process.wait() == ExitStatus(7, None)
    assert process.read() is None
    process.kill()
    process.close_stdin()
    with pytest.raises(BrokenPipeError):
        process.write(b"late")


def test_a_message_in_pieces_is_one(play: Play) -> None:
    def part(peer: SocketPeer) -> None:
        peer.accept()
        peer.next()
        peer.send_bytes(bytes([STDOUT]) + b"a" * 70_000, finished=False)
        peer.send_bytes(b"b" * 70_000)
        peer.send_bytes(status(exit_code=0))

    assert list(command(play, part)) == [("stdout", b"a" * 70_000 + b"b" * 70_000)]


def test_what_is_written_arrives_in_order(play: Play) -> None:
    data = bytes(range(256)) * 4096

    def part(peer: SocketPeer) -> None:
        peer.accept()
        peer.next()
        got = b""
        while (message := peer.next())[0] == STDIN:
            got += message[1:]
        assert got == data
        assert message == bytes([CLOSE, STDIN])
        assert peer.next() == bytes([RESIZE]) + b'{"rows": 50, "columns": 100}'
        assert peer.next() == bytes([SIGNAL]) + b'{"name": "INT"}'
        peer.send_bytes(status(signal="SIGINT"))

    process = command(play, part)
    thread = feed(process, data)
    assert thread is not None
    thread.join(5)
    process.resize(50, 100)
    process.send_signal("SIGINT")
    assert process.wait() == ExitStatus(None, "SIGINT")
    assert process.wait().shell_code == 130


def test_closing_is_seen_by_the_service(play: Play) -> None:
    def part(peer: SocketPeer) -> None:
        peer.accept()
        peer.next()
        assert isinstance(peer.next(), CloseConnection)

    command(play, part).close()


def test_a_thread_that_waits_ends_when_another_closes(play: Play) -> None:
    def part(peer: SocketPeer) -> None:
        peer.accept()
        peer.next()
        while not isinstance(peer.next(), CloseConnection | None):
            pass

    process = command(play, part)
    told: list[BaseException] = []

    def read() -> None:
        try:
            process.read()
        except BoughError as error:
            told.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    process.close()
    reader.join(5)
    assert isinstance(told[0], ServiceUnavailable)


def test_wait_keeps_what_was_not_read(play: Play) -> None:
    def part(peer: SocketPeer) -> None:
        peer.accept()
        peer.next()
        for number in range(3):
            peer.send_bytes(bytes([STDOUT]) + b"%d" % number)
        peer.send_bytes(status(exit_code=0))

    process = command(play, part)
    assert process.wait(timeout=5) == ExitStatus(0, None)
    assert [data for _, data in process] == [b"0", b"1", b"2"]


def test_a_wait_that_runs_out_can_be_repeated(play: Play) -> None:
    go_on = threading.Event()

    def part(peer: SocketPeer) -> None:
        peer.accept()
        peer.next()
        go_on.wait(5)
        peer.send_bytes(status(exit_code=3))

    process = command(play, part)
    with pytest.raises(TimeoutError):
        process.wait(timeout=0.01)
    assert process.exit_status is None
    go_on.set()
    assert process.wait(timeout=5).code == 3


def test_a_ping_is_answered(play: Play) -> None:
    def part(peer: SocketPeer) -> None:
        peer.accept()
        peer.next()
        peer.send(Ping(payload=b"x"))
        assert isinstance(peer.next(), Pong)
        peer.send_bytes(status(exit_code=0))

    assert command(play, part).wait().code == 0


def test_an_error_before_it_is_open(play: Play) -> None:
    error = NotFound("no machine is called 'x'", hint="did you mean 'y'?").to_dict()
    with pytest.raises(NotFound, match="no machine") as caught:
        command(play, lambda peer: peer.reject(404, {"error": error}))
    assert caught.value.hint == "did you mean 'y'?"


def test_an_error_as_status(play: Play) -> None:
    def part(peer: SocketPeer) -> None:
        peer.accept()
        peer.next()
        peer.send_bytes(bytes([STDOUT]) + b"so far")
        peer.send_bytes(status(error=GuestRefused("no such user", errno="ENOENT").to_dict()))

    process = command(play, part)
    assert process.read() == ("stdout", b"so far")
    for _ in range(2):
        with pytest.raises(GuestRefused, match="no such user"):
            process.read()


@pytest.mark.parametrize(
    ("part", "error"),
    [
        (lambda peer: peer.close(4000, "the guest said no"), BoughError),
        (lambda peer: peer.close(1012, "restart"), ServiceUnavailable),
        (lambda peer: peer.close(), ServiceUnavailable),
        (lambda peer: peer.stream.shutdown(socket.SHUT_RDWR), ServiceUnavailable),
        (lambda peer: peer.send_bytes(b""), ProtocolError),
        (lambda peer: peer.send_bytes(bytes([STATUS]) + b"{"), ProtocolError),
        (lambda peer: peer.stream.sendall(b"\xff" * 100), ProtocolError),
    ],
)
def test_a_service_that_ends_or_errs(
    play: Play, part: Callable[[SocketPeer], None], error: type[BoughError]
) -> None:
    def whole(peer: SocketPeer) -> None:
        peer.accept()
        peer.next()
        part(peer)

    with pytest.raises(error):
        command(play, whole).wait(timeout=5)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n"])
def test_what_is_no_websocket(play: Play, answer: bytes) -> None:
    def part(peer: SocketPeer) -> None:
        peer.next()
        peer.stream.sendall(answer)
        peer.stream.shutdown(socket.SHUT_WR)

    with pytest.raises(ServiceUnavailable):
        WebSocket(play(part), "/v1/x")


def test_a_tunnel(play: Play) -> None:
    def part(peer: SocketPeer) -> None:
        peer.accept()
        assert peer.next() == b"question"
        assert peer.next() == b""
        peer.send_bytes(b"answer")
        peer.send_bytes(b"")

    with Tunnel(WebSocket(play(part), "/v1/x")) as tunnel:
        tunnel.sendall(b"question")
        tunnel.shutdown_write()
        assert (tunnel.recv(3), tunnel.recv(), tunnel.recv(), tunnel.recv()) == (b"ans", b"wer", b"", b"")
