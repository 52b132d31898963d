"""Forward a guest's DNS queries to the host's resolvers.

DHCP gives the guest one resolver: `RESOLVER`, or the switch's address on a network with an uplink. The filter
forwards each query to this address from a socket of the host. The filter asks the current resolvers of the
host's /etc/resolv.conf. A resolver may be on the host's loopback (127.0.0.53), or in a newly joined network.
The guest has no other access to the loopback: only DNS queries are forwarded, and only to port 53.

This module runs in the uplink's filter: standard library only.
"""

from __future__ import annotations

# Not `socket`: its import takes as long as the start of the interpreter.
import _socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: The guest's resolver. _PORT is the port of DNS.
RESOLVER = "10.0.2.3"
_PORT = 53
_RESOLV_CONF = "/etc/resolv.conf"
#: As in the C library: the number of resolvers to ask in turn, and the resolver if the file names none.
_MAX_RESOLVERS = 3
_DEFAULT_RESOLVER = b"127.0.0.1"
_RESOLVER_TIMEOUT_S = 3.0
_MAX_PENDING = 256
_MAX_QUERY_BYTES = 4096
_HEADER_BYTES = 12
_IPV4 = b"\x08\x00"
_UDP = 17
#: IP payload of a fragment in the guest's network (MTU 1500 bytes). Divisible by 8.
_FRAGMENT_BYTES = 1480
_MORE_FRAGMENTS = 0x2000
_SERVFAIL = 2


class Query:
    """A query without an answer so far.

    Attributes:
        socket: connected to the current resolver.
        deadline: time of the switch to the next resolver.

    Args:
        ends: the sender's address, and the address that the query went to.
    """

    def __init__(self, frame: bytes, ends: bytes, port: bytes, message: bytes) -> None:
        self.socket: _socket.socket | None = None
        self.deadline = 0.0
        self.message = message
        self._macs = frame[6:12] + frame[:6]
        self._ends = ends[4:] + ends[:4]
        self._port = port
        self._resolvers = iter(read_resolvers())

    def ask_next(self) -> bool:
        """Send the query to the next resolver. Return False after the last resolver."""
        self.close()
        for family, address in self._resolvers:
            try:
                sock = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
            except OSError:
                continue
            try:
                sock.setblocking(False)
                sock.connect(address)
                sock.send(self.message)
            except OSError:
                sock.close()
                continue
            self.socket = sock
            self.deadline = time.monotonic() + _RESOLVER_TIMEOUT_S
            return True
        return False

    def read_answer(self) -> bytes | None:
        """Return the resolver's answer; None: the datagram is no answer to the query.

        Raises:
            OSError: the resolver is not reachable.
        """
        assert self.socket is not None
        data = self.socket.recv(65535)
        is_answer = len(data) >= _HEADER_BYTES and data[:2] == self.message[:2] and data[2] & 0x80
        return data if is_answer else None

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def failure(self) -> bytes:
        """Return the answer if no resolver answered: a header with SERVFAIL, without records."""
        flags = bytes((self.message[2] | 0x80, 0x80 | _SERVFAIL))
        return self.message[:2] + flags + bytes(8)

    def frames(self, answer: bytes) -> bytes:
        """Return the frames with the answer to the guest, each after its length."""
        # A UDP checksum of zero means "no checksum". IPv4 allows zero.
        datagram = (
            _PORT.to_bytes(2, "big") + self._port + (8 + len(answer)).to_bytes(2, "big") + b"\0\0" + answer
        )
        made = []
        for at in range(0, len(datagram), _FRAGMENT_BYTES):
            part = datagram[at : at + _FRAGMENT_BYTES]
            flags = at // 8 | (_MORE_FRAGMENTS if at + len(part) < len(datagram) else 0)
            packet = self._header(len(part), flags) + part
            made.append((14 + len(packet)).to_bytes(4, "big") + self._macs + _IPV4 + packet)
        return b"".join(made)

    def _header(self, length: int, flags: int) -> bytes:
        start = b"\x45\0" + (20 + length).to_bytes(2, "big") + self.message[:2] + flags.to_bytes(2, "big")
        end = self._ends
        total = sum(int.from_bytes((start + b"\x40\x11" + end)[at : at + 2], "big") for at in range(0, 18, 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return start + b"\x40\x11" + (~total & 0xFFFF).to_bytes(2, "big") + end


class Forwarder:
    """The pending queries of one guest.

    Args:
        resolver: the address that queries go to.
    """

    def __init__(self, resolver: str = RESOLVER) -> None:
        self._address = _socket.inet_aton(resolver)
        self._pending: list[Query] = []
        self._failed: list[bytes] = []

    def take(self, frame: memoryview) -> bool:
        """Forward a frame with a query. Return whether the frame has a query."""
        query = parse_query(frame, self._address)
        if query is None:
            return False
        # above the limit a query is dropped; the guest repeats lost queries
        if len(self._pending) < _MAX_PENDING:
            self._ask(query)
        return True

    def sockets(self) -> list[_socket.socket]:
        """Return the sockets to wait for."""
        return [query.socket for query in self._pending if query.socket is not None]

    def wait_s(self) -> float | None:
        """Return the longest time to wait, in seconds; None: no limit."""
        if self._failed:
            return 0.0
        if not self._pending:
            return None
        return max(0.0, min(query.deadline for query in self._pending) - time.monotonic())

    def answers(self, readable: list[_socket.socket]) -> bytes:
        """Return frames for the guest: answers, and failures of queries that no resolver answered."""
        frames, self._failed = self._failed, []
        now = time.monotonic()
        for query in list(self._pending):
            if query.socket in readable:
                try:
                    answer = query.read_answer()
                except OSError:
                    self._pending.remove(query)
                    self._ask(query)
                    continue
                if answer is not None:
                    self._pending.remove(query)
                    query.close()
                    frames.append(query.frames(answer))
            elif query.deadline <= now:
                self._pending.remove(query)
                self._ask(query)
        return b"".join(frames)

    def close(self) -> None:
        for query in self._pending:
            query.close()
        self._pending.clear()

    def _ask(self, query: Query) -> None:
        if query.ask_next():
            self._pending.append(query)
        else:
            self._failed.append(query.frames(query.failure()))


def parse_query(frame: memoryview, address: bytes) -> Query | None:
    """Return the DNS query in an unfragmented UDP packet to `address`, port 53; None for other frames."""
    if len(frame) < 42 or frame[12:14] != _IPV4 or frame[14] >> 4 != 4 or frame[30:34] != address:
        return None
    udp = 14 + (frame[14] & 15) * 4
    in_parts = int.from_bytes(frame[20:22], "big") & 0x3FFF
    if frame[23] != _UDP or in_parts or udp < 34 or len(frame) < udp + 8:
        return None
    end = udp + int.from_bytes(frame[udp + 4 : udp + 6], "big")
    if int.from_bytes(frame[udp + 2 : udp + 4], "big") != _PORT or end > len(frame):
        return None
    message = bytes(frame[udp + 8 : end])
    if not _HEADER_BYTES <= len(message) <= _MAX_QUERY_BYTES or message[2] & 0x80:
        return None
    return Query(bytes(frame[:12]), bytes(frame[26:34]), bytes(frame[udp : udp + 2]), message)


def resolver_names(path: str = _RESOLV_CONF) -> list[bytes]:
    """Return the addresses of the host's resolvers, read from resolv.conf at each call."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            lines = file.read(1 << 16).splitlines()
    except OSError:
        lines = []
    words = [line.split() for line in lines]
    named = [each[1] for each in words if len(each) > 1 and each[0] == b"nameserver"]
    return named[:_MAX_RESOLVERS] or [_DEFAULT_RESOLVER]


def read_resolvers(path: str = _RESOLV_CONF) -> Iterator[tuple[int, tuple[object, ...]]]:
    """Yield family and address of each resolver of the host."""
    for name in resolver_names(path):
        try:
            # Pass bytes: for str Python loads a codec, from files that the machine's user may not read.
            found = _socket.getaddrinfo(name, _PORT, 0, _socket.SOCK_DGRAM, 0, _socket.AI_NUMERICHOST)
        except (OSError, ValueError):
            continue
        for family, _, _, _, address in found:
            yield family, address
