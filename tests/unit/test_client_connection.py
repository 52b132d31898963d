"""The API over its socket: answers, errors, progress, kept connections."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bough.client.connection import NDJSON, Connection
from bough.contract.host import CheckHost
from bough.contract.machines import (
    CreateMachine,
    DeleteMachine,
    GetLogs,
    GetMachine,
    ListMachines,
    RenameMachine,
)
from bough.contract.screen import GetScreenshot
from bough.contract.service import GetVersion, ShutDown
from bough.errors import DeadlineExceeded, NameTaken, NotFound, ProtocolError, ServiceUnavailable
from bough.progress import Progress
from tests.unit.api_peer import Answer, ApiPeer

JSON = "application/json"
CREATE = CreateMachine(spec={})
Serve = Callable[[Callable[[str, str, bytes], Answer | None]], tuple[ApiPeer, Connection]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    made: list[tuple[ApiPeer, Connection]] = []

    def start(answer: Callable[[str, str, bytes], Answer | None]) -> tuple[ApiPeer, Connection]:
        peer = ApiPeer(tmp_path / "api.sock", answer)
        made.append((peer, Connection(peer.path)))
        return made[-1]

    yield start
    for peer, connection in made:
        connection.close()
        peer.close()


def lines(*messages: object) -> Answer:
    return 200, NDJSON, [json.dumps(message).encode() + b"\n" for message in messages]


def test_one_connection_for_many_calls(serve: Serve) -> None:
    peer, connection = serve(lambda method, path, body: (200, JSON, [json.dumps([method, path]).encode()]))
    assert connection.send(ListMachines()) == ["GET", "/v1/machines"]
    assert connection.send(ShutDown()) == ["POST", "/v1/shutdown"]
    assert connection.send(DeleteMachine(reference="x")) == ["DELETE", "/v1/machines/x"]
    assert peer.connections == 1


def test_a_kept_connection_that_was_closed_is_replaced(serve: Serve) -> None:
    peer, connection = serve(lambda *_: (200, JSON, [b"1"]))
    connection.send(GetVersion())
    peer.drop_connections()
    assert connection.send(GetVersion()) == 1
    assert peer.connections == 2


def test_bodies_arrive(serve: Serve) -> None:
    _, connection = serve(lambda method, path, body: (200, JSON, [body]))
    big = "x" * 3_000_000
    assert connection.send(RenameMachine(reference="a", name=big)) == {"name": big}


def test_an_error_is_the_class_that_was_raised(serve: Serve) -> None:
    error = NameTaken("a machine named 'web' exists already", hint="another name", name="web")
    content = json.dumps({"error": error.to_dict()}).encode()
    _, connection = serve(lambda *_: (409, JSON, [content]))
    with pytest.raises(NameTaken, match="exists already") as caught:
        connection.send(RenameMachine(reference="a", name="web"))
    assert (caught.value.name, caught.value.hint) == ("web", "another name")


@pytest.mark.parametrize("content", [b"", b"oops", b"[]", b'{"error": 3}'])
def test_an_error_that_is_none_of_ours(serve: Serve, content: bytes) -> None:
    _, connection = serve(lambda *_: (502, "text/plain", [content]))
    with pytest.raises(ProtocolError, match="502"):
        connection.send(GetVersion())


def test_text(serve: Serve) -> None:
    _, connection = serve(lambda *_: (200, "text/plain; charset=utf-8", ["grün\xff".encode("latin-1")]))
    assert connection.send(GetLogs(reference="a")) == "gr\ufffdn\ufffd"


def test_bytes(serve: Serve) -> None:
    _, connection = serve(lambda *_: (200, "image/png", [b"\x89PNG\xff"]))
    assert connection.send(GetScreenshot(reference="a")) == b"\x89PNG\xff"


def test_an_answer_that_is_no_json(serve: Serve) -> None:
    _, connection = serve(lambda *_: (200, "text/plain", [b"oops"]))
    with pytest.raises(ProtocolError, match="not JSON"):
        connection.send(GetVersion())


def test_progress_then_the_result(serve: Serve) -> None:
    told: list[Progress] = []
    steps = [{"progress": {"step": "copying", "fraction": n / 2, "detail": ""}} for n in range(3)]
    peer, connection = serve(lambda *_: lines(*steps, {"result": {"id": "x"}}))
    assert connection.send_long(CREATE, progress=told.append) == {"id": "x"}
    assert [step.fraction for step in told] == [0, 0.5, 1]
    connection.send_long(CREATE)
    assert peer.connections <= 2


def test_an_error_after_progress(serve: Serve) -> None:
    error = NotFound("no such image").to_dict()
    _, connection = serve(lambda *_: lines({"progress": {"step": "a"}}, {"error": error}))
    with pytest.raises(NotFound, match="no such image"):
        connection.send_long(CREATE)


def test_a_stream_that_breaks_off(serve: Serve) -> None:
    _, connection = serve(lambda *_: lines({"progress": {"step": "a"}}))
    with pytest.raises(ServiceUnavailable, match="ended in the middle"):
        connection.send_long(CREATE)


def test_a_service_that_hangs_up(serve: Serve) -> None:
    _, connection = serve(lambda *_: None)
    with pytest.raises(ServiceUnavailable):
        connection.send(GetVersion())


def test_no_answer_in_time(serve: Serve) -> None:
    import threading

    forever = threading.Event()
    _, connection = serve(lambda *_: forever.wait() and None)
    with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
        connection.send(GetVersion(), timeout=0.05)
    forever.set()


def test_nothing_listens(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable, match="No such file") as caught:
        Connection(str(tmp_path / "absent")).send(GetVersion())
    assert caught.value.hint


def test_names_are_quoted_into_paths() -> None:
    assert GetMachine(reference="a/../b c").render_target() == "/machines/a%2F..%2Fb%20c"
    assert CheckHost(probe=False, arch=None).render_target() == "/doctor?probe=0"
