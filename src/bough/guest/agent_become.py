"""Operations of a guest that went on from a snapshot: prepare, become, settle.

become runs in the agent itself and starts no program, as every millisecond of it counts; it writes
in place, as making and renaming files is code of the kernel that an emulated guest has to translate
first, and without waiting for the disk, which settle does. A guest that loses its power before is told
again at its next boot.
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH104, PTH108, PTH110, PTH112, PTH114, PTH116, PTH123, PTH208, PTH211, SIM105

from __future__ import annotations

import _socket
import fcntl
import os
import time
from struct import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bough.guest.agent import Agent
    from bough.guest.agent_calls import Arguments, Tell

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_SIOCSIFHWADDR = 0x8924
_SIGHUP = 1
_JOURNALS = ("/var/log/journal", "/run/log/journal")
_HOST_KEY = "/etc/ssh/ssh_host_{}_key"
_KINDS = ("ed25519", "ecdsa")
#: Of the guest's own time, so a fork has nearly all of it.
_FIRST_FOR_S = 2.0


def prepare(agent: Agent, _call: int, _arguments: Arguments) -> dict[str, object]:
    """A snapshot is taken now. What a fork uses first is loaded: this module, the clock, commands."""
    __import__("bough.guest.agent_system")
    __import__("bough.guest.agent_spawn")
    _go_first(agent)
    return {}


def _go_first(agent: Agent) -> None:
    """Before all other processes, for a while: a fork's new name and time wake half of its services, each of
    which has an emulated processor translate some thousand blocks of code."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        return
    agent.call_later(_FIRST_FOR_S, _go_along)


def _go_along() -> None:
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def become(_agent: Agent, _call: int, arguments: Arguments) -> dict[str, object]:
    """{"unix_ns", "entropy"}, and for somebody new {"hostname", "machine_id", "host_keys": {kind: [private,
    public]}, "mac_from", "mac"} -> {"took_ns"}; the clock is set to unix_ns and what it took.
    """
    began = time.monotonic_ns()
    # The randomness first: what comes after may draw on it.
    entropy = arguments.get("entropy")
    if isinstance(entropy, bytes) and entropy:
        stir(entropy)
    keys = arguments.get("host_keys")
    if isinstance(keys, dict) and os.path.isdir("/etc/ssh"):
        _set_host_keys(keys)
    machine_id = arguments.get("machine_id")
    if isinstance(machine_id, str) and len(machine_id) == 32 and machine_id.isalnum():
        _set_machine_id(machine_id)
    # Each of the following wakes services of the guest, which would be in the way of the rest.
    hostname = arguments.get("hostname")
    if isinstance(hostname, str):
        _set_hostname(hostname)
    mac_from, mac = arguments.get("mac_from"), arguments.get("mac")
    if isinstance(mac_from, str) and isinstance(mac, str):
        _set_mac(mac_from, mac)
    took = time.monotonic_ns() - began
    now = arguments.get("unix_ns")
    if isinstance(now, int):
        time.clock_settime_ns(time.CLOCK_REALTIME, now + took)
    return {"took_ns": took}


def settle(_arguments: Arguments, _tell: Tell) -> dict[str, object]:
    """What became is on the disk, sshd, where it runs, has its new keys, and journalctl finds the journal.

    The lease needs nothing: the uplink of each machine gives the same address to whoever asks.
    """
    try:
        with open("/run/sshd.pid", "rb", buffering=0) as file:
            os.kill(int(file.read(20)), _SIGHUP)
    except (OSError, ValueError):
        pass  # none runs: the next one reads the new keys
    for place in _JOURNALS:
        try:
            _lead_to_journal(place)
        except OSError:
            pass  # no journal there, or one that is read-only
    os.sync()
    return {}


def _lead_to_journal(place: str) -> None:
    """journald goes on writing below the name of the parent's machine-id; journalctl looks below its own."""
    with open("/etc/machine-id", "rb", buffering=0) as file:
        own = file.read(32).decode("ascii", "replace")
    found = []
    for name in os.listdir(place):
        if name == own:
            return
        path = f"{place}/{name}"
        if not os.path.islink(path) and os.path.exists(f"{path}/system.journal"):
            found.append((os.stat(f"{path}/system.journal").st_mtime_ns, name))
    if found and len(own) == 32 and own.isalnum():
        os.symlink(max(found)[1], f"{place}/{own}")


def stir(entropy: bytes) -> None:
    """Into the pool, and the generator starts anew."""
    padded = entropy + bytes(-len(entropy) % 4)
    device = os.open("/dev/urandom", os.O_WRONLY)
    try:
        fcntl.ioctl(device, _RNDADDENTROPY, pack("ii", 8 * len(entropy), len(padded)) + padded)
        fcntl.ioctl(device, _RNDRESEEDCRNG, 0)
    finally:
        os.close(device)


def _set_machine_id(machine_id: str) -> None:
    try:
        _write("/etc/machine-id", machine_id + "\n", 0o444)
    except OSError as error:
        if error.errno not in (16, 30):
            raise
        # A first boot that is not over: systemd has its own mounted there until it writes it to the disk.
        words = ["umount", "-l", "/etc/machine-id"]
        os.waitpid(os.posix_spawn("/bin/umount", words, dict(os.environ)), 0)
        _write("/etc/machine-id", machine_id + "\n", 0o444)


def _set_hostname(name: str) -> None:
    label = name.replace(".", "-").replace("-", "")
    if not label.isascii() or not label.isalnum() or len(name) > 64:
        raise OSError(22, f"{name[:80]!r} cannot be a host name")
    old = _socket.gethostname()
    _socket.sethostname(name)
    _write("/etc/hostname", name + "\n", 0o644)
    try:
        with open("/etc/hosts", "rb", buffering=0) as file:
            hosts = file.read(1 << 20).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return
    lines = [line for line in hosts.splitlines() if not line.startswith("127.0.1.1")]
    short = name.partition(".")[0]
    lines.insert(1, f"127.0.1.1 {name}" if short == name else f"127.0.1.1 {name} {short}")
    if old != name:
        _write("/etc/hosts", "\n".join(lines) + "\n", 0o644)


def _set_host_keys(keys: dict[str, object]) -> None:
    for kind in _KINDS:
        pair = keys.get(kind)
        if isinstance(pair, list) and len(pair) == 2:
            _write(_HOST_KEY.format(kind), str(pair[0]), 0o600)
            _write(_HOST_KEY.format(kind) + ".pub", str(pair[1]), 0o644)
    for end in ("", ".pub"):  # the parent's, which nobody makes anew
        try:
            os.unlink(_HOST_KEY.format("rsa") + end)
        except FileNotFoundError:
            pass


def _set_mac(mac_from: str, mac: str) -> None:
    for name in os.listdir("/sys/class/net"):
        with open(f"/sys/class/net/{name}/address", "rb", buffering=0) as file:
            if file.read(64).decode("ascii", "replace").strip() != mac_from.lower():
                continue
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0)
        address = bytes.fromhex(mac.replace(":", ""))
        try:
            fcntl.ioctl(sock.fileno(), _SIOCSIFHWADDR, pack("16sH14s", name.encode(), 1, address))
        finally:
            sock.close()
        return


def _write(path: str, text: str, mode: int) -> None:
    """Over what is there; a link, or nothing, is replaced by a file with that mode."""
    content = text.encode("utf-8", "surrogateescape")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (2, 40):  # ENOENT, ELOOP
            raise
        _replace(path, content, mode)
        return
    try:
        os.write(fd, content)
        if os.lseek(fd, 0, 2) > len(content):
            os.ftruncate(fd, len(content))
    finally:
        os.close(fd)


def _replace(path: str, content: bytes, mode: int) -> None:
    fresh = path + ".bough-new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        os.write(fd, content)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)
    os.rename(fresh, path)
