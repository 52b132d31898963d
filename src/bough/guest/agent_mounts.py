"""Operation set_mounts: mount exactly the given directories of the host, by sshfs.

The host calls set_mounts at each boot, after each fork, and when the list changes. An existing mount is only
checked for an answer; a mount with a dead sshfs is made again. A mount's name in the kernel's list ("bough:"
and the tag) identifies all settings: another tag is another mount.
"""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH103, PTH110, PTH118, PTH123

from __future__ import annotations

import os
import time

from bough.guest import agent_connect
from bough.guest.agent_calls import run
from bough.guest.agent_freeze import _unescape
from bough.guest.agent_identity import write_file
from bough.guest.agent_python import program_words, python_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bough.guest.agent_calls import Arguments, Tell

    Mount = dict[str, object]

_PREFIX = "bough:"
_FUSE = "/dev/fuse"
_ENOTCONN, _EIO, _EBUSY = 107, 5, 16
#: Time for a lost connection to be made again.
_PATIENCE_S = 10.0
_PAUSE_S = 0.05


class _Failed(Exception):
    pass


def set_mounts(arguments: Arguments, tell: Tell) -> dict[str, object]:
    """Mount the directories of the list and unmount all others.

    {"mounts": [{"tag", "target", "writable", "owner", "host_uid", "host_gid", "cache_s"}], "lazy"}.

    -> {"errors": {target: reason}, "busy": targets in use by a process, still mounted}.
    """
    asked = arguments.get("mounts")
    wanted = [mount for mount in asked if isinstance(mount, dict)] if isinstance(asked, list) else []
    tags = {(str(mount["tag"]), str(mount["target"])) for mount in wanted}
    busy: list[object] = []
    for tag, target in reversed(_mounted()):
        if (tag, target) not in tags:
            keeps = any(target == str(mount["target"]) for mount in wanted)
            if not _unmount(target, lazy=bool(arguments.get("lazy")) or keeps):
                busy.append(target)
    errors: dict[str, object] = {}
    # Upper directories first.
    for mount in sorted(wanted, key=lambda one: str(one["target"]).count("/")):
        target = str(mount["target"])
        tell("sharing directories", None, target)
        try:
            _establish(mount)
        except (_Failed, OSError) as error:
            errors[target] = getattr(error, "strerror", None) or str(error)
    return {"errors": errors, "busy": busy}


def _mounted() -> list[tuple[str, str]]:
    """Return tag and target of our mounts, the oldest first."""
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        lines = file.read(1 << 20).decode("utf-8", "surrogateescape").splitlines()
    found = []
    for line in lines:
        fields, _, rest = line.partition(" - ")
        kind, source = [*rest.split(" "), ""][:2]  # a source may be empty
        if kind == "fuse.sshfs" and source.startswith(_PREFIX):
            found.append((source[len(_PREFIX) :], _unescape(fields.split()[4])))
    return found


def _establish(mount: Mount) -> None:
    target = str(mount["target"])
    if (str(mount["tag"]), target) in _mounted():
        if _answers(target):
            return
        _unmount(target, lazy=True)
    _mount(mount)
    if not _answers(target):
        raise _Failed("the mount does not answer")


def _answers(target: str) -> bool:
    """Return whether the mount works, to the host and back; False if the sshfs has ended."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            os.statvfs(target)  # a name outside of sshfs's cache
            return True
        except OSError as error:
            if error.errno == _ENOTCONN:
                return False
            # The stream has just ended. sshfs may not have noticed, and then requests the next stream.
            if error.errno != _EIO or time.monotonic() > end:
                raise
        time.sleep(_PAUSE_S)


def _mount(mount: Mount) -> None:
    target, tag = str(mount["target"]), str(mount["tag"])
    program = _find_sshfs()
    _load_fuse()
    os.makedirs(target, exist_ok=True)
    options = [
        f"fsname={_PREFIX}{tag}",
        f"ssh_command={' '.join(python_words())} -I -S {agent_connect.__file__} {tag}",
        "reconnect",
        "allow_other",
        "default_permissions",
        *_identity_options(mount),
        *_link_options(program),
        *_cache_options(mount.get("cache_s")),
        *([] if mount.get("writable") else ["ro"]),
    ]
    code, output = run([*program, "bough:/share", target, "-o", ",".join(options)])
    if code:
        said = [line for line in output.strip().splitlines() if line.strip()]
        raise _Failed(
            f"sshfs cannot mount the directory: {said[-1][:300] if said else f'exit status {code}'}"
        )


def _find_sshfs() -> list[str]:
    """Return the words that start sshfs: of the agent disk if the agent is started from it."""
    words = program_words("sshfs")
    if words:
        return words
    for place in ("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"):
        path = os.path.join(place, "sshfs")
        if os.access(path, os.X_OK):
            return [path]
    raise _Failed("the guest has no sshfs")


def _load_fuse() -> None:
    """Load the kernel's FUSE, and make its device where no udev does. Some devices load it when opened."""
    if not os.path.exists(_FUSE):
        try:
            run(["modprobe", "-q", "fuse"])
            if _has_fuse():
                os.mknod(_FUSE, 0o20666, os.makedev(10, 229))
        except OSError:
            pass  # no modprobe: the kernel has the driver, or no modules; or udev was faster
    if not os.path.exists(_FUSE):
        raise _Failed("the guest's kernel has no FUSE, which shared directories need")


def _has_fuse() -> bool:
    """Return whether the kernel has FUSE now. A device without its driver would only be a name."""
    with open("/proc/misc", "rb", buffering=0) as file:
        return b"fuse" in file.read(65536).split()


def _identity_options(mount: Mount) -> list[str]:
    """Map files of the sharing user to `owner` in the guest, and back."""
    from bough.guest.agent_accounts import find_group_name, find_uid
    from bough.guest.agent_login import Identity

    owner = str(mount.get("owner") or "root")
    try:
        identity = Identity(owner)
    except OSError:
        raise _Failed(f"the guest has no user {owner!r} to own the directory") from None
    group, user = find_group_name(identity.gid), find_uid(identity.uid)
    if group is None or user is None:
        # sshfs maps names. In a guest without them, as of a container image, all files have one owner.
        return ["idmap=none", f"uid={identity.uid}", f"gid={identity.gid}"]
    options = ["idmap=file", "nomap=ignore"]
    names = (("uid", user.name, "host_uid"), ("gid", group, "host_gid"))
    for kind, name, number in names:
        path = f"{os.path.dirname(agent_connect.DOOR)}/{mount['tag']}.{kind}"  # noqa: PTH120
        write_file(path, f"{name}:{mount[number]}\n".encode(), mode=0o600)
        options.append(f"{kind}file={path}")
    return options


def _link_options(program: list[str]) -> list[str]:
    """Let links lead out of the mount. Newer versions of sshfs prevent such links. The guest trusts the
    host's links.
    """
    return ["no_contain_symlinks"] if "no_contain_symlinks" in run([*program, "-h"])[1] else []


def _cache_options(cache_s: object) -> list[str]:
    """Return options for how long the guest may cache facts about a file, in total at most `cache_s`.

    sshfs counts whole seconds, and 0 means "within this second of the clock". sshfs caches content while a
    file's size and time stay the same. The time has a resolution of one second, so content is not cached for
    short values of `cache_s`.
    """
    seconds = cache_s if isinstance(cache_s, int) else 1
    if seconds == 0:
        return ["dir_cache=no", "attr_timeout=0", "entry_timeout=0"]
    if seconds < 3:
        return [f"dcache_timeout={seconds - 1}", "attr_timeout=0", "entry_timeout=0"]
    return [f"dcache_timeout={seconds - 2}", "attr_timeout=1", "entry_timeout=1", "auto_cache"]


def _unmount(target: str, *, lazy: bool) -> bool:
    """Unmount. Return whether the mount is gone."""
    if run(["umount", target])[0] == 0:
        return True
    return lazy and run(["umount", "-l", target])[0] == 0
