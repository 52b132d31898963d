"""Machines of a switch without machines: each is a datagram socket with a MAC address and frames by hand."""

from __future__ import annotations

import select
import socket
import struct
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from bough.networks.switch.fabric import Fabric
from bough.networks.switch.settings import Member, Settings, format_mac

SWITCH_MAC = bytes.fromhex("5254aa000001")
SWITCH = "10.9.0.1"
SETTINGS = Settings(
    network="back",
    mac=SWITCH_MAC,
    address=IPv4Interface(f"{SWITCH}/24"),
    address6=IPv6Interface("fd00:9::1/64"),
    domains=("back", "shop"),
)
BROADCAST = b"\xff" * 6
IPV4, IPV6, ARP = b"\x08\x00", b"\x86\xdd", b"\x08\x06"


class Peer:
    """The QEMU of a machine: it binds nic.sock, and sends to switch.sock.

    Attributes:
        ipv4, ipv6: the machine's addresses, packed.
    """

    def __init__(self, number: int, name: str, **more: object) -> None:
        self.mac = bytes.fromhex(f"5254000000{number:02x}")
        self.ipv4 = socket.inet_aton(f"10.9.0.{number}")
        self.ipv6 = socket.inet_pton(socket.AF_INET6, f"fd00:9::{number}")
        self.directory = Path(f"m{number}-1")
        self.directory.mkdir(exist_ok=True)
        names = (name, f"{name}.back", f"{name}.shop")
        addresses = (self.ipv4, self.ipv6)
        self.member = replace(Member(self.directory.name, self.mac, addresses, names), **more)
        self.socket = self.bind()

    @property
    def port(self) -> str:
        return self.directory.name

    def to_dict(self) -> dict[str, object]:
        return {
            "port": self.port,
            "mac": format_mac(self.mac),
            "addresses": [socket.inet_ntoa(self.ipv4), socket.inet_ntop(socket.AF_INET6, self.ipv6)],
            "names": list(self.member.names),
        }

    def bind(self) -> socket.socket:
        """Bind nic.sock anew, as the next QEMU of the machine does."""
        path = self.directory / "nic.sock"
        path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        return self.socket

    def send(self, frame: bytes) -> None:
        self.socket.sendto(frame, str(self.directory / "switch.sock"))

    def received(self) -> list[bytes]:
        """Return the frames that wait for the machine."""
        frames = []
        while True:
            try:
                frames.append(self.socket.recv(1 << 17))
            except BlockingIOError:
                return frames

    def frame(self, to: bytes, kind: bytes, body: bytes = b"") -> bytes:
        return to + self.mac + kind + body


class Segment:
    """A fabric that is stepped by hand, with its peers."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.poll = select.epoll()
        self.now_ns = 10**12
        self.fabric = Fabric(settings, self.poll, lambda: self.now_ns)

    def join(self, *peers: Peer) -> None:
        for peer in peers:
            self.fabric.attach(peer.member)

    def step(self) -> None:
        """Carry frames until none is ready."""
        while ready := self.poll.poll(0):
            for number, events in ready:
                act = self.fabric.owner_of(number, events)
                if act is not None:
                    act()

    def wait(self, time_s: float) -> None:
        """Let time pass, and deliver the late frames that are due then."""
        self.now_ns += round(time_s * 1e9)
        self.fabric.deliver()

    def dropped(self, peer: Peer) -> dict[str, int]:
        return next(port.dropped for port in self.fabric.ports() if port.name == peer.port)


def ipv4(source: bytes, destination: bytes, protocol: int = 1, body: bytes = b"12345678") -> bytes:
    size = (20 + len(body)).to_bytes(2, "big")
    return b"\x45\0" + size + bytes(5) + bytes((protocol,)) + bytes(2) + source + destination + body


def ipv6(source: bytes, destination: bytes, protocol: int, body: bytes) -> bytes:
    return b"\x60\0\0\0" + len(body).to_bytes(2, "big") + bytes((protocol, 255)) + source + destination + body


def udp(source: int, destination: int, body: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(body), 0) + body


def arp(operation: int, mac: bytes, sender: bytes, target: bytes, target_mac: bytes = bytes(6)) -> bytes:
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + sender + target_mac + target
