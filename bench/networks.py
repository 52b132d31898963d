"""Guests on a network: throughput and round trips, against a direct link, and with 2 to 30 machines.

The direct link is between the same two machines: each QEMU sends to the other's socket, not to the switch's,
because the other's socket has that name for a while. The run ends within MOST_S and one figure: when the time
is used up, the rest is left out, and a note names what is missing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import bough
from bench.harness import Bench, Comparison
from bench.machine import IMAGE
from bough.errors import NotFound
from bough.networks.switch_port import NIC_SOCKET, SWITCH_SOCKET

ABOUT = "guests on a network, through its switch, against a direct link between their QEMUs"
NAME = "bench-network"
#: Frames of these sizes, and the rounds of each.
ROUNDS = {1500: 5, 9000: 3, 65520: 3}
#: Machines on the network when the growth is measured.
COUNTS = (2, 5, 10, 20, 30)
MOST_S = 420.0
LEAST_THROUGHPUT, MOST_ROUND_TRIP = 0.9, 1.5
_MEMORY = "256MiB"
_IDLE_S = 10
#: No single command may take longer. A stream or a ping takes 1 to 4 s.
_COMMAND_S = 60
_SIZE = 64 << 20
_PORT = 7000
_SERVER = f"""
import socket, time
s = socket.create_server(("", {_PORT}))
while True:
    c = s.accept()[0]
    c.settimeout(20)
    b, n, t = bytearray(1 << 20), 0, time.monotonic()
    try:
        while n < {_SIZE} and (got := c.recv_into(b)):
            n += got
        c.sendall(repr(time.monotonic() - t).encode())
    except OSError:
        pass
    c.close()
"""
_CLIENT = f"""
import socket, sys
s = socket.create_connection((sys.argv[1], {_PORT}), 20)
b = bytes(1 << 20)
for _ in range({_SIZE >> 20}):
    s.sendall(b)
print(s.recv(99).decode())
"""


def run(bench: Bench) -> None:
    ends = time.monotonic() + MOST_S
    for mtu, rounds in ROUNDS.items():
        with _network(mtu) as (hv, network), ExitStack() as machines:
            sender, receiver = (_machine(hv, machines) for _ in range(2))
            address = _serve(receiver, network)
            link = _Link(hv, network, sender, receiver)
            _compare(bench, link, sender, address, mtu, rounds)
            if mtu == 1500:
                link.switched(lambda: 0.0)()
                _look_idle(bench, hv, network)
                _grow(bench, hv, machines, sender, address, ends)
        if time.monotonic() > ends:
            bench.note(f"no time was left for frames above {mtu} bytes")
            return


def _compare(bench: Bench, link: _Link, sender: bough.Machine, address: str, mtu: int, rounds: int) -> None:
    """Compare the switch with the direct link, in turns."""
    what = ("through the switch", "direct")
    streams = bench.in_turns(
        f"{_SIZE >> 20} MiB by TCP, MTU {mtu}",
        ours=link.switched(lambda: _stream_s(sender, address)),
        peer=link.direct(lambda: _stream_s(sender, address)),
        what=what,
        rounds=rounds,
        warm_ups=1,
    )
    share = 1 / _ratio(streams)
    bench.note(f"MTU {mtu}: {_mbit(streams.ours.median)}, {share:.2f} of the direct link{_asked(mtu)}")
    if mtu == 1500:
        trips = bench.in_turns(
            "round trip",
            ours=link.switched(lambda: _round_trip_s(sender, address)),
            peer=link.direct(lambda: _round_trip_s(sender, address)),
            what=what,
            rounds=rounds,
            warm_ups=1,
        )
        bench.note(f"a round trip takes {_ratio(trips):.2f} of the direct link's (at most {MOST_ROUND_TRIP})")


def _asked(mtu: int) -> str:
    return f" (at least {LEAST_THROUGHPUT})" if mtu == 1500 else ""


def _ratio(comparison: Comparison) -> float:
    assert comparison.ratio is not None
    return comparison.ratio


def _mbit(seconds: float) -> str:
    return f"{_SIZE * 8 / seconds / 1e6:.0f} Mbit/s"


def _look_idle(bench: Bench, hv: bough.Hypervisor, network: bough.Network) -> None:
    """Measure the switch's processor time while no program sends."""
    process = hv.home.network(network.info().id).process
    pid = int(process.read_text().split()[1])
    before = _processor_s(pid)
    time.sleep(_IDLE_S)
    bench.note(f"the idle switch takes {(_processor_s(pid) - before) / _IDLE_S:.2%} of a core")


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _grow(
    bench: Bench, hv: bough.Hypervisor, machines: ExitStack, sender: bough.Machine, address: str, ends: float
) -> None:
    """Add idle machines to the network, and measure between the same two."""
    present = 2
    for count in COUNTS:
        while present < count and time.monotonic() < ends:
            _machine(hv, machines)
            present += 1
        if present < count:
            bench.note(f"no time was left for {count} machines and more; {present} are on the network")
            return
        streams = [_stream_s(sender, address) for _ in range(3)]
        trips = [_round_trip_s(sender, address) for _ in range(3)]
        rate, trip = _SIZE * 8 / sorted(streams)[1] / 1e6, sorted(trips)[1] * 1000
        bench.curve("throughput by machines on the network", "machines", "Mbit/s", [(count, rate)])
        bench.curve("round trip by machines on the network", "machines", "ms", [(count, trip)])


@contextmanager
def _network(mtu: int) -> Iterator[tuple[bough.Hypervisor, bough.Network]]:
    hv = bough.connect()
    hv.build_image(IMAGE)
    with suppress(NotFound):
        hv.network(NAME).delete()  # a run that was killed may have left it
    network = hv.create_network(NAME, mtu=mtu)
    try:
        yield hv, network
    finally:
        network.delete()


def _machine(hv: bough.Hypervisor, machines: ExitStack) -> bough.Machine:
    """Return a machine on the network alone. It is deleted with `machines`, and when this program ends."""
    machine = hv.run(IMAGE, memory=_MEMORY, nics=[NAME])
    machines.callback(machine.delete, force=True)  # waits for the end: the network is deleted next
    return machine


def _serve(receiver: bough.Machine, network: bough.Network) -> str:
    """Start the server. Return the receiver's address."""
    receiver.exec("systemd-run", "--unit=bench", "python3", "-c", _SERVER, check=True, timeout=_COMMAND_S)
    receiver.wait_for_open_port(_PORT, timeout=_COMMAND_S)
    found = {one["machine"]: one["ipv4"] for one in network.info().machines}
    return str(found[receiver.info().name])


def _stream_s(sender: bough.Machine, address: str) -> float:
    """Return the seconds that the receiver has measured."""
    done = sender.exec("python3", "-c", _CLIENT, address, check=True, timeout=_COMMAND_S)
    return float(done.stdout)


def _round_trip_s(sender: bough.Machine, address: str) -> float:
    words = ("ping", "-c", "100", "-i", "0.01", "-q", "-w", "30", address)
    told = sender.exec(*words, check=True, timeout=_COMMAND_S).stdout
    found = re.search(r"= [\d.]+/([\d.]+)/", told)
    assert found is not None, told
    return float(found[1]) / 1000


class _Link:
    """The link between two machines, through the switch or direct."""

    def __init__(
        self, hv: bough.Hypervisor, network: bough.Network, one: bough.Machine, other: bough.Machine
    ) -> None:
        paths = hv.home.network(network.info().id)
        self._ports = [paths.port(f"{machine.info().id}-nic0") for machine in (one, other)]
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
