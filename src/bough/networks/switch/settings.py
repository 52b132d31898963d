"""Data from the service to a switch: the settings and the members of the network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import Any

#: Ethernet's usual size, and the largest that fits a datagram of QEMU.
LEAST_MTU = 576
MOST_MTU = 65520
_PORT = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MOST_NAMES = 64
_MOST_LEARNED = 256


@dataclass(frozen=True)
class Settings:
    """The settings of a network.

    Attributes:
        mac, address, address6: of the switch itself, which answers ARP, DHCP and DNS. The addresses carry the
            length of the network's prefix.
        mtu: bytes of a frame's payload.
        domains: names that end so are names of this network alone.
        queue_bytes: bound of the frames that wait for one port.
    """

    network: str
    mac: bytes
    address: IPv4Interface
    address6: IPv6Interface
    mtu: int = 1500
    domains: tuple[str, ...] = ()
    queue_bytes: int = 1 << 20

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Settings:
        """Raises ValueError, KeyError, TypeError: the data describes no network."""
        mtu = int(data["mtu"])
        if not LEAST_MTU <= mtu <= MOST_MTU:
            raise ValueError(f"an MTU is between {LEAST_MTU} and {MOST_MTU} bytes, not {mtu}")
        return cls(
            network=str(data["network"]),
            mac=parse_mac(data["mac"]),
            address=IPv4Interface(data["address"]),
            address6=IPv6Interface(data["address6"]),
            mtu=mtu,
            domains=_names(data.get("domains", ())),
            queue_bytes=int(data.get("queue_bytes", 1 << 20)),
        )


@dataclass(frozen=True)
class Member:
    """A machine on the network.

    Attributes:
        port: name of its port, and of the port's directory.
        mac: the only address that the machine may send from, unless `learns` allows more.
        addresses: IPv4 (4 bytes) and IPv6 (16 bytes) addresses that no other machine may use.
        names: names that DNS answers with these addresses. The first is the machine's own name.
        uplink: another resolver answers what this network does not know.
        gateway: the machine reaches the outside through this network: the switch is its default gateway.
        gateway6: also for IPv6.
        advertised: the machine gets router advertisements. The agent configures all other machines, and both
            ways at once would contradict each other.
        learns: number of further MAC addresses behind the port, for a machine that is a bridge itself.
    """

    port: str
    mac: bytes
    addresses: tuple[bytes, ...] = ()
    names: tuple[str, ...] = ()
    uplink: bool = False
    gateway: bool = False
    gateway6: bool = False
    advertised: bool = False
    learns: int = 0

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Member:
        """Raises ValueError, KeyError, TypeError: the data describes no member."""
        learns = int(data.get("learns", 0))
        if not 0 <= learns <= _MOST_LEARNED:
            raise ValueError(f"a port learns 0 to {_MOST_LEARNED} addresses, not {learns}")
        return cls(
            port=parse_port(data["port"]),
            mac=parse_mac(data["mac"]),
            addresses=tuple(ip_address(text).packed for text in data.get("addresses", ())),
            names=_names(data.get("names", ())),
            uplink=bool(data.get("uplink", False)),
            gateway=bool(data.get("gateway", False)),
            gateway6=bool(data.get("gateway6", False)),
            advertised=bool(data.get("advertised", False)),
            learns=learns,
        )

    @property
    def ipv6(self) -> bytes | None:
        return next((address for address in self.addresses if len(address) == 16), None)

    @property
    def ipv4(self) -> bytes | None:
        return next((address for address in self.addresses if len(address) == 4), None)


def parse_port(text: object) -> str:
    """Return the name of a port, which is safe as a file name. Raises ValueError."""
    if not isinstance(text, str) or not _PORT.fullmatch(text):
        raise ValueError("the name of a port consists of 1 to 40 letters, digits and hyphens")
    return text


def parse_mac(text: object) -> bytes:
    """Return the address of one network card. Raises ValueError."""
    if not isinstance(text, str) or not _MAC.fullmatch(text.lower()):
        raise ValueError("a MAC address consists of six hexadecimal numbers, with colons between them")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise ValueError(f"{text} is the MAC address of a group, not of a network card")
    return mac


def format_mac(mac: bytes) -> str:
    return mac.hex(":")


def _names(given: Any) -> tuple[str, ...]:
    names = tuple(str(name).lower().rstrip(".") for name in given)
    if len(names) > _MOST_NAMES or any(not 0 < len(name) <= 253 for name in names):
        raise ValueError(f"at most {_MOST_NAMES} names of 1 to 253 characters")
    return names
