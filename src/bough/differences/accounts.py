"""Users and groups. A password's hash is compared, and never told."""

from __future__ import annotations

from bough.differences.tree import Tree

_MOST_LINES = 20_000
_PASSWD = ("uid", "gid", "comment", "home", "shell")
_GROUP = ("gid", "members")
_PASSWORD = "password"


def read_users(tree: Tree) -> dict[str, dict[str, str]]:
    """Return name -> fields. "password" is the hash: compare it only."""
    users: dict[str, dict[str, str]] = {}
    for name, secret, *fields in _lines(tree, b"/etc/passwd", 7):
        users[name] = {**dict(zip(_PASSWD, fields, strict=True)), _PASSWORD: secret}
    for name, secret, *_ in _lines(tree, b"/etc/shadow", 9):
        if name in users:
            users[name][_PASSWORD] = secret
    return users


def read_groups(tree: Tree) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    for name, _, gid, members in _lines(tree, b"/etc/group", 4):
        groups[name] = dict(zip(_GROUP, (gid, ",".join(sorted(members.split(",")))), strict=True))
    return groups


def _lines(tree: Tree, path: bytes, fields: int) -> list[list[str]]:
    text = (tree.read(path, 16 << 20) or b"").decode(errors="backslashreplace")
    lines = [line.split(":") for line in text.splitlines()[:_MOST_LINES]]
    return [line for line in lines if len(line) == fields and line[0]]


def compare_accounts(
    before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]
) -> list[dict[str, object]]:
    """Return the accounts that differ: name, change, and a sentence for each field."""
    found: list[dict[str, object]] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        one: dict[str, object] = {"name": name}
        if old is None or new is None:
            fields = new or old or {}
            one["change"] = "added" if old is None else "removed"
            one["details"] = [f"{key} {value}" for key, value in fields.items() if key != _PASSWORD and value]
        else:
            one["change"] = "changed"
            one["details"] = [
                _tell(key, old.get(key, ""), new.get(key, "")) for key in new if _differ(key, old, new)
            ]
        found.append(one)
    return found


def _differ(key: str, old: dict[str, str], new: dict[str, str]) -> bool:
    return old.get(key) != new.get(key)


def _tell(key: str, old: str, new: str) -> str:
    return "another password" if key == _PASSWORD else f"{key} {old or '-'} -> {new or '-'}"
