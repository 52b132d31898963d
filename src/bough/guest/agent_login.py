"""The user of an agent's command, and the environment of the user's login."""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH110, PTH116, PTH123

from __future__ import annotations

import os

from bough.guest.agent_python import PRIVATE, TOOLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bough.guest.agent_accounts import User

_ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USER_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"

#: The locale has its own file: /etc/default/locale in Debian, /etc/locale.conf in most others.
_SETTINGS = ("/etc/locale.conf", "/etc/default/locale", "/etc/environment")

_users: dict[int, User] = {}
_files: dict[str, tuple[int, dict[str, str]]] = {}


class Identity:
    """The user and groups of a command. `groups` None means the agent's own."""

    def __init__(self, text: str | None, *, as_image: bool = False) -> None:
        """Look up a user.

        Args:
            text: None for the agent's own user, else a name or uid, optionally with ":" and a group or gid.
            as_image: as Docker does: a uid without an entry has the group 0, and a user with a group is in no
                other group.
        """
        self.uid = os.getuid()
        self.gid = os.getgid()
        self.groups: list[int] | None = None
        self._own: tuple[list[int], int, int] = ([], self.gid, self.uid)
        user, _, group = (text or "").partition(":")
        if not user:
            self.entry: User | None = _entry_of(self.uid)
        else:
            from bough.guest import agent_accounts

            self.entry = agent_accounts.find_user(user) or (_entry_of(0) if user == "root" else None)
            if self.entry is None:
                if user != "root" and not user.isdigit():
                    raise OSError(2, f"the guest has no user {user!r}")
                self.entry = _entry_of(0 if user == "root" else int(user))  # perhaps without /etc/passwd
            uid = int(user) if self.entry is None else self.entry.uid
            if uid == self.uid and not group:
                return
            self.uid = uid
            self.gid = 0 if as_image and not group and self.entry is None else self._group(group)
            self.groups = [self.gid]
            if self.entry is not None and not (as_image and group):
                self.groups = agent_accounts.groups_of(self.entry.name, self.gid)

    def assume(self) -> None:
        """Switch this process to the identity for good."""
        if self.groups is not None:
            os.setgroups(self.groups)
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)

    def lend(self) -> None:
        """Lend the identity to a child that resets ids at exec (as posix_spawn can). The agent keeps its own.

        The real ids are then the user's; the effective and saved ids stay the agent's.
        """
        if self.groups is not None:
            self._own = os.getgroups(), os.getgid(), os.getuid()
            os.setgroups(self.groups)
            os.setresgid(self.gid, -1, -1)
            os.setresuid(self.uid, -1, -1)

    def take_back(self) -> None:
        if self.groups is not None:
            groups, gid, uid = self._own
            os.setresuid(uid, -1, -1)
            os.setresgid(gid, -1, -1)
            os.setgroups(groups)

    def enter(self, directory: str) -> None:
        """Change to the directory if the user may."""
        if self.groups is None:
            os.chdir(directory)
            return
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            os.chdir(directory)
        finally:
            os.seteuid(os.getresuid()[2])
            os.setegid(os.getresgid()[2])

    def _group(self, group: str) -> int:
        if not group:
            return self.entry.gid if self.entry is not None else self.uid
        if group.isdigit():
            return int(group)
        from bough.guest.agent_accounts import find_gid

        gid = 0 if group == "root" else find_gid(group)  # perhaps without /etc/group
        if gid is None:
            raise OSError(2, f"the guest has no group {group!r}")
        return gid


def _entry_of(uid: int) -> User | None:
    entry = _users.get(uid)
    if entry is None:
        from bough.guest.agent_accounts import User, find_uid

        entry = find_uid(uid)
        if entry is None and uid == 0:
            return User("root", 0, 0, "/root", "/bin/sh")  # a root without /etc/passwd
        if uid == 0 and entry is not None:
            _users[uid] = entry  # nearly every command looks root up; other users may change
    return entry


def login_environment(identity: Identity) -> dict[str, str]:
    """Return the variables of a login, with /etc/environment and the locale."""
    entry = identity.entry
    environment = {"PATH": _USER_PATH if identity.uid else _ROOT_PATH}
    if PRIVATE and not os.path.exists("/bin/sh"):
        environment["PATH"] += ":" + TOOLS  # a guest of a few programs, such as one for a single service
    for path in _SETTINGS:
        for name, value in _read_settings(path).items():
            environment[name] = _expand(value, environment) if "$" in value else value
    if identity.groups is not None:
        runtime = f"/run/user/{identity.uid}"
        if _owner(runtime) == identity.uid:
            environment["XDG_RUNTIME_DIR"] = runtime
    if entry is not None:
        environment["HOME"] = entry.home
        environment["SHELL"] = entry.shell or "/bin/sh"
        environment["USER"] = environment["LOGNAME"] = entry.name
    else:
        environment["HOME"] = "/"
    return environment


def _expand(value: str, environment: dict[str, str]) -> str:
    """Replace names of variables by values. With a literal `PATH=/opt/bin:$PATH` no command
    would be found.
    """
    expanded, *parts = value.split("$")
    for part in parts:
        braced = part.startswith("{") and "}" in part
        name, rest = part[1:].split("}", 1) if braced else _split_name(part)
        if name.isidentifier() and name.isascii():
            expanded += environment.get(name, "") + rest
        else:
            expanded += "$" + part
    return expanded


def _split_name(text: str) -> tuple[str, str]:
    end = 0
    while end < len(text) and (text[end].isalnum() or text[end] == "_"):
        end += 1
    return text[:end], text[end:]


def _owner(path: str) -> int:
    try:
        return os.stat(path).st_uid
    except OSError:
        return -1


def _read_settings(path: str) -> dict[str, str]:
    """Return KEY=value lines, parsed as pam_env does. The result is cached until the file changes."""
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError:
        return {}
    known = _files.get(path)
    if known is not None and known[0] == changed:
        return known[1]
    settings = {}
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            text = line.strip()
            if text.startswith("export "):
                text = text[7:].lstrip()
            key, equals, value = text.partition("=")
            if equals and key and not key.startswith("#"):
                if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
                    value = value[1:-1]
                settings[key.strip()] = value
    _files[path] = (changed, settings)
    return settings
