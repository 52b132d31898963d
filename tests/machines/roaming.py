"""A machine's uplink while its host changes networks. The program runs in separate namespaces.

The host is offline at first, and its resolver listens on the loopback, as in Ubuntu and Fedora.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bough.networks.uplink import begin_uplink  # noqa: E402
from bough.qemu.jail import machine_uid  # noqa: E402
from bough.qemu.pid import Pid  # noqa: E402
from tests.machines.ethernet import EthernetGuest  # noqa: E402

QUESTION = bytes.fromhex("beef01000001000000000000") + b"\x05bough\x04test\0\0\x01\0\x01"


def run(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True)


def serve_dns(address: str, mark: bytes) -> None:
    """Run a resolver that answers with the question and `mark`."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 53))

    def serve() -> None:
        while True:
            query, peer = sock.recvfrom(4096)
            sock.sendto(query[:2] + b"\x81\x80" + query[4:] + mark, peer)

    threading.Thread(target=serve, daemon=True).start()


def join_network(name: str, address: str, gateway: str) -> None:
    run(
        f"ip link add {name} type veth peer name {name}-far; ip link set {name}-far up;"
        f"ip address add {address}/24 dev {name}; ip link set {name} up; ip route add default via {gateway}"
    )


def listen(address: str) -> int:
    sock = socket.create_server((address, 0))
    threading.Thread(target=lambda: [sock.accept() for _ in range(1000)], daemon=True).start()
    return int(sock.getsockname()[1])


def check_loopback_is_closed(guest: EthernetGuest) -> None:
    for address in ("127.0.0.1", "127.0.0.53"):
        port = listen(address)
        for target in (address, "10.0.2.2", "10.0.2.3", "10.0.2.15"):
            assert not guest.connects(target, port, timeout_s=0.3), target
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.settimeout(0.3)
        for target in ("127.0.0.1", "10.0.2.2", "10.0.2.3"):
            guest.send_udp(target, other.getsockname()[1], QUESTION)
        try:
            raise AssertionError(other.recv(100))
        except TimeoutError:
            pass


def main() -> None:
    resolv_conf = Path(tempfile.mkstemp()[1])
    resolv_conf.chmod(0o644)
    resolv_conf.write_text("# of a stub\nnameserver 127.0.0.53\noptions edns0\n")
    run(f"ip link set lo up; mount --bind {resolv_conf} $(realpath /etc/resolv.conf)")
    serve_dns("127.0.0.53", b"from the loopback")
    asked = begin_uplink(machine_id="0123456789ab", uid=machine_uid("roaming"), groups=[])
    filtering = Pid.of(asked.started())
    assert filtering is not None
    with EthernetGuest(asked.end) as guest:
        guest.get_address()
        assert guest.ask(QUESTION).endswith(b"from the loopback")
        check_loopback_is_closed(guest)
        print("offline")

        join_network("first", "192.0.2.9", "192.0.2.1")
        assert guest.connects("192.0.2.9", listen("192.0.2.9"))
        print("in a network")

        run("ip link delete first")
        join_network("second", "198.51.100.7", "198.51.100.1")
        resolv_conf.write_text("nameserver 198.51.100.7\n")
        serve_dns("198.51.100.7", b"x" * 4000)
        assert guest.connects("198.51.100.7", listen("198.51.100.7"))
        assert guest.ask(QUESTION).endswith(b"x" * 4000)
        check_loopback_is_closed(guest)
        print("in another network")

        resolv_conf.write_text("nameserver 198.51.100.7\nnameserver 127.0.0.53\n")
        run("ip link delete second")
        assert guest.ask(QUESTION).endswith(b"from the loopback")
        resolv_conf.write_text("nameserver 198.51.100.7\nnameserver 127.0.0.54\n")
        assert guest.ask(QUESTION)[3] & 15 == 2, "SERVFAIL"
        print("offline again")

        (passt,) = filtering.children()
        os.kill(passt.number, signal.SIGKILL)
        join_network("third", "203.0.113.3", "203.0.113.1")
        deadline = time.monotonic() + 60
        # Another port each time: a connection that is established after its time-out gets no second answer.
        while not guest.connects("203.0.113.3", listen("203.0.113.3"), timeout_s=2):
            assert time.monotonic() < deadline, "passt is not started again"
        guest.get_address()
        print("with another passt")
    resolv_conf.unlink()
    print("all is right")


main()
