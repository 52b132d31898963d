"""The uplink from inside, with frames that only a hostile guest would send."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bough.errors import HostLacks
from bough.networks.uplink import begin_uplink
from bough.qemu.jail import machine_uid
from bough.qemu.pid import Pid
from tests.machines.ethernet import EthernetGuest
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not shutil.which("passt"), reason="needs passt")

UID = machine_uid("uplink-test") if os.geteuid() == 0 else None


@contextlib.contextmanager
def uplink() -> Iterator[tuple[EthernetGuest, int]]:
    """Yield a guest at an uplink, and the process id of the uplink's filter."""
    asked = begin_uplink(machine_id="0123456789ab", uid=UID, groups=[])
    filtering = Pid.of(asked.started())
    assert filtering is not None
    try:
        with EthernetGuest(asked.end) as guest:
            yield guest, filtering.number
    finally:
        # The filter ends with its socket, without a kill.
        wait_until(lambda: not filtering.is_alive(), timeout_s=5)


def children_of(pid: int) -> list[int]:
    found = Pid.of(pid)
    return [child.number for child in found.children()] if found is not None else []


@contextlib.contextmanager
def listener(address: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        yield server.getsockname()[1]


def own_address() -> str | None:
    """Return the host's address of its route to the outside; None without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.200", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def own_address6() -> str | None:
    """Return the host's IPv6 address of its route to the outside; None without a route."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("2001:db8::9", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


needs_route = pytest.mark.skipif(own_address() is None, reason="this host has no route to anywhere")


@needs_route
def test_an_address_and_a_resolver_are_given_out() -> None:
    with uplink() as (guest, _):
        guest.get_address()
        assert (guest.address, guest.gateway) == ("10.0.2.15", "10.0.2.2")
        assert guest.resolvers == ["10.0.2.3"]


@needs_route
def test_the_outside_is_reached() -> None:
    """The host's own outside address stands for the internet, so that the test also runs offline."""
    with uplink() as (guest, _), listener("0.0.0.0") as port:
        guest.get_address()
        assert guest.connects(str(own_address()), port)


@needs_route
@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "0.0.0.0", "gateway"])
def test_the_hosts_loopback_is_out_of_reach(address: str) -> None:
    with uplink() as (guest, _), listener("127.0.0.1") as port:
        guest.get_address()
        destination = guest.gateway if address == "gateway" else address
        assert not guest.connects(destination, port)


@needs_route
@pytest.mark.parametrize("address", ["::1", "::", "::ffff:127.0.0.1"])
def test_the_hosts_loopback_is_out_of_reach_of_ipv6(address: str) -> None:
    with uplink() as (guest, _), listener("::1") as port:
        guest.get_address()
        assert not guest.connects(address, port)


@needs_route
def test_the_hosts_loopback_is_out_of_reach_of_udp() -> None:
    with uplink() as (guest, _), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        guest.get_address()
        guest.send_udp("127.0.0.1", server.getsockname()[1], b"hello")
        server.settimeout(0.5)
        with pytest.raises(TimeoutError):
            server.recv(100)


@needs_route
@pytest.mark.parametrize("address", ["neighbour", "255.255.255.255", "224.0.0.251", "gateway"])
def test_another_machines_uplink_is_out_of_reach(address: str) -> None:
    """Frames to another machine's address, or to all, never reach the other machine's card."""
    with uplink() as (guest, _), uplink() as (neighbour, _):
        guest.get_address()
        neighbour.get_address()
        places = {"neighbour": neighbour.address, "gateway": guest.gateway}
        mark = b"from the machine next door"
        for port in (7, 53, 68, 30000):
            guest.send_udp(places.get(address, address), port, mark)
        seen = []
        with contextlib.suppress(TimeoutError):
            while True:
                seen.append(neighbour._receive(1))
        assert not any(mark in frame for frame in seen)


@pytest.mark.skipif(UID is None, reason="only root changes its user")
@needs_route
def test_its_processes_run_as_the_machines_user() -> None:
    with uplink() as (guest, filtering):
        guest.get_address()  # now both processes run
        processes = [filtering, *children_of(filtering)]
        assert len(processes) == 2
        for process in processes:
            assert Path(f"/proc/{process}").stat().st_uid == UID


def test_a_guest_that_says_nothing_has_no_passt() -> None:
    with uplink() as (guest, filtering):
        guest.send_stream((14).to_bytes(4, "big") + bytes(14))  # a forbidden frame
        time.sleep(0.2)
        assert children_of(filtering) == []
        assert Path(f"/proc/{filtering}/comm").read_text() == "up-0123456789ab\n"
        guest.send_stream((42).to_bytes(4, "big") + bytes(12) + b"\x08\x06" + bytes(28))
        wait_until(lambda: len(children_of(filtering)) == 1)


def test_its_beginner_is_killed() -> None:
    """Existing uplinks keep running, and the next one starts."""
    with uplink() as (_, first):
        beginner = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(beginner, signal.SIGKILL)
        wait_until(lambda: Pid.of(beginner) is None)
        with uplink() as (_, second):
            assert Pid.of(first) is not None
            assert Pid.of(second) is not None


def test_there_is_no_passt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostLacks, match="passt is not installed"):
        begin_uplink(machine_id="0123456789ab", uid=UID, groups=[])


@pytest.mark.skipif(UID is None, reason="needs networks of its own")
def test_its_host_changes_networks() -> None:
    """The host starts offline, with a resolver on the loopback; see roaming.py."""
    script = Path(__file__).with_name("roaming.py")
    words = ["unshare", "--net", "--mount", sys.executable, str(script)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split("\n")[-2] == "all is right", done.stdout
