"""Values of a running guest for a comparison: listening ports, kernel settings, the kernel's version."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from bough.errors import BoughError
from bough.guest.session import ExecRequest
from bough.machines.machine import Machine

_SCRIPT = """
uname -r
for table in tcp tcp6 udp udp6; do echo "= $table"; cat /proc/net/$table 2>/dev/null; done
[ "$1" = no ] || { echo = sysctl; sysctl -a 2>/dev/null; }
exit 0
"""
_MOST_BYTES = 2 << 20
_TIMEOUT_S = 60.0
_MOST_PORTS, _MOST_SETTINGS = 2000, 5000
_LISTEN, _UNCONNECTED = "0A", "07"
_LINE = re.compile(r"\s*\d+: ([0-9A-F]{8,32}):([0-9A-F]{4}) [0-9A-F]+:([0-9A-F]{4}) ([0-9A-F]{2}) ")
#: Values that change by themselves, names of the machine, and keys.
_NOT_SETTINGS = re.compile(
    r"kernel\.(random\.(uuid|boot_id|entropy_avail)|ns_last_pid|pty\.nr|hostname|domainname|tainted|sched_domain\..*)"
    r"|fs\.(dentry-state|inode-nr|inode-state|file-nr|aio-nr|quota\..*|binfmt_misc\..*)"
    r"|dev\.cdrom\..*|net\.netfilter\.nf_conntrack_count|.*\.(stable_secret|tcp_fastopen_key|flush)"
)


@dataclass(frozen=True)
class LiveValues:
    """The values at one moment.

    Attributes:
        ports: protocol, address and port of each listener, sorted.
    """

    kernel: str
    ports: list[dict[str, Any]]
    sysctls: dict[str, str]


async def read_live_values(machine: Machine, *, settings: bool) -> LiveValues:
    """Ask the agent of a running machine.

    Args:
        settings: also read the kernel settings, which takes an emulated guest a second.

    Raises:
        BoughError: the agent does not answer, or the guest has no shell.
    """
    channel = await machine.agent()
    argv = ["/bin/sh", "-c", _SCRIPT, "sh", "yes" if settings else "no"]
    session = await channel.exec(ExecRequest(argv=argv, cwd="/", stdin=False))
    output = bytearray()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            async for _, data in session:
                output += data[: _MOST_BYTES - len(output)]
    except TimeoutError:
        raise BoughError(f"the guest of machine '{machine.name}' does not answer") from None
    finally:
        await session.abort()
    if session.exit.error is not None:
        raise session.exit.error
    return parse_live_values(output.decode(errors="replace"))


def parse_live_values(text: str) -> LiveValues:
    """Parse the script's output, which is untrusted."""
    head, *parts = text.split("\n= ")
    ports: set[tuple[str, str, int]] = set()
    sysctls: dict[str, str] = {}
    for part in parts:
        table, _, lines = part.partition("\n")
        if table == "sysctl":
            sysctls = _parse_sysctls(lines)
        elif table in ("tcp", "tcp6", "udp", "udp6"):
            ports |= _parse_ports(table[:3], lines)
    listed = [
        {"protocol": protocol, "address": address, "port": port}
        for protocol, address, port in sorted(ports, key=lambda one: (one[2], one[0], one[1]))
    ]
    kernel = "".join(c for c in head.strip() if c.isprintable())[:100]
    return LiveValues(kernel, listed[:_MOST_PORTS], sysctls)


def _parse_ports(protocol: str, lines: str) -> set[tuple[str, str, int]]:
    wanted = _LISTEN if protocol == "tcp" else _UNCONNECTED
    found = set()
    for line in lines.splitlines():
        match = _LINE.match(line)
        if match and match[4] == wanted and match[3] == "0000" and len(match[1]) in (8, 32):
            found.add((protocol, _address(match[1]), int(match[2], 16)))
    return found


def _address(digits: str) -> str:
    """Return an address of /proc/net: words of four bytes in the order of a little-endian processor."""
    data = bytes.fromhex(digits)
    data = b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
    return str(ipaddress.ip_address(data))


def _parse_sysctls(lines: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in lines.splitlines():
        key, equals, value = line.partition(" = ")
        if equals and len(values) < _MOST_SETTINGS and not _NOT_SETTINGS.fullmatch(key):
            shown = " ".join(value.split())[:1000]
            if key.isprintable() and shown.isprintable():
                values[key[:200]] = shown
    return values
