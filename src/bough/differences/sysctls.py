"""Kernel settings of sysctl.d(5), as a boot applies them."""

from __future__ import annotations

from bough.differences.tree import Tree

#: A file hides the files of the same name in later directories.
_DIRECTORIES = (b"/etc/sysctl.d", b"/usr/local/lib/sysctl.d", b"/usr/lib/sysctl.d", b"/lib/sysctl.d")
_LAST = b"/etc/sysctl.conf"
_MOST_FILES, _MOST_SETTINGS = 1000, 5000


def read_sysctls(tree: Tree) -> dict[str, str]:
    """Return key -> value. The files are applied in the order of their names, /etc/sysctl.conf last."""
    places: dict[bytes, bytes] = {}
    for directory in _DIRECTORIES:
        for name in tree.names(directory):
            if name.endswith(b".conf"):
                places.setdefault(name, directory + b"/" + name)
    values: dict[str, str] = {}
    for path in [*(places[name] for name in sorted(places)[:_MOST_FILES]), _LAST]:
        for line in (tree.read(path) or b"").decode(errors="backslashreplace").splitlines():
            key, equals, value = line.strip().partition("=")
            if equals and key[:1] not in "#;" and len(values) < _MOST_SETTINGS:
                values[_name(key.strip().lstrip("-").strip())] = " ".join(value.split())
    return values


def _name(key: str) -> str:
    """Return the key with dots. With slashes first, dots are part of a name (sysctl.d(5))."""
    slash, dot = key.find("/"), key.find(".")
    if slash >= 0 and (dot < 0 or slash < dot):
        return key.translate(str.maketrans("/.", "./"))
    return key


def compare_values(before: dict[str, str], after: dict[str, str]) -> list[dict[str, str | None]]:
    return [
        {"name": key, "before": before.get(key), "after": after.get(key)}
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
