"""The uplink from inside, by frames that only a hostile guest would send."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bough.networks.uplink import start_uplink
from bough.qemu.jail import machine_uid
from tests.machines.ethernet import EthernetGuest

pytestmark = pytest.mark.skipif(not shutil.which("passt"), reason="needs passt")

UID = machine_uid("uplink-test") if os.geteuid() == 0 else None


@contextlib.contextmanager
def uplink() -> Iterator[tuple[EthernetGuest, list[subprocess.Popen[bytes]]]]:
    end, processes = start_uplink(machine_id="uplink-test", uid=UID)
    try:
        with EthernetGuest(end) as guest:
            yield guest, processes
    finally:
        for process in processes:
            # The socket's end is theirs: nobody has to kill them.
            process.wait(timeout=5)


@contextlib.contextmanager
def listener(address: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        yield server.getsockname()[1]


def has_route() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.200", 9))
        except OSError:
            return False
    return True


needs_route = pytest.mark.skipif(not has_route(), reason="this host has no route to anywhere")


@needs_route
def test_an_address_and_a_resolver_are_given_out() -> None:
    with uplink() as (guest, _):
        guest.get_address()
        assert guest.address != "0.0.0.0"
        assert guest.gateway


@needs_route
def test_the_outside_is_reached() -> None:
    """The host's own outside address stands for it: it is there even where the internet is not."""
    with uplink() as (guest, _), listener("0.0.0.0") as port:
        guest.get_address()
        assert guest.connects(guest.address, port)


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
    """Whatever one sends to the other's address or to all: the other's card sees none of it."""
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
def test_its_processes_run_as_the_machines_user() -> None:
    with uplink() as (guest, processes):
        if has_route():
            guest.get_address()  # they are up then
            for process in processes:
                assert Path(f"/proc/{process.pid}").stat().st_uid == UID
