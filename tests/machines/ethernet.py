"""A fake guest that is only a network card. Like a hostile guest, it writes frames by hand."""

from __future__ import annotations

import socket
import struct
import time

MAC = bytes.fromhex("525400123456")
BROADCAST = b"\xff" * 6
SYN, SYN_ACK = 0x02, 0x12


class EthernetGuest:
    """A guest at QEMU's stream of frames. Use the class as a context manager."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.mac = MAC
        self.address = "0.0.0.0"
        self.address6 = "fd00::2"
        self.gateway = ""
        self.resolvers: list[str] = []
        self._gateway_mac = BROADCAST

    def __enter__(self) -> EthernetGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def send_stream(self, data: bytes) -> None:
        """Send a raw stream: frames, each after its length."""
        self._end.sendall(data)

    def get_address(self) -> None:
        """Get an address by DHCP; sets `address`, `gateway` and `resolvers`."""
        options = bytes.fromhex("63825363") + bytes([53, 1, 1, 55, 3, 1, 3, 6, 255])
        head = struct.pack("!BBBBIHH16s16s192s", 1, 1, 6, 0, 77, 0, 0x8000, b"", self.mac, b"")
        self._send_udp("255.255.255.255", 68, 67, head + options)
        while True:
            frame = self._receive(5)
            if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_UDP and frame[42] == 2:
                break
        reply = frame[42:]
        self._gateway_mac = frame[6:12]
        self.address = socket.inet_ntoa(reply[16:20])
        options, found = reply[240:], {}
        while options and options[0] != 255:
            found[options[0]] = options[2 : 2 + options[1]]
            options = options[2 + options[1] :]
        self.gateway = socket.inet_ntoa(found[3][:4])
        self.resolvers = [socket.inet_ntoa(found[6][i : i + 4]) for i in range(0, len(found.get(6, b"")), 4)]

    def connects(self, destination: str, port: int, *, timeout_s: float = 1.0) -> bool:
        """Return whether a TCP connection is accepted; False: refused, or no answer."""
        source_port = 30000 + port % 30000
        segment = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 0x50, SYN, 65535, 0, 0)
        self._send_ip(destination, socket.IPPROTO_TCP, segment, checksum_at=16)
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                frame = self._receive(left)
            except TimeoutError:
                return False
            flags = _tcp_flags(frame, source_port)
            if flags is not None:
                return flags == SYN_ACK
        return False

    def ask(self, message: bytes, *, timeout_s: float = 10.0) -> bytes:
        """Return the first resolver's answer to a DNS query. Raises TimeoutError."""
        self._send_udp(self.resolvers[0], 40001, 53, message)
        deadline = time.monotonic() + timeout_s
        parts: dict[int, bytes] = {}
        while True:
            frame = self._receive(max(0.01, deadline - time.monotonic()))
            resolver = socket.inet_aton(self.resolvers[0])
            if frame[12:14] != b"\x08\x00" or frame[26:30] != resolver or frame[23] != socket.IPPROTO_UDP:
                continue
            assert _checksum(frame[14:34]) == 0
            flags = int.from_bytes(frame[20:22], "big")
            parts[flags & 0x1FFF] = frame[34:]
            if flags & 0x2000 == 0:
                datagram = b"".join(parts[at] for at in sorted(parts))
                assert datagram[:8] == struct.pack("!HHHH", 53, 40001, len(datagram), 0)
                return datagram[8:]

    def send_udp(self, destination: str, port: int, data: bytes) -> None:
        self._send_udp(destination, 40000, port, data)

    def _send_udp(self, destination: str, source_port: int, port: int, data: bytes) -> None:
        datagram = struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data
        self._send_ip(destination, socket.IPPROTO_UDP, datagram, checksum_at=6)

    def _send_ip(self, destination: str, protocol: int, payload: bytes, *, checksum_at: int) -> None:
        if ":" in destination:
            source, target = (socket.inet_pton(socket.AF_INET6, a) for a in (self.address6, destination))
            header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + source + target
            kind = b"\x86\xdd"
        else:
            source, target = socket.inet_aton(self.address), socket.inet_aton(destination)
            header = (
                struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + source + target
            )
            header = _with_checksum(header, header, 10)
            kind = b"\x08\x00"
        pseudo = source + target + struct.pack("!HH", len(payload), protocol)
        payload = _with_checksum(payload, pseudo + payload, checksum_at)
        self.send_frame(self._gateway_mac + self.mac + kind + header + payload)

    def send_frame(self, frame: bytes) -> None:
        self._end.sendall(struct.pack("!I", len(frame)) + frame)

    def _receive(self, timeout_s: float) -> bytes:
        self._end.settimeout(timeout_s)
        (length,) = struct.unpack("!I", self._end.recv(4, socket.MSG_WAITALL))
        return self._end.recv(length, socket.MSG_WAITALL)


class NetworkGuest(EthernetGuest):
    """A guest at the port of a network's switch.

    Args:
        end: bound to the card's socket.
        switch: path of the switch's socket.
    """

    def __init__(self, end: socket.socket, mac: bytes, switch: str) -> None:
        super().__init__(end)
        self.mac = mac
        self._switch = switch

    def send_frame(self, frame: bytes) -> None:
        self._end.sendto(frame, self._switch)

    def _receive(self, timeout_s: float) -> bytes:
        self._end.settimeout(timeout_s)
        return self._end.recv(1 << 17)


def _tcp_flags(frame: bytes, port: int) -> int | None:
    """Return the flags of a segment to `port`; None for any other frame."""
    start = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14])
    if start is None or len(frame) < start + 20:
        return None
    protocol = frame[23] if start == 34 else frame[20]
    if protocol != socket.IPPROTO_TCP or int.from_bytes(frame[start + 2 : start + 4], "big") != port:
        return None
    return frame[start + 13]


def _with_checksum(data: bytes, over: bytes, at: int) -> bytes:
    return data[:at] + struct.pack("!H", _checksum(over)) + data[at + 2 :]


def _checksum(over: bytes) -> int:
    over += b"\0" * (len(over) % 2)
    total = sum(struct.unpack(f"!{len(over) // 2}H", over))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
