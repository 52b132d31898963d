"""The Python API and the HTTP API, as users call them."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from bough.paths import Home
from tests.acceptance.conftest import Cli


def request(home: Home, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, Any]:
    """Make one HTTP request over the Unix socket, without bough's client."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(home.api_socket))
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            while answer.readline().strip():
                pass
            return status, json.loads(answer.read() or b"null")


def test_errors_are_exceptions_with_their_fields(cli: Cli, box: str) -> None:
    import bough
    from bough.errors import NameTaken, NotFound, WrongState

    hv = bough.connect()
    with pytest.raises(NotFound) as told:
        hv.machine("bxo")
    assert "box" in (told.value.hint or "")
    with pytest.raises(NameTaken) as taken:
        hv.create("debian:12", name=box)
    assert taken.value.name == box
    with pytest.raises(WrongState):
        hv.machine(box).delete()


def test_openapi_describes_every_call(cli: Cli, box: str, bough_home: Home) -> None:
    status, document = request(bough_home, "/v1/openapi.json")
    assert status == 200
    assert document["openapi"].startswith("3.")
    paths = document["paths"]
    for path in ("/v1/version", "/v1/doctor", "/v1/images", "/v1/images/build", "/v1/machines"):
        assert path in paths, path
    for call in (
        "start",
        "stop",
        "restart",
        "pause",
        "resume",
        "plan",
        "logs",
        "wait",
        "ping",
        "ports",
        "load",
    ):
        assert f"/v1/machines/{{reference}}/{call}" in paths, call


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/nothing", b"", 404, "not-found"),
        ("GET", "/v1/machines/absent", b"", 404, "not-found"),
        ("GET", "/v1/machines/..%2f..%2fetc", b"", 404, "not-found"),
        ("POST", "/v1/machines", b"{", 422, "invalid-input"),
        ("POST", "/v1/machines", b'{"spec": 3}', 422, "invalid-input"),
        ("POST", "/v1/machines", b'{"spec": {}}', 422, "invalid-spec"),
        ("POST", "/v1/machines/box/stop", b'{"deadline_s": -1}', 422, "invalid-input"),
        ("DELETE", "/v1/machines/box", b"", 409, "wrong-state"),
        ("DELETE", "/v1/machines/box/ports/70000", b"", 409, "wrong-state"),
    ],
)
def test_a_wrong_request_is_answered_with_an_error_of_the_tree(
    cli: Cli, box: str, bough_home: Home, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    got, answer = request(bough_home, path, method, body)
    assert (got, answer["error"]["code"]) == (status, code), answer


def test_the_api_is_for_its_owner_alone(cli: Cli, box: str, bough_home: Home) -> None:
    assert bough_home.api_socket.stat().st_mode & 0o777 == 0o600
    assert bough_home.runtime.stat().st_mode & 0o777 == 0o700
