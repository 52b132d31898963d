"""Parts of a machine's identity set by a first boot: host name, ssh host keys, authorized keys."""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH103, PTH105, PTH110, PTH112, PTH120, PTH123

from __future__ import annotations

import os

from bough.guest.agent_calls import OperationFailed, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bough.guest.agent_accounts import User

_KEY_MAKERS = ("/usr/bin/ssh-keygen", "/usr/local/bin/ssh-keygen", "/bin/ssh-keygen")
_HOST_KEY = "/etc/ssh/ssh_host_{}_key"


def set_hostname(name: str) -> None:
    """Set the host name now and for later boots, also in /etc/hosts."""
    import _socket

    label = name.replace(".", "-").replace("-", "")
    if not label.isascii() or not label.isalnum() or len(name) > 64:
        raise OSError(22, f"{name[:80]!r} cannot be a host name")
    write_file("/etc/hostname", name.encode() + b"\n")
    _socket.sethostname(name)
    try:
        with open("/etc/hosts", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line for line in file.read().splitlines() if not line.startswith("127.0.1.1")]
    except FileNotFoundError:
        lines = []
    lines = lines or ["127.0.0.1 localhost", "::1 localhost"]
    short = name.partition(".")[0]
    names = name if short == name else f"{name} {short}"
    lines.insert(1, f"127.0.1.1 {names}")
    write_file("/etc/hosts", ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def make_host_keys() -> None:
    """Make the missing host keys of sshd, except RSA: an RSA key takes an emulated guest half a minute."""
    if not os.path.isdir("/etc/ssh") or not any(os.access(path, os.X_OK) for path in _KEY_MAKERS):
        return  # the guest has no sshd, or only the settings of a removed one
    for kind in ("ed25519", "ecdsa"):
        path = _HOST_KEY.format(kind)
        if os.path.exists(path):
            continue
        fresh = path + ".new"
        for old in (fresh, fresh + ".pub"):
            if os.path.exists(old):
                os.unlink(old)  # noqa: PTH108
        code, output = run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", fresh])
        if code:
            raise OperationFailed(f"ssh-keygen ended with {code}", output)
        os.replace(fresh + ".pub", path + ".pub")
        os.replace(fresh, path)


def authorize_keys(user: str, keys: list[str]) -> None:
    """Add the missing keys to the user's authorized_keys."""
    if not keys:
        return
    from bough.guest.agent_login import Identity

    entry = Identity(user).entry
    if entry is None:
        raise OSError(2, f"the guest has no user {user[:80]!r}")
    directory = entry.home + "/.ssh"
    if not os.path.isdir(directory):
        os.makedirs(directory, mode=0o700)
        _own(directory, entry)
    path = directory + "/authorized_keys"
    known = []
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            known = file.read().splitlines()
    known += [key.strip() for key in keys if key.strip() not in known]
    write_file(path, ("\n".join(known) + "\n").encode("utf-8", "surrogateescape"), mode=0o600)
    _own(path, entry)


def _own(path: str, entry: User) -> None:
    os.chown(path, entry.uid, entry.gid)


def write_file(path: str, content: bytes, *, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
    """Write a file completely or not at all, also if the system crashes. Make missing directories."""
    directory = os.path.dirname(path)
    if directory and not os.path.isdir(directory):
        os.makedirs(directory, exist_ok=True)
    fresh = f"{path}.bough-new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        if os.geteuid() == 0:
            os.fchown(fd, *owner)
        os.fchmod(fd, mode)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(fresh, path)  # noqa: PTH104
