"""Users and groups of the guest, read from its files.

An agent with its own C library cannot use the guest's name services (nsswitch.conf): their libraries belong
to another C library. Such an agent knows the users of /etc/passwd only. An agent that runs in the guest's own
Python also asks the name services, for names that the files lack.
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH123

from __future__ import annotations

from bough.guest import agent_python

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWD, GROUP = "/etc/passwd", "/etc/group"
_MOST_BYTES = 8 << 20


class User:
    """An entry of /etc/passwd."""

    def __init__(self, name: str, uid: int, gid: int, home: str, shell: str) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.home = home
        self.shell = shell


def find_user(name: str) -> User | None:
    for fields in _fields(PASSWD, 7):
        if fields[0] == name:
            return _user_of(fields)
    return None if agent_python.PRIVATE else _ask_user("getpwnam", name)


def find_uid(uid: int) -> User | None:
    text = str(uid)
    for fields in _fields(PASSWD, 7):
        if fields[2] == text:
            return _user_of(fields)
    return None if agent_python.PRIVATE else _ask_user("getpwuid", uid)


def find_gid(name: str) -> int | None:
    """Return the id of a group."""
    for fields in _fields(GROUP, 4):
        if fields[0] == name:
            return int(fields[2])
    gid = None if agent_python.PRIVATE else _ask_group("getgrnam", name, 2)
    return gid if isinstance(gid, int) else None


def find_group_name(gid: int) -> str | None:
    text = str(gid)
    for fields in _fields(GROUP, 4):
        if fields[2] == text:
            return fields[0]
    name = None if agent_python.PRIVATE else _ask_group("getgrgid", gid, 0)
    return name if isinstance(name, str) else None


def groups_of(name: str, gid: int) -> list[int]:
    """Return the ids of all groups of a user: `gid` first, then the groups that list the user."""
    if not agent_python.PRIVATE:
        from os import getgrouplist

        return getgrouplist(name, gid)
    found = [gid]
    for fields in _fields(GROUP, 4):
        if name in fields[3].split(",") and int(fields[2]) not in found:
            found.append(int(fields[2]))
    return found


def _fields(path: str, count: int) -> Iterator[list[str]]:
    """Yield the fields of each valid line. The third field is a number in valid lines of both files."""
    try:
        with open(path, "rb", buffering=0) as file:
            lines = file.read(_MOST_BYTES).decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return  # a guest without users still has root: uid 0 needs no entry
    for line in lines:
        fields = line.split(":")
        if len(fields) == count and fields[2].isascii() and fields[2].isdigit() and fields[0]:
            yield fields


def _user_of(fields: list[str]) -> User:
    gid = int(fields[3]) if fields[3].isascii() and fields[3].isdigit() else int(fields[2])
    return User(fields[0], int(fields[2]), gid, fields[5] or "/", fields[6])


def _ask_user(function: str, key: str | int) -> User | None:
    import pwd

    try:
        entry = getattr(pwd, function)(key)
    except KeyError:
        return None
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell)


def _ask_group(function: str, key: str | int, field: int) -> object:
    import grp

    try:
        found: object = getattr(grp, function)(key)[field]
    except KeyError:
        return None
    return found
