"""Create users and groups: by the guest's useradd, or in the files of a guest without useradd.

busybox's adduser differs between guests, and asks for a password. So the files are written here, under the
lock that the C library's lckpwdf(3) takes.
"""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH103, PTH110, PTH112, PTH113, PTH114, PTH116, PTH120, PTH123, PTH208

from __future__ import annotations

import os
import time

from bough.guest import agent_accounts
from bough.guest.agent_accounts import GROUP, PASSWD
from bough.guest.agent_calls import OperationFailed, run_or_fail
from bough.guest.agent_identity import write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHADOW, GSHADOW = "/etc/shadow", "/etc/gshadow"
HOMES, SKELETON = "/home", "/etc/skel"
_LOCK = "/etc/.pwd.lock"
_LOWEST_ID, _HIGHEST_ID = 1000, 59_999
_MOST_SKELETON = 1000
_PROGRAM_PLACES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin")
#: The default shell of a spec; many guests lack it.
_DEFAULT_SHELL = "/bin/bash"


def make_user(name: str, shell: str, groups: list[str]) -> None:
    """Create the user, and the missing groups; add an existing user to the groups.

    No password fits, but the account is not locked: sshd refuses logins to a locked account.
    """
    if has_program("useradd"):
        _make_by_programs(name, _usable_shell(shell), groups)
    else:
        _make_in_files(name, _usable_shell(shell), groups)


def has_program(name: str) -> bool:
    return any(os.access(f"{place}/{name}", os.X_OK) for place in _PROGRAM_PLACES)


def _usable_shell(shell: str) -> str:
    wanted = shell or _DEFAULT_SHELL
    return "/bin/sh" if wanted == _DEFAULT_SHELL and not os.path.exists(wanted) else wanted


def _make_by_programs(name: str, shell: str, groups: list[str]) -> None:
    for group in groups:
        run_or_fail(["groupadd", "--force", group])
    options = ["--groups", ",".join(groups)] if groups else []
    if agent_accounts.find_user(name) is not None:
        if groups:
            run_or_fail(["usermod", "--append", *options, name])
        return
    # useradd makes a group with the user's name, and ends with 9 if the group exists and is not given.
    own = [] if agent_accounts.find_gid(name) is None else ["--gid", name]
    run_or_fail(["useradd", "--create-home", "--shell", shell, "--password", "*", *own, *options, name])


def _make_in_files(name: str, shell: str, groups: list[str]) -> None:
    for word in (name, *groups):
        if not word or any(char in word for char in ":,\n/ ") or word.startswith("-"):
            raise OperationFailed(f"{word[:80]!r} cannot be a name of a user or group")
    with _Locked():
        user = agent_accounts.find_user(name)
        if user is None:
            uid = _free_id(PASSWD)
            gid = agent_accounts.find_gid(name)
            if gid is None:
                gid = _add_group(name, uid)
            hidden = os.path.exists(SHADOW)
            home = f"{HOMES}/{name}"
            _append(PASSWD, [name, "x" if hidden else "*", str(uid), str(gid), "", home, shell])
            if hidden:
                today = int(time.time()) // 86_400
                _append(SHADOW, [name, "*", str(today), "0", "99999", "7", "", "", ""])
            _make_home(home, uid, gid)
        for group in groups:
            if agent_accounts.find_gid(group) is None:
                _add_group(group, _free_id(GROUP))
            for path in (GROUP, GSHADOW):
                _add_member(path, group, name)


class _Locked:
    """The lock of the account files, for a block."""

    def __enter__(self) -> None:
        import fcntl

        os.makedirs(os.path.dirname(_LOCK), exist_ok=True)
        self._fd = os.open(_LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _free_id(path: str) -> int:
    """Return the number after the highest used one, or the lowest free one."""
    used = {int(fields[2]) for fields in _lines_of(path) if len(fields) > 2 and fields[2].isdigit()}
    ours = [one for one in used if _LOWEST_ID <= one < _HIGHEST_ID]
    following = max(ours, default=_LOWEST_ID - 1) + 1
    if following <= _HIGHEST_ID:
        return following
    raise OperationFailed(f"{path} has no free number")


def _add_group(name: str, wanted: int) -> int:
    """Add a group, with the wanted number if it is free. Return the number."""
    gid = wanted if agent_accounts.find_group_name(wanted) is None else _free_id(GROUP)
    _append(GROUP, [name, "x", str(gid), ""])
    if os.path.exists(GSHADOW):
        _append(GSHADOW, [name, "!", "", ""])
    return gid


def _add_member(path: str, group: str, user: str) -> None:
    """Add the user to the group's list, the last field of the line."""
    lines = list(_lines_of(path))
    for fields in lines:
        if fields[0] == group and len(fields) == 4:
            members = [one for one in fields[3].split(",") if one]
            if user in members:
                return
            fields[3] = ",".join([*members, user])
            _rewrite(path, lines)
            return


def _append(path: str, fields: Sequence[str]) -> None:
    _rewrite(path, [*_lines_of(path), list(fields)])


def _lines_of(path: str) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file.read().splitlines():
                yield line.split(":")
    except FileNotFoundError:
        return


def _rewrite(path: str, lines: Sequence[Sequence[str]]) -> None:
    """Replace the file in one step. Owner and permissions stay."""
    try:
        info = os.stat(path)
        mode, owner = info.st_mode & 0o7777, (info.st_uid, info.st_gid)
    except FileNotFoundError:
        mode, owner = 0o644, (0, 0)
    content = "".join(":".join(fields) + "\n" for fields in lines)
    write_file(path, content.encode("utf-8", "surrogateescape"), mode=mode, owner=owner)


def _make_home(home: str, uid: int, gid: int) -> None:
    if os.path.exists(home):
        return
    os.makedirs(home, mode=0o700)
    _copy_skeleton(SKELETON, home, uid, gid)
    os.chown(home, uid, gid)


def _copy_skeleton(source: str, target: str, uid: int, gid: int) -> None:
    """Copy files and directories of the skeleton, which the new user owns."""
    if not os.path.isdir(source):
        return
    for name in sorted(os.listdir(source))[:_MOST_SKELETON]:
        old, new = f"{source}/{name}", f"{target}/{name}"
        if os.path.islink(old):
            continue
        if os.path.isdir(old):
            os.makedirs(new, mode=0o755, exist_ok=True)
            _copy_skeleton(old, new, uid, gid)
            os.chown(new, uid, gid)
        elif os.path.isfile(old):
            with open(old, "rb") as file:
                write_file(new, file.read(1 << 20), mode=os.stat(old).st_mode & 0o777, owner=(uid, gid))
