"""Frames in the form of pcapng, which Wireshark and tcpdump read.

A capture names each port, and carries the names of all addresses, so that a reader shows names without a
resolver. (IETF draft-ietf-opsawg-pcapng: section, interface, name resolution and enhanced packet blocks.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from bough.networks.switch.settings import Member, Settings

_SECTION, _INTERFACE, _NAMES, _PACKET = 0x0A0D0D0A, 1, 4, 6
_ETHERNET = 1
_IPV4_RECORD, _IPV6_RECORD = 1, 2
_INTERFACE_NAME, _RESOLUTION, _HARDWARE, _PROGRAM, _DROPPED = 2, 9, 3, 4, 4
_NANOSECONDS = b"\x09"
#: Name of the switch among the interfaces.
_SWITCH = "switch"


class Capture:
    """The state of one capture: the interfaces known to the reader, and the frames missed by the reader."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._interfaces: dict[str, int] = {}
        self._missed = 0

    def begin(self, members: Sequence[Member]) -> bytes:
        """Return the beginning of the capture."""
        program = _option(_PROGRAM, b"bough") + _option(_HARDWARE, self._settings.network.encode())
        start = _block(_SECTION, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1) + program + _END)
        interfaces = b"".join(self._interface(name) for name in [_SWITCH, *map(_name, members)])
        return start + interfaces + self.names(members)

    def names(self, members: Sequence[Member]) -> bytes:
        """Return the names of all addresses, for the beginning and after a change of the members."""
        own = (self._settings.address.ip.packed, self._settings.address6.ip.packed)
        records = [_record(address, (f"{_SWITCH}.{self._settings.network}",)) for address in own]
        records += [
            _record(address, member.names)
            for member in members
            for address in member.addresses
            if member.names
        ]
        return _block(_NAMES, b"".join(records) + bytes(4))

    def frame(self, member: Member | None, frame: bytes, at_ns: int) -> bytes:
        """Return a frame sent by the member (None: by the switch)."""
        name = _SWITCH if member is None else _name(member)
        before = b"" if name in self._interfaces else self._interface(name)
        options = _option(_DROPPED, struct.pack("=Q", self._missed)) + _END if self._missed else b""
        self._missed = 0
        head = struct.pack(
            "=IIIII", self._interfaces[name], at_ns >> 32, at_ns & 0xFFFFFFFF, len(frame), len(frame)
        )
        return before + _block(_PACKET, head + _padded(frame) + options)

    def miss(self) -> None:
        """Count a frame that the reader was too slow for. The next frame tells the number."""
        self._missed += 1

    def _interface(self, name: str) -> bytes:
        self._interfaces[name] = len(self._interfaces)
        options = _option(_INTERFACE_NAME, name.encode()) + _option(_RESOLUTION, _NANOSECONDS) + _END
        return _block(_INTERFACE, struct.pack("=HHI", _ETHERNET, 0, 0) + options)


_END = bytes(4)


def _name(member: Member) -> str:
    return member.names[0] if member.names else member.port


def _record(address: bytes, names: Sequence[str]) -> bytes:
    kind = _IPV4_RECORD if len(address) == 4 else _IPV6_RECORD
    value = address + b"".join(name.encode() + b"\0" for name in names)
    return struct.pack("=HH", kind, len(value)) + _padded(value)


def _option(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", kind, len(value)) + _padded(value)


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + size + body + size


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)
