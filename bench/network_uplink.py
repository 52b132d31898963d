"""Guests that reach the outside: through the uplink of their network, against an own card on the uplink.

The host's own address stands for the outside.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import bough
from bench.harness import Bench
from bench.machine import IMAGE
from bough.errors import NotFound

ABOUT = "a guest and the outside, through its network's uplink, against an own card on the uplink"
NAME = "bench-network-uplink"
_MEMORY = "256MiB"
_COMMAND_S = 60
_SIZE = 32 << 20
_ROUNDS = 5
_CLIENT = f"""
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
b, t, n = bytearray(1 << 20), time.monotonic(), 0
if sys.argv[3] == "out":
    s.sendall(b"o")
    for _ in range({_SIZE >> 20}):
        s.sendall(b)
    s.recv(1)
else:
    s.sendall(b"i")
    while n < {_SIZE} and (got := s.recv_into(b)):
        n += got
print(time.monotonic() - t)
"""
_CONNECT = """
import socket, sys, time
t = time.monotonic()
for _ in range(50):
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 20).close()
print((time.monotonic() - t) / 50)
"""


def run(bench: Bench) -> None:
    with _machines() as (through, own), _server() as (address, port):
        for direction, what in (("out", "to the outside"), ("in", "from the outside")):
            streams = bench.in_turns(
                f"{_SIZE >> 20} MiB by TCP {what}",
                ours=lambda way=direction: _stream_s(through, address, port, way),
                peer=lambda way=direction: _stream_s(own, address, port, way),
                what=("through the network", "own card"),
                rounds=_ROUNDS,
                warm_ups=1,
            )
            rate = _SIZE * 8 / streams.ours.median / 1e6
            assert streams.ratio is not None
            bench.note(f"{what}: {rate:.0f} Mbit/s, {1 / streams.ratio:.2f} of an own card's")
        bench.in_turns(
            "a TCP connection to the outside",
            ours=lambda: _connect_s(through, address, port),
            peer=lambda: _connect_s(own, address, port),
            what=("through the network", "own card"),
            rounds=_ROUNDS,
            warm_ups=1,
        )


@contextmanager
def _machines() -> Iterator[tuple[bough.Machine, bough.Machine]]:
    """Yield a machine on a network with an uplink, and one with a card on the uplink."""
    hv = bough.connect()
    hv.build_image(IMAGE)
    with suppress(NotFound):
        hv.network(NAME).delete()  # a run that was killed may have left it
    network = hv.create_network(NAME, internal=False)
    try:
        with ExitStack() as machines:
            yield _machine(hv, machines, NAME), _machine(hv, machines, "uplink")
    finally:
        network.delete()


def _machine(hv: bough.Hypervisor, machines: ExitStack, network: str) -> bough.Machine:
    machine = hv.run(IMAGE, memory=_MEMORY, nics=[network])
    machines.callback(machine.delete, force=True)  # waits for the end: the network is deleted next
    return machine


@contextmanager
def _server() -> Iterator[tuple[str, int]]:
    """Run a server on all addresses of the host. Yield an address that guests reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.200", 9))
        address = str(probe.getsockname()[0])
    with socket.create_server(("0.0.0.0", 0)) as server:
        threading.Thread(target=_serve, args=(server,), daemon=True).start()
        yield address, server.getsockname()[1]


def _serve(server: socket.socket) -> None:
    with suppress(OSError):  # closed at the end
        while True:
            connection, _ = server.accept()
            # An own thread for each: a connection that hangs holds up no other.
            threading.Thread(target=_serve_one, args=(connection,), daemon=True).start()


def _serve_one(connection: socket.socket) -> None:
    data, left = bytearray(1 << 20), _SIZE
    with connection, suppress(OSError):
        connection.settimeout(_COMMAND_S)
        if connection.recv(1) == b"i":
            for _ in range(_SIZE >> 20):
                connection.sendall(data)
            return
        while left > 0 and (got := connection.recv_into(data)):
            left -= got
        connection.sendall(b"x")


def _stream_s(machine: bough.Machine, address: str, port: int, direction: str) -> float:
    words = ("python3", "-c", _CLIENT, address, str(port), direction)
    return float(machine.exec(*words, check=True, timeout=_COMMAND_S).stdout)


def _connect_s(machine: bough.Machine, address: str, port: int) -> float:
    words = ("python3", "-c", _CONNECT, address, str(port))
    return float(machine.exec(*words, check=True, timeout=_COMMAND_S).stdout)
