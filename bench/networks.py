"""Two guests on a network: throughput and round trips through the switch, against a direct link.

The direct link is between the same two machines: each QEMU sends to the other's socket, not to the switch's,
because the other's socket has that name for a while.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import bough
from bench.harness import Bench
from bench.machine import IMAGE
from bough.networks.switch_port import NIC_SOCKET, SWITCH_SOCKET

ABOUT = "two guests on a network, through its switch, against a direct link between their QEMUs"
NAME = "bench-network"
ROUNDS = 5
_SIZE = 64 << 20
_PORT = 7000
_SERVER = f"""
import socket, time
s = socket.create_server(("", {_PORT}))
while True:
    c = s.accept()[0]
    b, n, t = bytearray(1 << 20), 0, time.monotonic()
    while n < {_SIZE}:
        n += c.recv_into(b)
    c.sendall(repr(time.monotonic() - t).encode())
    c.close()
"""
_CLIENT = f"""
import socket, sys
s = socket.create_connection((sys.argv[1], {_PORT}), 60)
b = bytes(1 << 20)
for _ in range({_SIZE >> 20}):
    s.sendall(b)
print(s.recv(99).decode())
"""


def run(bench: Bench) -> None:
    for mtu in (1500, 9000, 65520):
        with _pair(mtu) as (hv, sender, receiver, address):
            sender.exec("ping", "-c", "2", address, check=True)
            link = _Link(hv, sender, receiver)
            bench.in_turns(
                f"{_SIZE >> 20} MiB by TCP, MTU {mtu}",
                ours=link.switched(lambda: _stream_s(sender, address)),
                peer=link.direct(lambda: _stream_s(sender, address)),
                what=("through the switch", "direct"),
                rounds=ROUNDS,
                warm_ups=1,
            )
            if mtu == 1500:
                bench.in_turns(
                    "round trip",
                    ours=link.switched(lambda: _round_trip_s(sender, address)),
                    peer=link.direct(lambda: _round_trip_s(sender, address)),
                    what=("through the switch", "direct"),
                    rounds=ROUNDS,
                    warm_ups=1,
                )


@contextlib.contextmanager
def _pair(mtu: int) -> Iterator[tuple[bough.Hypervisor, bough.Machine, bough.Machine, str]]:
    """Yield two machines on a network, and the address of the second."""
    hv = bough.connect()
    hv.build_image(IMAGE)
    network = hv.create_network(NAME, mtu=mtu)
    machines = []
    try:
        for name in ("bench-net-a", "bench-net-b"):
            machines.append(hv.run(IMAGE, name=name, memory="512MiB", nics=[NAME]))
        sender, receiver = machines
        receiver.exec("systemd-run", "--unit=bench", "python3", "-c", _SERVER, check=True)
        address = next(one["ipv4"] for one in network.info().machines if one["machine"] == receiver.name)
        yield hv, sender, receiver, address
    finally:
        for machine in machines:
            machine.delete(force=True)
        network.delete()


def _stream_s(sender: bough.Machine, address: str) -> float:
    return float(sender.exec("python3", "-c", _CLIENT, address, check=True).stdout)


def _round_trip_s(sender: bough.Machine, address: str) -> float:
    told = sender.exec("ping", "-c", "100", "-i", "0.01", "-q", address, check=True).stdout
    found = re.search(r"= [\d.]+/([\d.]+)/", told)
    assert found is not None, told
    return float(found[1]) / 1000


class _Link:
    """The link between two machines, through the switch or direct."""

    def __init__(self, hv: bough.Hypervisor, one: bough.Machine, other: bough.Machine) -> None:
        (network,) = hv.home.runtime.joinpath("networks").iterdir()
        self._ports = [network / f"{machine.id}-nic0" for machine in (one, other)]
        for port in self._ports:
            os.link(port / SWITCH_SOCKET, port / "kept")

    def switched(self, work: Callable[[], float]) -> Callable[[], float]:
        return lambda: self._over([port / "kept" for port in self._ports], work)

    def direct(self, work: Callable[[], float]) -> Callable[[], float]:
        return lambda: self._over([port / NIC_SOCKET for port in self._ports[::-1]], work)

    def _over(self, sockets: list[Path], work: Callable[[], float]) -> float:
        for port, socket in zip(self._ports, sockets, strict=True):
            os.link(socket, port / "next")
            (port / "next").rename(port / SWITCH_SOCKET)
            (port / "next").unlink(missing_ok=True)  # rename leaves two names of one socket alone
        return work()
