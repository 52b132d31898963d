"""Which services start at boot: systemd, OpenRC, runit, and the links of System V."""

from __future__ import annotations

import re

from bough.differences.disk import DiskUnreadable
from bough.differences.tree import Node, Tree

_SYSTEMD = b"/etc/systemd/system"
_RUNLEVELS = b"/etc/runlevels"
_SYSV = re.compile(rb"S\d\d(.+)")
_MOST_UNITS = 20_000


def read_units(tree: Tree) -> dict[str, str]:
    """Return unit -> state: "enabled", "masked", or with the runlevels, as in "enabled (default)"."""
    states = {**_read_sysv(tree), **_read_runit(tree), **_read_openrc(tree), **_read_systemd(tree)}
    return dict(list(states.items())[:_MOST_UNITS])


def _read_systemd(tree: Tree) -> dict[str, str]:
    states: dict[str, str] = {}
    for name, node in tree.names(_SYSTEMD).items():
        if node.inode.is_directory and name.endswith((b".wants", b".requires")):
            for unit in tree.names(_SYSTEMD + b"/" + name):
                states.setdefault(_text(unit), "enabled")
        elif _is_masked(node):
            states[_text(name)] = "masked"
        elif node.inode.is_link:
            states.setdefault(_text(name), "enabled")
    return states


def _is_masked(node: Node) -> bool:
    """Return whether a unit is a link to /dev/null, or an empty file (systemd.unit(5))."""
    try:
        if node.inode.is_regular and not node.inode.size:
            return True
        return node.inode.is_link and node.files.link(node.inode) == b"/dev/null"
    except DiskUnreadable:
        return False


def _read_openrc(tree: Tree) -> dict[str, str]:
    levels: dict[str, list[str]] = {}
    for level, node in sorted(tree.names(_RUNLEVELS).items()):
        if node.inode.is_directory:
            for service in tree.names(_RUNLEVELS + b"/" + level):
                levels.setdefault(_text(service), []).append(_text(level))
    return {service: f"enabled ({', '.join(found)})" for service, found in levels.items()}


def _read_runit(tree: Tree) -> dict[str, str]:
    places = (b"/etc/runit/runsvdir/default", b"/etc/service")
    return {_text(name): "enabled" for place in places for name in tree.names(place)}


def _read_sysv(tree: Tree) -> dict[str, str]:
    """Return the services of runlevels 2 to 5. A unit of systemd with the same name goes first."""
    found = {}
    for level in b"2345":
        for name in tree.names(b"/etc/rc%c.d" % level):
            match = _SYSV.fullmatch(name)
            if match:
                found[_text(match[1])] = "enabled"
    return found


def compare_units(before: dict[str, str], after: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name, "before": before.get(name, "disabled"), "after": after.get(name, "disabled")}
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
