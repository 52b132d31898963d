"""Find and start the service: one service for many clients, and the real error if it does not come up.

A small program stands for the service, with real processes, sockets and locks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bough.client import service as client_service
from bough.client.connection import Connection
from bough.client.service import find_service
from bough.errors import ServiceUnavailable
from bough.paths import Home
from bough.serving import Owner, ServiceLock, read_owner
from bough.version import __version__

# A program that counts its starts, locks the home as the service does, and answers every request with its
# version.
SERVICE = """
import fcntl, json, os, socket, sys
home = sys.argv[1]
with open(home + "/starts", "a") as starts:
    starts.write(f"{os.getpid()}\\n")
lock = open(home + "/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[2])
listener.listen()
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    body = json.dumps({"version": sys.argv[3], "api": 1, "pid": os.getpid()})
    head = f"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n"
    connection.sendall((head + "Connection: close\\r\\n\\r\\n" + body).encode())
    connection.close()
"""
LOCKING = 'lock = open(home + "/lock", "w")\nfcntl.flock(lock, fcntl.LOCK_EX)\n'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    place = Home.at(tmp_path / "home")
    yield place
    for pid in starts(place):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def starts(home: Home) -> list[int]:
    path = home.root / "starts"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def serve_with(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    real = client_service.command_of

    def command(home: Home) -> list[str]:
        return [real(home)[0], "-c", program, str(home.root), str(home.api_socket), __version__]

    monkeypatch.setattr(client_service, "command_of", command)


def test_many_clients_at_once_start_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_with(monkeypatch, SERVICE)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(find_service(home)[1]["pid"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == starts(home) * 8
    assert len(starts(home)) == 1


def test_one_that_is_there_is_found(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_with(monkeypatch, SERVICE)
    pid = find_service(home)[1]["pid"]
    assert find_service(home, start=False)[1]["pid"] == pid


def test_one_that_was_killed_is_started_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_with(monkeypatch, SERVICE)
    pid = find_service(home)[1]["pid"]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    home.api_socket.unlink()  # the real service does so itself, under the home's lock
    (home.root / "starts").unlink()
    assert find_service(home)[1]["pid"] != pid


def test_none_and_none_wanted(home: Home) -> None:
    with pytest.raises(ServiceUnavailable) as caught:
        find_service(home, start=False)
    assert caught.value.hint
    assert not home.root.exists()


def test_one_that_dies_tells_why(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_with(monkeypatch, "import sys; print('it is too hot', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ServiceUnavailable, match="ended with status 3") as caught:
        find_service(home)
    assert "it is too hot" in caught.value.log
    assert str(home.service_log) in (caught.value.hint or "")


# The earlier service is ending, prints much meanwhile, and has ended at the third look.
ON_ITS_WAY = """
import sys
from pathlib import Path
looks = Path(sys.argv[1]) / "looks"
looks.write_text(looks.read_text() + "." if looks.exists() else ".")
if len(looks.read_text()) < 3:
    print("error: no room\\n" + 10_000 * "the end of another\\n", file=sys.stderr)
    sys.exit(75)
"""


def test_one_that_is_on_its_way_out_is_waited_for(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_with(monkeypatch, ON_ITS_WAY + SERVICE)
    assert find_service(home)[1]["pid"] in starts(home)
    assert (home.root / "looks").read_text() == "..."


def test_another_version_is_warned_about(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_with(monkeypatch, SERVICE)
    find_service(home)
    monkeypatch.setattr(client_service, "__version__", "9.9.9")
    with pytest.warns(UserWarning, match=r"9\.9\.9"):
        find_service(home)


# A service without a socket. After the given seconds it ends, or binds the socket: with its lock held, as the
# real service does.
HIDDEN = """
import sys, time
from pathlib import Path
from bough.serving import ServiceLock
home, path, version, ends, after_s = sys.argv[1:]
lock = ServiceLock.take(Path(home, "lock"))
if ends == "True":
    lock.tell_ending()
print(flush=True)
time.sleep(float(after_s))
if ends == "True":
    sys.exit()
""" + SERVICE.replace(LOCKING, "")


def hide_service(home: Home, *, ends: bool = False, after_s: float = 60) -> subprocess.Popen[bytes]:
    home.create()
    words = [sys.executable, "-c", HIDDEN, home.root, home.api_socket, __version__, str(ends), str(after_s)]
    service = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert service.stdout is not None
    service.stdout.readline()
    return service


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize(
    ("ends", "says"),
    [(False, "does not listen at its socket"), (True, "got the request to end, and still runs")],
)
def test_one_that_cannot_be_reached_is_named_at_once(
    home: Home, monkeypatch: pytest.MonkeyPatch, start: bool, ends: bool, says: str
) -> None:
    monkeypatch.setattr(client_service, "_END_TIMEOUT_S" if ends else "_REBIND_TIMEOUT_S", 0.2)
    serve_with(monkeypatch, SERVICE)
    with hide_service(home, ends=ends) as hidden:
        with pytest.raises(ServiceUnavailable, match=rf"\(pid {hidden.pid}\) {says}") as caught:
            find_service(home, start=start)
        hidden.kill()
    assert f"{hidden.pid}` ends it" in (caught.value.hint or "")
    assert starts(home) == []


@pytest.mark.parametrize("ends", [True, False])
def test_one_that_cannot_be_reached_yet_is_waited_for(
    home: Home, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    serve_with(monkeypatch, SERVICE)
    with hide_service(home, ends=ends, after_s=0.5) as hidden:
        pid = find_service(home)[1]["pid"]
        hidden.kill()
    assert starts(home) == [pid]
    assert (pid == hidden.pid) is not ends


def test_one_that_is_killed_while_it_cannot_be_reached_is_started_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_with(monkeypatch, SERVICE)
    with hide_service(home) as hidden:
        threading.Timer(0.3, hidden.kill).start()
        assert find_service(home)[1]["pid"] in starts(home)


@pytest.mark.parametrize(
    ("share", "answers"),
    [
        pytest.param(1.0, False, id="busy for too long"),
        pytest.param(0.0, False, id="no progress"),
        pytest.param(0.1, True, id="slow, with progress"),
    ],
)
def test_a_start_may_take_long_if_it_makes_progress(
    share: float, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service gets that share of a processor, and answers after three times the bound."""
    monkeypatch.setattr(client_service, "START_TIMEOUT_S", 0.3)
    began = time.monotonic()
    monkeypatch.setattr(client_service, "_processor_s", lambda _: (time.monotonic() - began) * share)

    class SlowService:
        def send(self, *_: object, timeout: float) -> dict[str, int]:
            if time.monotonic() - began > 0.9:
                return {"pid": 1}
            raise ServiceUnavailable("it does not listen yet")

    process: Any = SimpleNamespace(pid=1, poll=lambda: None, returncode=None)
    found = client_service._wait_answer(cast(Connection, SlowService()), process)
    assert (found is not None) == answers


def test_asking_who_serves_takes_no_lock_from_a_service(tmp_path: Path) -> None:
    path, stop = tmp_path / "lock", threading.Event()
    ServiceLock.take(path).close()
    asking = threading.Thread(target=lambda: [read_owner(path) for _ in iter(stop.is_set, True)])
    asking.start()
    try:
        for _ in range(50):
            lock = ServiceLock.take(path)
            assert read_owner(path) == Owner(os.getpid(), ends=False)
            lock.close()
    finally:
        stop.set()
        asking.join()
    assert read_owner(path) is None
    assert read_owner(tmp_path / "none") is None
