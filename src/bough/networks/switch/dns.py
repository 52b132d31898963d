"""DNS for the names of one network.

Each network has a resolver, limited to the machines on the network. An unknown name of the network gets a
negative answer at once. For any other name, a machine with an uplink gets REFUSED, and then asks the next
resolver: the uplink's. For a machine whose way outside is this network, the query goes to the resolver of the
outside. A machine without an uplink gets a negative answer at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from ipaddress import ip_address
from typing import Any

from bough.networks.switch.settings import Member, Settings

#: Short, because a name moves when a machine is deleted and another gets its name.
_TTL_S = 5
_REVERSE = ("in-addr.arpa", "ip6.arpa")
_PLAIN_BYTES = 512
_MOST_BYTES = 1232
_QUERY = 0
#: As the outside's resolver accepts (uplink_dns.py).
_MOST_QUERY_BYTES = 4096
#: Instead of an answer: the resolver of the outside answers.
PASS_ON = b""


class Zone:
    """The names of a network.

    Args:
        used: IPv6 addresses that guests have set. Only these are answered: a client would try any other
            address first, and wait in vain.
    """

    def __init__(self, settings: Settings, used: Collection[bytes]) -> None:
        self._used = used
        self._domains = settings.domains
        self._networks = (settings.address.network, settings.address6.network)
        self._addresses: dict[str, list[bytes]] = {}
        self._names: dict[str, str] = {}

    def fill(self, members: Sequence[Member]) -> None:
        """Replace all names. If members share a name (an alias), the answer has the addresses of all."""
        addresses: defaultdict[str, list[bytes]] = defaultdict(list)
        self._names = {}
        for member in members:
            for name in member.names:
                addresses[name] += member.addresses
            for address in member.addresses if member.names else ():
                pointer = ip_address(address).reverse_pointer
                # The longest name includes the network.
                self._names[pointer] = self._full_name(member)
        self._addresses = dict(addresses)

    def _full_name(self, member: Member) -> str:
        own = [name for name in member.names if name.startswith(f"{member.names[0]}.")]
        return own[0] if own else member.names[0]

    def answer(self, payload: bytes, member: Member) -> bytes | None:
        """Return the answer to a machine's query, or PASS_ON; None: the payload is no query."""
        from dnslib import QTYPE, RCODE, RR, DNSRecord

        try:
            query = DNSRecord.parse(payload)
            name = str(query.q.qname).rstrip(".").lower()
            kind = QTYPE.get(query.q.qtype)
        except Exception:  # whatever a guest sent: dnslib raises many kinds
            return None
        if query.header.qr or query.header.opcode != _QUERY or len(query.questions) != 1:
            return None
        reply = query.reply(ra=1, aa=1)
        records = self._find(name, kind)
        if records is not None:
            for record in records:
                reply.add_answer(RR(query.q.qname, _number(record), rdata=record, ttl=_TTL_S))
        elif not self._is_ours(name) and member.gateway and len(payload) <= _MOST_QUERY_BYTES:
            return PASS_ON
        elif not self._is_ours(name) and member.uplink:
            reply.header.aa, reply.header.rcode = 0, RCODE.REFUSED
        else:
            reply.header.rcode = RCODE.NXDOMAIN
        return _fit(reply, _room(query))

    def _find(self, name: str, kind: str) -> list[Any] | None:
        """Return the records of a name; an empty list: the name has no such records; None: no such name."""
        from dnslib import AAAA, PTR, A

        if name in self._names:
            return [PTR(self._names[name])] if kind in ("PTR", "ANY") else []
        addresses = self._addresses.get(name)
        if addresses is None:
            return None
        ipv4 = [A(tuple(one)) for one in addresses if len(one) == 4 and kind in ("A", "ANY")]
        ipv6 = [AAAA(tuple(one)) for one in addresses if one in self._used and kind in ("AAAA", "ANY")]
        return ipv4 + ipv6

    def _is_ours(self, name: str) -> bool:
        """Return whether no other resolver can know the name."""
        if name.endswith(_REVERSE):
            return any(_is_below(name, network) for network in self._networks)
        return "." not in name or any(name == one or name.endswith(f".{one}") for one in self._domains)


def _is_below(name: str, network: Any) -> bool:
    """Return whether a reverse name stands for an address of the network."""
    labels = name.split(".")[:-2][::-1]
    try:
        if name.endswith(_REVERSE[0]):
            address = ip_address(".".join((labels + ["0"] * 4)[:4]))
        else:
            digits = "".join((labels + ["0"] * 32)[:32])
            address = ip_address(":".join(digits[at : at + 4] for at in range(0, 32, 4)))
    except ValueError:
        return False
    return bool(address in network)


def _number(record: Any) -> int:
    from dnslib import QTYPE

    number: int = getattr(QTYPE, type(record).__name__)
    return number


def _room(query: Any) -> int:
    """Return how many bytes the machine takes in one answer."""
    sizes: list[int] = [one.edns_len for one in query.ar if hasattr(one, "edns_len")]
    return min(max([_PLAIN_BYTES, *sizes]), _MOST_BYTES)


def _fit(reply: Any, most_bytes: int) -> bytes:
    """Return the message, with fewer records if it is too long."""
    packed: bytes = reply.pack()
    while len(packed) > most_bytes and reply.rr:
        reply.rr.pop()
        packed = reply.pack()
    return packed
