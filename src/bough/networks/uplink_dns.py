"""DNS queries of a guest, carried to whatever resolver the host has.

DHCP tells the guest one resolver, `RESOLVER`. A query to that address is sent on from a socket of the host to
the resolvers that /etc/resolv.conf of the host names at that moment: one on its loopback (127.0.0.53) as
well as one of a network that the host has just joined. The guest reaches nothing else of the loopback that
way: only DNS queries are sent on, and to port 53.

Runs in the uplink's filter: standard library only.
"""

from __future__ import annotations

# Not socket: it takes as long to load as the interpreter.
import _socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: The guest's resolver, and the port of DNS.
RESOLVER = "10.0.2.3"
_PORT = 53
_RESOLV_CONF = "/etc/resolv.conf"
#: As the C library: so many resolvers are asked, one after the other, and this one where none is named.
_MAX_RESOLVERS = 3
_DEFAULT_RESOLVER = b"127.0.0.1"
_RESOLVER_TIMEOUT_S = 3.0
_MAX_PENDING = 256
_MAX_QUERY_BYTES = 4096
_HEADER_BYTES = 12
_IPV4 = b"\x08\x00"
_UDP = 17
#: Of IP's data, in the guest's network of 1500 bytes; divisible by 8.
_FRAGMENT_BYTES = 1480
_MORE_FRAGMENTS = 0x2000
_SERVFAIL = 2
_ADDRESS = _socket.inet_aton(RESOLVER)


class Query:
    """One that waits for its answer.

    Attributes:
        socket: connected to the resolver that is asked.
        deadline: when the next resolver is asked.
    """

    def __init__(self, frame: bytes, source: bytes, port: bytes, message: bytes) -> None:
        self.socket: _socket.socket | None = None
        self.deadline = 0.0
        self.message = message
        self._macs = frame[6:12] + frame[:6]
        self._source = source
        self._port = port
        self._resolvers = iter(read_resolvers())

    def ask_next(self) -> bool:
        """Send it to the next resolver. False: there is none left."""
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
        """None: it is no answer to this query. Raises OSError: the resolver is not there."""
        assert self.socket is not None
        data = self.socket.recv(65535)
        is_answer = len(data) >= _HEADER_BYTES and data[:2] == self.message[:2] and data[2] & 0x80
        return data if is_answer else None

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def failure(self) -> bytes:
        """The answer where no resolver gave one: the header, with that code and no records."""
        flags = bytes((self.message[2] | 0x80, 0x80 | _SERVFAIL))
        return self.message[:2] + flags + bytes(8)

    def frames(self, answer: bytes) -> bytes:
        """The frames that carry it to the guest, each after its length."""
        # An UDP checksum of zeros is none, which IPv4 allows.
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
        end = _ADDRESS + self._source
        total = sum(int.from_bytes((start + b"\x40\x11" + end)[at : at + 2], "big") for at in range(0, 18, 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return start + b"\x40\x11" + (~total & 0xFFFF).to_bytes(2, "big") + end


class Forwarder:
    """The queries of one guest that are under way."""

    def __init__(self) -> None:
        self._pending: list[Query] = []
        self._failed: list[bytes] = []

    def take(self, frame: memoryview) -> bool:
        """Whether it is a query, which is then on its way."""
        query = parse_query(frame)
        if query is None:
            return False
        if len(self._pending) < _MAX_PENDING:  # a guest that sends more asks again, as for any that is lost
            self._ask(query)
        return True

    def sockets(self) -> list[_socket.socket]:
        """What to wait for."""
        return [query.socket for query in self._pending if query.socket is not None]

    def wait_s(self) -> float | None:
        """How long; None: for as long as it takes."""
        if self._failed:
            return 0.0
        if not self._pending:
            return None
        return max(0.0, min(query.deadline for query in self._pending) - time.monotonic())

    def answers(self, readable: list[_socket.socket]) -> bytes:
        """Frames for the guest."""
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


def parse_query(frame: memoryview) -> Query | None:
    """A whole UDP packet to RESOLVER's port 53 with a DNS query in it; None for any other frame."""
    if len(frame) < 42 or frame[12:14] != _IPV4 or frame[14] >> 4 != 4 or frame[30:34] != _ADDRESS:
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
    return Query(bytes(frame[:12]), bytes(frame[26:30]), bytes(frame[udp : udp + 2]), message)


def resolver_names(path: str = _RESOLV_CONF) -> list[bytes]:
    """The addresses of the host's resolvers, as they are written there now."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            lines = file.read(1 << 16).splitlines()
    except OSError:
        lines = []
    words = [line.split() for line in lines]
    named = [each[1] for each in words if len(each) > 1 and each[0] == b"nameserver"]
    return named[:_MAX_RESOLVERS] or [_DEFAULT_RESOLVER]


def read_resolvers(path: str = _RESOLV_CONF) -> Iterator[tuple[int, tuple[object, ...]]]:
    """Family and address of each resolver of the host, as they are now."""
    for name in resolver_names(path):
        try:
            # As bytes: for text Python loads a codec, from files that the machine's user may not read.
            found = _socket.getaddrinfo(name, _PORT, 0, _socket.SOCK_DGRAM, 0, _socket.AI_NUMERICHOST)
        except (OSError, ValueError):
            continue
        for family, _, _, _, address in found:
            yield family, address
