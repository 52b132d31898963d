"""The control socket of a switch, its captures, and its process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dnslib
import dpkt
import pytest

import bough
from bough.networks.switch.control import Control
from bough.networks.switch.fabric import Fabric
from bough.networks.switch.program import LABEL, RUN, run
from tests.unit.switch_peers import SETTINGS, SWITCH_MAC, Peer

KIND = b"\x88\xb5"
TIMEOUT_S = 10


class Client:
    """The service's end."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(str(path))
        self.stream = self.socket.makefile("rb")

    def ask(self, **request: Any) -> dict[str, Any]:
        return self.raw(json.dumps(request).encode())

    def raw(self, line: bytes) -> dict[str, Any]:
        self.socket.sendall(line + b"\n")
        answer: dict[str, Any] = json.loads(self.stream.readline())
        return answer

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


def listen() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("control.sock")
    listener.listen()
    return listener


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def switch(here: Path) -> Iterator[Client]:
    """A switch in a thread, with a client of its control socket."""
    poll = select.epoll()
    fabric = Fabric(SETTINGS, poll)
    control = Control(listen(), fabric, poll)
    thread = threading.Thread(target=run, args=(fabric, control, poll))
    thread.start()
    client = Client(here / "control.sock")
    yield client
    with contextlib.suppress(OSError, ValueError):
        Client(here / "control.sock").ask(do="end")
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    client.close()


def wait_frame(peer: Peer) -> bytes:
    select.select([peer.socket], [], [], TIMEOUT_S)
    (frame,) = peer.received()
    return frame


def test_the_service_attaches_machines(switch: Client) -> None:
    assert switch.ask(do="hello")["ok"] == {"protocol": 1, "pid": os.getpid(), "network": "back"}
    web, db = Peer(2, "web"), Peer(3, "db")
    for peer in (web, db):
        assert switch.ask(do="attach", member=peer.to_dict()) == {"ok": {}}
    frame = web.frame(db.mac, KIND, b"hello")
    web.send(frame)
    assert wait_frame(db) == frame
    counters = switch.ask(do="counters")["ok"]["ports"]
    assert [one["port"] for one in counters] == [web.port, db.port]
    assert switch.ask(do="detach", port=db.port) == {"ok": {"detached": True}}
    assert switch.ask(do="detach", port=db.port) == {"ok": {"detached": False}}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "Expecting"),
        (b"[]", "list"),
        (b'"x"', "string"),
        (b"{}", "'do' is missing"),
        (b'{"do": "reboot"}', "unknown request"),
        (b'{"do": "attach"}', "'member' is missing"),
        (b'{"do": "attach", "member": {"port": "x"}}', "'mac' is missing"),
        (b'{"do": "attach", "member": {"port": "x", "mac": "52:54:00:00:00:01"}}', "No such file"),
        (b'{"do": "detach", "port": "../x"}', "the name of a port"),
        (b"\xff", "utf-8"),
    ],
)
def test_bad_requests_are_answered_in_words(switch: Client, line: bytes, problem: str) -> None:
    assert problem in switch.raw(line)["error"]
    assert switch.ask(do="hello")["ok"]["network"] == "back"


def test_a_line_without_end_closes_only_its_connection(switch: Client, here: Path) -> None:
    other = Client(here / "control.sock")
    with contextlib.suppress(OSError):
        for _ in range(40):
            other.socket.sendall(bytes(65536))
    other.close()
    assert "ok" in switch.ask(do="hello")


def read_pcapng(data: bytes) -> list[tuple[int, bytes]]:
    """Return the blocks of a capture: kind and body."""
    blocks = []
    while data:
        kind, size = struct.unpack("=II", data[:8])
        assert data[size - 4 : size] == data[4:8]
        assert size % 4 == 0
        blocks.append((kind, data[8 : size - 4]))
        data = data[size:]
    return blocks


def test_a_capture_has_frames_and_names(switch: Client, here: Path) -> None:
    web, db = Peer(2, "web"), Peer(3, "db")
    for peer in (web, db):
        switch.ask(do="attach", member=peer.to_dict())
    reader = Client(here / "control.sock")
    assert reader.ask(do="capture") == {"ok": {}}
    switch.ask(do="hello")
    frames = [web.frame(db.mac, KIND, bytes(size)) for size in (1, 2, 1500)]
    for frame in frames:
        web.send(frame)
        wait_frame(db)
    late = Peer(4, "late")
    switch.ask(do="attach", member=late.to_dict())
    late.send(late.frame(db.mac, KIND, b"late"))
    wait_frame(db)
    switch.ask(do="end")
    data = reader.stream.read()
    reader.close()
    (here / "capture.pcapng").write_bytes(data)
    blocks = read_pcapng(data)
    assert [kind for kind, _ in blocks] == [0x0A0D0D0A, 1, 1, 1, 4, 6, 6, 6, 4, 1, 6]
    assert b"db.back\0db.shop\0" in blocks[4][1]
    assert b"late.back" in blocks[8][1]
    with (here / "capture.pcapng").open("rb") as stream:
        told = [frame for _, frame in dpkt.pcapng.Reader(stream)]
    assert told == [*frames, late.frame(db.mac, KIND, b"late")]


def test_a_slow_reader_of_a_capture_blocks_nobody(switch: Client, here: Path) -> None:
    web, db = Peer(2, "web"), Peer(3, "db")
    for peer in (web, db):
        switch.ask(do="attach", member=peer.to_dict())
    reader = Client(here / "control.sock")
    reader.ask(do="capture")
    frame = web.frame(db.mac, KIND, bytes(1500))
    for _ in range(7000):  # more than 8 MiB
        web.send(frame)
        wait_frame(db)
    switch.ask(do="end")
    reader.close()


def test_the_process(here: Path) -> None:
    """As the service starts it: by a descriptor, in a session of its own, from a few directories."""
    modules = {Path(module.__file__ or "").parent.parent for module in (bough, dpkt, dnslib)}
    settings = {"network": "back", "mac": SWITCH_MAC.hex(":"), "mtu": 1500, "domains": ["back"]}
    settings |= {"address": str(SETTINGS.address), "address6": str(SETTINGS.address6)}
    with listen() as listener:
        words = ["--control-fd", str(listener.fileno()), "--settings", json.dumps(settings), str(here)]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", RUN, ":".join(map(str, modules)), *words],
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    with process:
        client = Client(here / "control.sock")
        assert client.ask(do="hello")["ok"]["pid"] == process.pid
        assert Path(f"/proc/{process.pid}/comm").read_text().strip() == f"{LABEL}back"
        client.ask(do="end")
        client.close()
        assert process.wait(TIMEOUT_S) == 0


def test_held_frames_are_carried_after_the_release(switch: Client) -> None:
    web, db = Peer(2, "web"), Peer(3, "db")
    for peer in (web, db):
        switch.ask(do="attach", member=peer.to_dict())
    assert switch.ask(do="hold", most_s=10) == {"ok": {}}
    frames = [web.frame(db.mac, KIND, bytes(size)) for size in (1, 2, 3)]
    for frame in frames:
        web.send(frame)
    late = Peer(4, "late")  # a machine that comes meanwhile
    switch.ask(do="attach", member=late.to_dict())
    late.send(late.frame(db.mac, KIND, b"late"))
    assert switch.ask(do="hello")["ok"]["network"] == "back"
    assert db.received() == []
    assert switch.ask(do="release") == {"ok": {}}
    switch.ask(do="hello")
    got: list[bytes] = []
    while len(got) < 4:
        assert select.select([db.socket], [], [], TIMEOUT_S)[0]
        got += db.received()
    assert sorted(got) == sorted([*frames, late.frame(db.mac, KIND, b"late")])


def test_a_hold_ends_with_its_connection(switch: Client, here: Path) -> None:
    web, db = Peer(2, "web"), Peer(3, "db")
    for peer in (web, db):
        switch.ask(do="attach", member=peer.to_dict())
    service = Client(here / "control.sock")
    service.ask(do="hold", most_s=20)
    web.send(web.frame(db.mac, KIND, b"hello"))
    assert select.select([db.socket], [], [], 0.05)[0] == []
    service.close()
    assert wait_frame(db) == web.frame(db.mac, KIND, b"hello")


def test_a_hold_has_a_bound(switch: Client) -> None:
    web, db = Peer(2, "web"), Peer(3, "db")
    for peer in (web, db):
        switch.ask(do="attach", member=peer.to_dict())
    switch.ask(do="hold", most_s=0.05)
    web.send(web.frame(db.mac, KIND, b"hello"))
    assert wait_frame(db) == web.frame(db.mac, KIND, b"hello")
    for most_s in (0, -1, 3600, "nan"):
        assert "held for at most" in switch.ask(do="hold", most_s=most_s)["error"]
