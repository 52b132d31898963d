"""Addresses of network cards, over the kernel's own interface (rtnetlink(7)): no `ip` is needed."""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH110, PTH123, PTH208

from __future__ import annotations

import _socket
import fcntl
import os
import sys
from struct import Struct, pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Address = tuple[bytes, int]  # packed address and length of the prefix

_CARDS = "/sys/class/net"
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_IFF_UP = 1
_NETLINK_ROUTE = 0
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR, _RTM_NEWROUTE = 20, 21, 22, 24
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP, _REPLACE, _CREATE = 0x1, 0x4, 0x300, 0x100, 0x400
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_LINK_SCOPE = 253
_RTA_OIF, _RTA_GATEWAY = 4, 5
_MAIN_TABLE, _STATIC, _UNICAST = 254, 4, 1
_EADDRNOTAVAIL = 99
_HEADER = Struct("=IHHII")  # length, type, flags, sequence, port
_ADDRESS = Struct("=BBBBI")  # family, prefix length, flags, scope, index of the card
_ROUTE = Struct("=BBBBBBBBI")  # family, lengths of both prefixes, TOS, table, origin, scope, type, flags
_ATTRIBUTE = Struct("=HH")
_BUFFER = 65536


def find_card(mac: str) -> str | None:
    """Return the name of the card with the hardware address. Bridges and VLANs above a card do not count."""
    for name in sorted(os.listdir(_CARDS)):
        if os.path.exists(f"{_CARDS}/{name}/device") and _read(name, "address") == mac.lower():
            return name
    return None


def is_port(card: str) -> bool:
    """Return whether the card belongs to a bridge or bond, which has the addresses."""
    return os.path.lexists(f"{_CARDS}/{card}/master")


def bring_up(card: str, mtu: int | None = None) -> None:
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
    try:
        name = card.encode()
        if mtu is not None and _read(card, "mtu") != str(mtu):
            fcntl.ioctl(sock.fileno(), _SIOCSIFMTU, pack("16si12x", name, mtu))
        told = fcntl.ioctl(sock.fileno(), _SIOCGIFFLAGS, pack("16s16x", name))
        flags = int.from_bytes(told[16:18], "little")
        if not flags & _IFF_UP:
            fcntl.ioctl(sock.fileno(), _SIOCSIFFLAGS, pack("16sH14x", name, flags | _IFF_UP))
    finally:
        sock.close()


def parse_address(text: str) -> Address:
    """Return the address of "10.1.0.2/24". Raises OSError or ValueError for other texts."""
    host, _, length = text.partition("/")
    packed = _socket.inet_pton(_socket.AF_INET6 if ":" in host else _socket.AF_INET, host)
    return packed, int(length or 8 * len(packed))


def is_in(address: bytes, network: Address) -> bool:
    """Return whether the address is in the subnet of the other one."""
    packed, length = network
    shift = 8 * len(packed) - length
    return len(address) == len(packed) and (
        int.from_bytes(address, "big") >> shift == int.from_bytes(packed, "big") >> shift
    )


def addresses_of(card: str) -> list[Address]:
    """Return the card's addresses, without link-local ones of IPv6."""
    index = int(_read(card, "ifindex"))
    return [(packed, length) for at, packed, length, scope in _all_addresses() if at == index and not scope]


def has_any_address() -> bool:
    """Return whether a card other than the loopback has an IPv4 address."""
    return any(len(packed) == 4 and packed[0] != 127 for _, packed, _, _ in _all_addresses())


def add_address(card: str, address: Address) -> None:
    _change(card, address, _RTM_NEWADDR, _CREATE | _REPLACE)


def remove_address(card: str, address: Address) -> None:
    try:
        _change(card, address, _RTM_DELADDR, 0)
    except OSError as error:
        if error.errno != _EADDRNOTAVAIL:
            raise


def set_default_route(card: str, gateway: bytes) -> None:
    """Lead to the outside through the gateway, instead of an earlier route of the same kind."""
    family = _socket.AF_INET if len(gateway) == 4 else _socket.AF_INET6
    body = _ROUTE.pack(family, 0, 0, 0, _MAIN_TABLE, _STATIC, 0, _UNICAST, 0)
    body += _pack_attribute(_RTA_GATEWAY, gateway)
    body += _pack_attribute(_RTA_OIF, int(_read(card, "ifindex")).to_bytes(4, sys.byteorder))
    _tell(_RTM_NEWROUTE, _CREATE | _REPLACE, body, card)


def _read(card: str, name: str) -> str:
    try:
        with open(f"{_CARDS}/{card}/{name}", "rb", buffering=0) as file:
            return file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return ""  # the card has gone


def _change(card: str, address: Address, kind: int, flags: int) -> None:
    packed, length = address
    family = _socket.AF_INET if len(packed) == 4 else _socket.AF_INET6
    body = _ADDRESS.pack(family, length, 0, 0, int(_read(card, "ifindex")))
    body += _pack_attribute(_IFA_LOCAL, packed) + _pack_attribute(_IFA_ADDRESS, packed)
    if len(packed) == 4 and length < 31:
        every = int.from_bytes(packed, "big") | (1 << 32 - length) - 1
        body += _pack_attribute(_IFA_BROADCAST, every.to_bytes(4, "big"))
    _tell(kind, flags, body, card)


def _tell(kind: int, flags: int, body: bytes, card: str) -> None:
    """Change something. Raises OSError: the kernel refuses the change."""
    for answer, content in _ask(kind, flags | _ACK, body):
        code = int.from_bytes(content[:4], "little", signed=True) if answer == _NLMSG_ERROR else 0
        if code:
            raise OSError(-code, os.strerror(-code), card)


def _all_addresses() -> Iterator[tuple[int, bytes, int, int]]:
    """Yield index of the card, address, length of the prefix, and whether the address is link-local."""
    for kind, content in _ask(_RTM_GETADDR, _DUMP, _ADDRESS.pack(0, 0, 0, 0, 0)):
        if kind != _RTM_NEWADDR:
            continue
        _, length, _, scope, index = _ADDRESS.unpack_from(content)
        found = dict(_attributes(content[_ADDRESS.size :]))
        packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
        if packed:
            yield index, packed, length, int(scope == _LINK_SCOPE)


def _ask(kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """Send one request. Yield type and content of the answers up to the last one."""
    sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
    try:
        sock.bind((0, 0))
        sock.send(_HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, 1, 0) + body)
        while True:
            data = sock.recv(_BUFFER)
            while len(data) >= _HEADER.size:
                size, answer, _, _, _ = _HEADER.unpack_from(data)
                if size < _HEADER.size:
                    return
                if answer == _NLMSG_DONE:
                    return
                yield answer, data[_HEADER.size : size]
                if answer == _NLMSG_ERROR:
                    return
                data = data[size + 3 & ~3 :]
    finally:
        sock.close()


def _pack_attribute(kind: int, content: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content + bytes(-len(content) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        if size < _ATTRIBUTE.size:
            return
        yield kind, data[_ATTRIBUTE.size : size]
        data = data[size + 3 & ~3 :]
