"""The name servers of a guest without systemd-resolved: lines of /etc/resolv.conf.

bough's lines are kept in a file of their own, and stand first in /etc/resolv.conf. A DHCP client may rewrite
/etc/resolv.conf; the lines are then added again (agent_uplink.py).
"""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH110, PTH123

from __future__ import annotations

import os

from bough.guest.agent_identity import write_file

RESOLV_CONF = "/etc/resolv.conf"
#: bough's lines, also for the script of the DHCP client.
OWN_LINES = "/run/bough/resolv.conf"
#: Programs that own /etc/resolv.conf. Each gets the name servers by DHCP.
_OWNERS = ("/run/systemd/resolve", "/run/NetworkManager/resolv.conf", "/run/resolvconf/interfaces")
_MOST_BYTES = 64 * 1024


def is_owned() -> bool:
    """Return whether another program writes the file."""
    return any(os.path.lexists(path) for path in _OWNERS)


def keep_lines(resolvers: list[str], domains: list[str]) -> None:
    """Keep the name servers and search domains of networks between machines."""
    lines = [f"nameserver {one}" for one in resolvers]
    lines += [f"search {' '.join(domains)}"] if domains else []
    if not lines and not os.path.exists(OWN_LINES):
        return
    write_file(OWN_LINES, "".join(line + "\n" for line in lines).encode())


def apply_lines() -> None:
    """Put bough's lines first. Lines of an earlier call are replaced; a file of another program stays."""
    if is_owned() or not os.path.exists(OWN_LINES):
        return
    own = _lines(OWN_LINES)
    present = _lines(RESOLV_CONF)
    before = set(_lines(OWN_LINES + ".applied"))
    others = [line for line in present if line not in before and line not in own]
    # One `search` line counts, the last one. So the guest's own domains follow ours.
    wanted = _join_search(own, others)
    if wanted != present:
        target = os.path.realpath(RESOLV_CONF)  # perhaps a link to a file in /run
        write_file(target, "".join(line + "\n" for line in wanted).encode("utf-8", "surrogateescape"))
    write_file(OWN_LINES + ".applied", "".join(line + "\n" for line in own).encode())


def _join_search(own: list[str], others: list[str]) -> list[str]:
    domains: list[str] = []
    for line in [*own, *others]:
        if line.startswith(("search ", "domain ")):
            domains += [one for one in line.split()[1:] if one not in domains]
    plain = [line for line in [*own, *others] if not line.startswith(("search ", "domain "))]
    return [*([f"search {' '.join(domains)}"] if domains else []), *plain]


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(_MOST_BYTES).splitlines()
    except OSError:
        return []
