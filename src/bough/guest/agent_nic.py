"""Replace the parent's hardware addresses in a fork's configuration files.

cloud-init, netplan, networkd, NetworkManager and udev may identify a card by the address. The fork would
otherwise have no network, at once or after the next boot.
"""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH112, PTH113, PTH114, PTH118, PTH123, PTH208

from __future__ import annotations

import os

from bough.guest.agent_calls import run
from bough.guest.agent_identity import write_file

_DIRECTORIES = (
    *(
        "/run/systemd/network",
        "/etc/systemd/network",
        "/etc/netplan",
        "/run/NetworkManager/system-connections",
    ),
    *("/etc/NetworkManager/system-connections", "/etc/sysconfig/network-scripts", "/etc/sysconfig/network"),
    *("/etc/network", "/etc/network/interfaces.d", "/etc/udev/rules.d"),
)
_MOST_FILES = 200
_MOST_BYTES = 64 * 1024


def follow(changes: list[tuple[str, str]]) -> list[str]:
    """Replace old by new addresses in all configurations. Return the changed files. Programs with changed
    configurations are notified.
    """
    changed = [path for path in _files() if _replace(path, changes)]
    if any("/systemd/network/" in path for path in changed):
        run(["networkctl", "reload"])
    if any("/NetworkManager/" in path for path in changed):
        run(["nmcli", "connection", "reload"])
    return changed


def _files() -> list[str]:
    found = []
    for directory in _DIRECTORIES:
        if os.path.isdir(directory):
            names = sorted(os.listdir(directory))[:_MOST_FILES]
            found += [os.path.join(directory, name) for name in names]
    return [path for path in found if os.path.isfile(path) and not os.path.islink(path)]


def _replace(path: str, changes: list[tuple[str, str]]) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read(_MOST_BYTES + 1)
            info = os.fstat(file.fileno())
        changed = content
        for old, new in changes:
            for mac_from, mac in ((old.lower(), new.lower()), (old.upper(), new.upper())):
                changed = changed.replace(mac_from.encode(), mac.encode())
        if len(content) > _MOST_BYTES or changed == content:
            return False
        write_file(path, changed, mode=info.st_mode & 0o7777, owner=(info.st_uid, info.st_gid))
    except OSError:
        return False  # a read-only disk, with the same content at the next boot
    return True
