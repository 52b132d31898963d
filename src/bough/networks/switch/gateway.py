"""The switch as the gateway of machines that reach the outside through the network.

    QEMU ── port ── the switch ── a stream of frames ── the machine's uplink process ── sockets of the host

Each of these machines has an uplink process of its own (see uplink_filter.py), which the service starts and
connects to the machine's port. So machines share no connections, and the switch translates no addresses.

A frame leaves if it is for the switch's MAC address, comes from the machine's own address, and is for an
address that is neither of the network nor of one link alone. A frame enters if it is for the machine's own
address. Ethernet addresses of the outside are replaced.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections import Counter
from collections.abc import Iterable

from bough.networks.frame_stream import LENGTH_BYTES, Frames, split_frames
from bough.networks.switch.guard import IPV4, IPV6
from bough.networks.switch.port import QUEUE_FULL, Port
from bough.networks.switch.settings import Member, Settings

#: Reason for dropped frames: the machine's uplink process has ended, and the next one has not begun.
NO_UPLINK = "no_uplink"
_CHUNK_BYTES = 1 << 16
#: The largest packet of IPv4, and its Ethernet header.
_MOST_BYTES = 14 + 65535
_IPV4_BYTES, _IPV6_BYTES = 34, 54
#: First bytes of addresses that a gateway does not forward: "this" network, the loopback, groups and above.
_THIS, _LOOPBACK, _GROUPS = 0, 127, 224
_LINK_LOCAL = b"\xa9\xfe"
#: The same of IPv6: groups, fe80::/10, and ::/80 with the loopback and IPv4's addresses.
_GROUPS6, _LINK_LOCAL6, _NO_NETWORK = 0xFF, b"\xfe\x80", 10
_PREFIX_BYTES = 8


class Gateway:
    """Tells which frames leave and enter the network."""

    def __init__(self, settings: Settings) -> None:
        network = settings.address.network
        self._mac = settings.mac
        self._own = settings.address.ip.packed
        self._mask, self._network = int(network.netmask), int(network.network_address)
        self._prefix6 = settings.address6.network.network_address.packed[:_PREFIX_BYTES]

    def leaves(self, frame: bytes, member: Member) -> bool:
        """Return whether a frame of the machine is for the outside. The guard has checked the headers."""
        if frame[:6] != self._mac:
            return False
        if frame[12:14] == IPV4:
            return frame[26:30] == member.ipv4 and self._is_outside(frame[30:34])
        if frame[12:14] == IPV6 and member.gateway6:
            return frame[22:38] == member.ipv6 and self._is_outside6(frame[38:54])
        return False

    def enter(self, frame: bytes, member: Member) -> bytes | None:
        """Return a frame of the outside as the machine gets it; None: the frame is not for the machine."""
        if len(frame) > _MOST_BYTES:
            return None
        if frame[12:14] == IPV4 and len(frame) >= _IPV4_BYTES:
            source = frame[26:30]
            enters = frame[30:34] == member.ipv4 and (self._is_outside(source) or source == self._own)
        elif frame[12:14] == IPV6 and len(frame) >= _IPV6_BYTES and member.gateway6:
            enters = frame[38:54] == member.ipv6 and self._is_outside6(frame[22:38])
        else:
            return None
        return member.mac + self._mac + frame[12:] if enters else None

    def _is_outside(self, address: bytes) -> bool:
        """Return whether a gateway forwards to the IPv4 address, and the address is not of the network."""
        if address[0] in (_THIS, _LOOPBACK) or address[0] >= _GROUPS or address[:2] == _LINK_LOCAL:
            return False
        return int.from_bytes(address, "big") & self._mask != self._network

    def _is_outside6(self, address: bytes) -> bool:
        """Return the same of an IPv6 address. The uplink's filter drops addresses that hide IPv4's."""
        first = address[0]
        is_on_link = first == _GROUPS6 or (first == _LINK_LOCAL6[0] and address[1] & 0xC0 == _LINK_LOCAL6[1])
        return not is_on_link and any(address[:_NO_NETWORK]) and address[:_PREFIX_BYTES] != self._prefix6


class Outside:
    """The connection to the uplink process of one machine: the other end of the machine's links to the
    outside.

    Frames wait here while the process does not read, up to `queue_bytes`.

    Attributes:
        pid: the uplink process.
        dropped: the counters of the machine's port.
    """

    label = "outside"

    def __init__(
        self, port: Port, pid: int, sock: socket.socket, poll: select.epoll, queue_bytes: int
    ) -> None:
        self.name = f"{port.name}.{self.label}"
        self.pid = pid
        self.dropped: Counter[str] = port.dropped
        self._socket = sock
        self._poll = poll
        self._most_bytes = queue_bytes
        self._frames = Frames()
        self._queue = bytearray()
        self._events = self._reading = select.EPOLLIN
        sock.setblocking(False)
        poll.register(sock, self._events)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, frame: bytes) -> None:
        """Send a frame to the outside, or queue it, or drop it. Never waits.

        A broken connection shows itself at the next `receive`.
        """
        if len(self._queue) + len(frame) > self._most_bytes:
            self.dropped[QUEUE_FULL] += 1
            return
        self._queue += len(frame).to_bytes(LENGTH_BYTES, "big") + frame
        # The process reads as soon as the machine's turn is over: all frames of a turn leave by one call.
        self._follow()

    def send_all(self, frames: Iterable[bytes]) -> None:
        for frame in frames:
            self.send(frame)

    def flush(self) -> None:
        """Send what waits, as far as the process reads. Raises OSError: the process has ended."""
        if self._queue:
            with contextlib.suppress(BlockingIOError):
                sent = self._socket.send(self._queue)
                del self._queue[:sent]
        self._follow()

    def receive(self) -> list[bytes]:
        """Return the frames that have come.

        Raises:
            OSError: the process has ended. ValueError: the data is no stream of frames.
        """
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError
        return split_frames(self._frames.feed(data))

    def read(self, reads: bool) -> None:
        """Receive frames from now on, or leave them to wait in the process."""
        self._reading = select.EPOLLIN if reads else 0
        self._follow()

    def close(self) -> None:
        self._poll.unregister(self._socket)
        self._socket.close()

    def _follow(self) -> None:
        events = self._reading | (select.EPOLLOUT if self._queue else 0)
        if events != self._events:
            self._events = events
            self._poll.modify(self._socket, events)
