"""DHCP for guests without bough's agent (RFC 2131).

The address of a machine is fixed before the machine asks. So an answer never ends, and the switch keeps no
leases. A renewal would remove the address for a moment and break TCP connections. If the machine reaches the
outside through this network, the answer names the switch as router.
"""

from __future__ import annotations

from typing import Any

from bough.networks.switch.settings import Member, Settings

_FOREVER = b"\xff\xff\xff\xff"
_BROADCAST_FLAG = 0x8000
_ANYBODY = b"\xff\xff\xff\xff"
_SERVER, _CLIENT = 67, 68
_NETMASK, _ROUTER, _RESOLVERS, _HOSTNAME, _DOMAIN, _MTU, _BROADCAST = 1, 3, 6, 12, 15, 26, 28
_REQUESTED, _LEASE, _KIND, _SERVER_ID = 50, 51, 53, 54
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK, _INFORM = 1, 2, 3, 5, 6, 8
#: Clients of BOOTP drop shorter messages (RFC 951).
_LEAST_BYTES = 300

#: Payload, address, port, and the port of the sender.
Answer = tuple[bytes, bytes, int, int]


class Dhcp:
    """The DHCP server of a network."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._address = settings.address.ip.packed

    def answer(self, payload: bytes, member: Member) -> Answer | None:
        """Return the answer to a machine's request; None: no answer is due."""
        # Loaded here: only guests without the agent ask, and dpkt takes 40 ms to load.
        from dpkt.dhcp import DHCP

        try:
            request = DHCP(payload)
        except Exception:  # whatever a guest sent: dpkt raises many kinds
            return None
        address = member.ipv4
        if request.op != 1 or request.chaddr != member.mac or address is None:
            return None
        options = dict(request.opts)
        kind = self._kind_of_answer(options, _packed(request.ciaddr), address)
        if kind is None:
            return None
        reply = DHCP(
            op=2,
            xid=request.xid,
            flags=request.flags,
            ciaddr=0 if kind == _NAK else request.ciaddr,
            yiaddr=0 if kind == _NAK or options[_KIND] == bytes((_INFORM,)) else _number(address),
            giaddr=request.giaddr,
            chaddr=member.mac.ljust(16, b"\0"),
        )
        reply.opts = self._options(kind, member, lasts=options[_KIND] != bytes((_INFORM,)))
        to = self._destination(kind, request, address)
        return bytes(reply).ljust(_LEAST_BYTES, b"\0"), to, _CLIENT, _SERVER

    def _kind_of_answer(self, options: dict[int, bytes], current: bytes, address: bytes) -> int | None:
        kind = options.get(_KIND)
        if kind == bytes((_DISCOVER,)):
            return _OFFER
        if kind == bytes((_INFORM,)):
            return _ACK
        if kind != bytes((_REQUEST,)) or options.get(_SERVER_ID, self._address) != self._address:
            return None
        return _ACK if options.get(_REQUESTED, current) == address else _NAK

    def _options(self, kind: int, member: Member, *, lasts: bool) -> list[tuple[int, bytes]]:
        options = [(_KIND, bytes((kind,))), (_SERVER_ID, self._address)]
        if kind == _NAK:
            return options
        network = self._settings.address.network
        if lasts:
            options.append((_LEASE, _FOREVER))
        options += [
            (_NETMASK, network.netmask.packed),
            (_BROADCAST, network.broadcast_address.packed),
            *([(_ROUTER, self._address)] if member.gateway else ()),
            (_RESOLVERS, self._address),
            (_MTU, self._settings.mtu.to_bytes(2, "big")),
            *((_HOSTNAME, name.encode()[:63]) for name in member.names[:1]),
            *((_DOMAIN, name.encode()) for name in self._settings.domains[:1]),
        ]
        return options

    def _destination(self, kind: int, request: Any, address: bytes) -> bytes:
        if kind == _NAK or request.flags & _BROADCAST_FLAG:
            return _ANYBODY
        return _packed(request.ciaddr) if request.ciaddr else address


def _number(address: bytes) -> int:
    return int.from_bytes(address, "big")


def _packed(address: int) -> bytes:
    return address.to_bytes(4, "big")
