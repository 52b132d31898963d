"""Access to the API of a real service: mode and owner of the Unix socket, the token on TCP."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bough.errors import Conflict, HostLacks, InvalidInput
from bough.paths import Home
from bough.service.tcp import bind_tcp, read_token


@dataclass(frozen=True)
class Service:
    home: Home
    port: int
    process: subprocess.Popen[bytes]

    @property
    def token(self) -> str:
        return self.home.token.read_text().strip()

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    def upgrade(self, path: str, **headers: str) -> int:
        """Return the status of the answer to a WebSocket request."""
        headers |= {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        return (
            self.ask("GET", path, **headers)[0]
            if "Authorization" not in headers
            else self._switch(path, headers)
        )

    def _switch(self, path: str, headers: dict[str, str]) -> int:
        lines = [f"GET {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as link:
            link.sendall("\r\n".join([*lines, "", ""]).encode())
            return int(link.recv(4096).split()[1])


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    root = Path(tempfile.mkdtemp(prefix="bough-test-", dir="/var/tmp"))
    home = Home.at(root / "home")
    with (root / "log").open("wb") as log:
        words = [sys.executable, "-m", "bough.service", "--home", str(home.root), "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(words, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not (found := re.search(r"http://127.0.0.1:(\d+)", (root / "log").read_text())):
            assert process.poll() is None, (root / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield Service(home, int(found[1]), process)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        shutil.rmtree(root)


def test_only_the_owner_comes_to_the_socket(service: Service) -> None:
    for path, mode in (
        (service.home.api_socket, 0o600),
        (service.home.runtime, 0o700),
        (service.home.token, 0o600),
    ):
        info = path.stat()
        assert stat.S_IMODE(info.st_mode) == mode, path
        assert info.st_uid == os.geteuid()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/version"),
        ("GET", "/v1/machines"),
        ("GET", "/v1/openapi.json"),
        ("POST", "/v1/shutdown"),
        ("GET", "/nothing"),
        ("OPTIONS", "/v1/machines"),
    ],
)
def test_without_the_token_there_is_nothing(service: Service, method: str, path: str) -> None:
    wrong = [{}, *({"Authorization": text} for text in ("", "Bearer", "Bearer x", f"Basic {service.token}"))]
    wrong += [{"Authorization": f"Bearer {service.token[:-1]}"}, {"Cookie": f"token={service.token}"}]
    wrong += [{"X-Forwarded-For": "127.0.0.1", "Host": "localhost"}]
    for headers in wrong:
        status, content = service.ask(method, path, **headers)
        assert status == 401, headers
        assert json.loads(content)["error"]["code"] == "unauthorized"
        assert service.token not in content.decode()
    assert service.process.poll() is None


def test_with_the_token_there_is_everything(service: Service) -> None:
    status, content = service.ask("GET", "/v1/version", Authorization=f"Bearer {service.token}")
    assert status == 200
    assert json.loads(content)["home"] == str(service.home.root)
    assert service.ask("GET", "/v1/machines", Authorization=f"Bearer {service.token}") == (200, b"[]")


def test_websockets_want_it_too(service: Service) -> None:
    assert service.upgrade("/v1/events") == 403
    assert service.upgrade("/v1/events", Authorization="Bearer x") == 403
    assert service.upgrade("/v1/events", Authorization=f"Bearer {service.token}") == 101


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../../etc/passwd",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "a%00b",
        "%0a",
        "-rf",
        "$(id)",
        ";id",
        "x" * 5000,
    ],
)
def test_no_name_becomes_a_path_or_a_command(service: Service, name: str) -> None:
    for path in (f"/v1/machines/{name}", f"/v1/machines/{name}/logs", f"/v1/machines/{name}/plan"):
        status, content = service.ask(
            "GET", path.replace(" ", "%20"), Authorization=f"Bearer {service.token}"
        )
        assert status in (400, 404, 422), (path, status)
        assert b"root:" not in content


def test_the_token_is_kept_and_guarded(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = read_token(path)
    assert len(token) >= 40
    assert read_token(path) == token
    path.chmod(0o640)
    with pytest.raises(HostLacks, match="read by others"):
        read_token(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(HostLacks, match="no token"):
        read_token(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        read_token(link)


@pytest.mark.parametrize(
    "address", ["8500", "127.0.0.1", "127.0.0.1:x", "example.org:80", ":80", "1.2.3.4:65536"]
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(InvalidInput):
        bind_tcp(address)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(Conflict):
            bind_tcp(f"127.0.0.1:{server.getsockname()[1]}")
