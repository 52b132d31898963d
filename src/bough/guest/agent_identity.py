"""Operation set_identity, and the parts of it that a first boot needs too."""

# pathlib costs an emulated guest 20 ms to load.
# ruff: noqa: PTH103, PTH105, PTH110, PTH112, PTH120, PTH123

from __future__ import annotations

import os
import time

from bough.guest.agent_calls import OperationFailed, list_of_text, run, run_or_fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pwd import struct_passwd

    from bough.guest.agent_calls import Arguments, Tell

_SIOCSIFHWADDR = 0x8924
_HOST_KEY = "/etc/ssh/ssh_host_{}_key"


def set_identity(arguments: Arguments, tell: Tell) -> dict[str, object]:
    """Each is optional: {"hostname", "machine_id": 32 hex digits, "ssh_host_keys": True for new ones,
    "authorized_keys": {user: [keys]}, "interfaces": [{"mac_from", "mac"}], "renew_leases": bool}
    """
    done: list[str] = []
    hostname, machine_id = arguments.get("hostname"), arguments.get("machine_id")
    if isinstance(hostname, str):
        set_hostname(hostname)
        done.append("hostname")
    if isinstance(machine_id, str):
        _set_machine_id(machine_id)
        done.append("machine_id")
    keys = arguments.get("authorized_keys")
    for user, lines in keys.items() if isinstance(keys, dict) else ():
        authorize_keys(str(user), list_of_text(lines))
        done.append("authorized_keys")
    interfaces = arguments.get("interfaces")
    if isinstance(interfaces, list):
        for entry in interfaces:
            _set_mac(str(entry["mac_from"]).lower(), str(entry["mac"]))
        done.append("interfaces")
    if interfaces or arguments.get("renew_leases"):
        _renew_leases()
    if arguments.get("ssh_host_keys"):
        tell("making ssh host keys", None, "")
        make_host_keys(anew=True)
        done.append("ssh_host_keys")
    return {"done": done}


def set_hostname(name: str) -> None:
    """Now and from the next boot on; /etc/hosts knows it too."""
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
        lines = ["127.0.0.1 localhost", "::1 localhost"]
    short = name.partition(".")[0]
    names = name if short == name else f"{name} {short}"
    lines.insert(1, f"127.0.1.1 {names}")
    write_file("/etc/hosts", ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def _set_machine_id(machine_id: str) -> None:
    if len(machine_id) != 32 or machine_id.strip("0123456789abcdef"):
        raise OSError(22, "a machine-id has 32 hexadecimal digits")
    write_file("/etc/machine-id", machine_id.encode() + b"\n", mode=0o444)


def make_host_keys(*, anew: bool) -> None:
    """Those that sshd looks for, but RSA, which takes an emulated guest half a minute."""
    if not os.path.isdir("/etc/ssh"):
        return
    made = False
    for kind in ("ed25519", "ecdsa"):
        path = _HOST_KEY.format(kind)
        if os.path.exists(path) and not anew:
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
        made = True
    if anew and os.path.exists(_HOST_KEY.format("rsa")):
        os.unlink(_HOST_KEY.format("rsa"))  # noqa: PTH108
    if made and anew and os.path.isdir("/run/systemd/system"):
        run(["systemctl", "--no-block", "try-reload-or-restart", "ssh.service", "sshd.service"])


def authorize_keys(user: str, keys: list[str]) -> None:
    """Add to the user's authorized_keys what is not there."""
    if not keys:
        return
    import pwd

    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise OSError(2, f"the guest has no user {user[:80]!r}") from None
    directory = entry.pw_dir + "/.ssh"
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


def _own(path: str, entry: struct_passwd) -> None:
    os.chown(path, entry.pw_uid, entry.pw_gid)


def write_file(path: str, content: bytes, *, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
    """Whole or not at all, also after a crash. Missing directories are made."""
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


def _set_mac(mac_from: str, mac: str) -> None:
    import _socket
    import fcntl
    from struct import pack

    for name in os.listdir("/sys/class/net"):  # noqa: PTH208
        with open(f"/sys/class/net/{name}/address") as file:
            if file.read().strip() != mac_from:
                continue
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0)
        address = bytes.fromhex(mac.replace(":", ""))
        fcntl.ioctl(sock.fileno(), _SIOCSIFHWADDR, pack("16sH14s", name.encode(), 1, address))
        sock.close()
        return
    raise OSError(19, f"no network card has the address {mac_from}")


def _renew_leases() -> None:
    if os.path.isdir("/run/systemd/netif"):
        names = [name for name in os.listdir("/sys/class/net") if name != "lo"]  # noqa: PTH208
        run_or_fail(["networkctl", "reconfigure", *names])
    else:
        for path in ("/sbin/dhclient", "/usr/sbin/dhcpcd"):
            if os.path.exists(path):
                run([path, "-1"] if path.endswith("dhclient") else [path, "-n"])
                time.sleep(0)
                return
