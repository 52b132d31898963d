"""Streams to a guest whose client disconnects, and ports whose server comes and goes: nothing is left in the
guest.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from tests.acceptance.conftest import Cli
from tests.waiting import wait_until

#: Streams of each kind; a tenth of that if each needs a process in the guest.
TIMES = 200

ENDS = pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM], ids=["KILL", "HUP", "TERM"]
)

#: A server that greets each client. On port 7006 it reads until the client has gone, on 7007 it never reads.
SERVER = """
import socket, threading
def read(link):
    while link.recv(4096):
        pass
    link.close()
def serve(port, links=[]):
    server = socket.create_server(("127.0.0.1", port))
    while True:
        link = server.accept()[0]
        links.append(link)
        link.sendall(b"hello\\n")
        if port == 7006:
            links.remove(link)
            threading.Thread(target=read, args=[link], daemon=True).start()
threading.Thread(target=serve, args=[7006], daemon=True).start()
serve(7007)
"""


@pytest.fixture(scope="module")
def guest(vm: bough.Machine) -> Iterator[bough.Machine]:
    """Yield a machine with the server above."""
    with vm.spawn("python3", "-c", SERVER):
        wait_until(lambda: "7007" in vm.exec("ss", "-Htln", check=True).stdout)
        yield vm


def wait_none(machine: bough.Machine) -> None:
    """Wait until the agent has no connection, and the guest has no command of a test."""
    script = (
        "ss -Htn state established state close-wait '( dport = :7006 or dport = :7007 )';"
        "pgrep -af 'sleep 100[0-9]'"
    )
    wait_until(
        lambda: machine.exec("sh", "-c", script).stdout == "",
        every_s=0.5,
        what="nothing is left in the guest",
    )


@ENDS
def test_bough_proxy_is_killed(cli: Cli, guest: bough.Machine, number: signal.Signals) -> None:
    pipe = subprocess.PIPE
    started = [
        cli.popen("proxy", guest.name, port, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        for port in ("7006", "7007")
    ]
    for proxy in started:
        assert proxy.stdout is not None
        assert proxy.stdout.readline() == b"hello\n"
        proxy.send_signal(number)
        proxy.communicate(timeout=20)
    wait_none(guest)


def test_a_reader_of_bough_proxy_goes(cli: Cli, guest: bough.Machine) -> None:
    """The input ends and no process reads the output, as after an ssh is killed."""
    proxy = cli.popen("proxy", guest.name, "7007", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert proxy.stdin is not None
    assert proxy.stdout is not None
    assert proxy.stdout.readline() == b"hello\n"
    proxy.stdout.close()
    proxy.stdin.close()
    proxy.wait(20)
    wait_none(guest)


@pytest.mark.parametrize("port", [7006, 7007], ids=["reads", "never looks"])
def test_tunnels_are_closed(guest: bough.Machine, port: int) -> None:
    for count in range(TIMES):
        tunnel = guest.tunnel(port)
        assert tunnel.recv() == b"hello\n"
        if count % 2:
            tunnel.shutdown_write()
        tunnel.close()
    wait_none(guest)


def test_commands_end_with_their_client(cli: Cli, guest: bough.Machine) -> None:
    for sleeper in [guest.spawn("sleep", f"100{count % 10}") for count in range(TIMES // 10)]:
        sleeper.close()
    for number in (signal.SIGKILL, signal.SIGHUP, signal.SIGTERM):
        words = ["exec", guest.name, "--", "sh", "-c", "echo; sleep 1003"]
        with cli.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(number)
    wait_none(guest)


def test_forwarded_connections_end_with_their_client(guest: bough.Machine) -> None:
    port = guest.forward(7006).host_port
    for count in range(TIMES):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
            assert link.recv(100) == b"hello\n"
            if count % 2:
                link.shutdown(socket.SHUT_WR)
    guest.unforward(port)
    wait_none(guest)


@ENDS
def test_an_export_is_killed(cli: Cli, guest: bough.Machine, tmp_path: Path, number: signal.Signals) -> None:
    """`nothing_left` finds leftovers of the export; the machine runs on."""
    # The export's snapshot is completed, although the client has gone.
    wait_until(lambda: _begin_export(cli, guest, tmp_path, number), what="an export begins")
    assert guest.exec("echo", "here", check=True).stdout == "here\n"


def _begin_export(cli: Cli, guest: bough.Machine, place: Path, number: signal.Signals) -> bool:
    """Begin an export and end it by that signal. Return False if it was refused."""
    exporting = cli.popen("export", guest.name, place / "guest.bough", stderr=subprocess.DEVNULL)
    wait_until(lambda: exporting.poll() is not None or bool(list(place.iterdir())))
    time.sleep(0.3)
    exporting.send_signal(number)
    for left in place.iterdir():
        left.unlink()
    return exporting.wait(20) != 1


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except ConnectionError:
        return False
    return True


ANYWHERE = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.create_server((sys.argv[1], 7070), family=family)
while True:
    link = server.accept()[0]
    link.sendall(link.getsockname()[0].encode())
    link.close()
"""


def test_a_port_waits_for_what_listens_in_the_guest(guest: bough.Machine) -> None:
    """A tool that waits for the port sees it refused until the server listens, on any address."""
    port = guest.forward(7070).host_port
    own = guest.exec("hostname", "-I", check=True).stdout.split()
    for address in ("127.0.0.1", "::1", "0.0.0.0", *own[:2]):
        assert not connects(port), address
        with guest.spawn("python3", "-c", ANYWHERE, address):
            wait_until(lambda: connects(port), timeout_s=20, what=f"{address} is reached")
            with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
                assert link.recv(100).decode() == ("127.0.0.1" if address == "0.0.0.0" else address)
        wait_until(lambda: not connects(port), timeout_s=20, what=f"{address} is refused")
    guest.unforward(port)


def test_ports_are_open_at_once_after_a_resume(fork: bough.Machine) -> None:
    port = fork.forward(22).host_port
    fork.suspend()
    assert not connects(port)
    fork.resume()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
        assert link.recv(4) == b"SSH-"


def test_what_is_typed_by_a_program_that_ends_at_once(fork: bough.Machine, cli: Cli) -> None:
    """The service sends the end of the console first, perhaps to a client that has typed all and is gone."""
    fork.shell(
        "systemctl stop serial-getty@ttyS0; setsid cat /dev/ttyS0 > /root/typed 2>/dev/null & "
        # The kernel drops bytes for a serial port that no process has open.
        "until ls -l /proc/$(pgrep -nx cat)/fd | grep -q ttyS0; do sleep 0.1; done",
        check=True,
        timeout=60,
    )
    for number in range(8):
        cli("console", fork.name, stdin=f"line {number}\r".encode())
    wait_until(lambda: len(fork.read_text("/root/typed").splitlines()) == 8, what="all lines were typed")
