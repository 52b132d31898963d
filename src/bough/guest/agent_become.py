"""Operations of a guest that continues from a snapshot: prepare, become, settle.

become runs in the agent itself and starts no program, because every millisecond counts. become overwrites
files in place: in an emulated guest, the kernel code to create and rename files is not translated yet. become
does not wait for the disk; settle does. If the guest loses power before settle, the next boot gets the
identity again.
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH103, PTH104, PTH108, PTH110, PTH112, PTH113, PTH114, PTH116, PTH123, PTH208, PTH211, SIM105

from __future__ import annotations

import _socket
import fcntl
import gc
import os
import time
from struct import pack

from bough.guest import agent_calls, wire
from bough.guest.agent_python import TOOLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from bough.guest.agent_calls import Arguments, Tell

    class Agent(Protocol):
        """The parts of agent.Agent that prepare and become use."""

        ready: Ready | None
        welcome: bytes

        def render_welcome(self) -> bytes: ...
        def call_later(self, seconds: float, action: Callable[[], None]) -> None: ...


_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_SIOCSIFHWADDR = 0x8924
_SIGHUP = 1
_EBUSY = 16
_ENODEV = 19
_EROFS = 30
_JOURNALS = ("/var/log/journal", "/run/log/journal")
#: D-Bus has its own file in guests without systemd, in others a link.
_MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_KEYS = {"ed25519": "/etc/ssh/ssh_host_ed25519_key", "ecdsa": "/etc/ssh/ssh_host_ecdsa_key"}
#: Keys of the parent that get no replacement.
_OLD_KEYS = ("/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_rsa_key.pub")
#: Guest time, so nearly all of it remains for a fork.
_FIRST_FOR_S = 2.0
_REHEARSALS = 16
_MOST_READ = 1 << 20
#: Files mounted over files of a read-only file system. They last until the next boot.
_SHADOWS = "/run/bough-identity"


class Ready:
    """Results and open files for become, made by prepare before the snapshot. A fork spends no time on them.

    Attributes:
        files: path -> descriptor and length of the present file.
        hosts: /etc/hosts before and after the line of the host name.
        nics: hardware address -> name.
    """

    def __init__(self) -> None:
        self.files: dict[str, tuple[int, int]] = {}
        self.hosts: tuple[bytes, bytes] | None = _split_hosts()
        self.nics = _find_nics()
        self.has_ssh = os.path.isdir("/etc/ssh")
        self.machine_ids = _find_machine_ids()
        self.old_keys = [path for path in _OLD_KEYS if os.path.lexists(path)]
        self.socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0)
        self.random = os.open("/dev/urandom", os.O_WRONLY)
        keys = [path + end for path in _KEYS.values() for end in ("", ".pub")]
        for path in (*_MACHINE_IDS, "/etc/hostname", "/etc/hosts", *keys):
            try:
                fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
            except OSError:
                continue  # become reports the reason
            self.files[path] = fd, os.lseek(fd, 0, 2)

    def close(self) -> None:
        for fd, _ in self.files.values():
            os.close(fd)
        os.close(self.random)
        self.socket.close()


def prepare(agent: Agent, _call: int, _arguments: Arguments) -> dict[str, object]:
    """Prepare for a snapshot: load what a fork needs first, namely this module, the clock and commands."""
    __import__("bough.guest.agent_system")
    __import__("bough.guest.agent_spawn")
    __import__("bough.guest.agent_renewal")
    agent_calls.load("become")
    _forget_ready(agent)
    agent.ready = Ready()
    agent.welcome = agent.render_welcome()
    _rehearse()
    _go_first()
    agent.call_later(_FIRST_FOR_S, lambda: _go_along(agent))
    return {}


def _forget_ready(agent: Agent) -> None:
    if agent.ready is not None:
        agent.ready.close()
    agent.ready = None
    agent.welcome = b""


def _rehearse() -> None:
    """Run the code of become several times now, instead of in each fork.

    Python 3.11 and later replace often-run code by faster code. Every Python collects garbage now and then.
    """
    asked = {"entropy": bytes(64), "hostname": "a", "host_keys": {"ed25519": ["a", "b"]}, "unix_ns": 1 << 60}
    call = wire.encode({"operation": "become", "arguments": asked})
    frame = wire.SYNC + wire.pack(wire.CALL, 1, 1, call)
    reader = wire.FrameReader(wire.SYNC)
    for _ in range(_REHEARSALS):
        reader.pages()[0][: len(frame)] = frame
        reader.added(len(frame))
        for _, _, _, _, payload in iter(reader.next, None):
            wire.decode_map(payload)
        told = wire.encode({"took_ns": 1 << 40, "failed": [], "volatile": False})
        wire.pack_parts(wire.RESULT, 1, 1, told)
        wire.extend_map(wire.encode({}), "token", bytes(16))
    gc.collect()


def _go_first() -> None:
    """Give the agent priority over all other processes for a while.

    A fork's new name and time wake half of the services. For each, an emulated processor translates some
    thousand blocks of code.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        pass


def _go_along(agent: Agent) -> None:
    _forget_ready(agent)
    try:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        pass


def become(agent: Agent, _call: int, arguments: Arguments) -> dict[str, object]:
    """Set clock, randomness and identity.

    {"unix_ns", "entropy"}, and for a new identity {"hostname", "machine_id", "host_keys": {kind: [private,
    public]}, "macs": [[from, to]]} -> {"took_ns", "failed", "volatile"}.

    The clock is set to unix_ns plus the duration of this operation. Each part is tried, even if others fail.
    `failed` names the parts that could not be set, with the reasons. `volatile`: some parts last only until
    the next boot, because the file system is read-only.
    """
    began = time.monotonic_ns()
    ready = agent.ready
    parts = Parts()
    # Randomness first: later steps may use random numbers.
    entropy = arguments.get("entropy")
    if isinstance(entropy, bytes) and entropy:
        parts.set("randomness", stir, entropy, ready.random if ready else -1)
    keys = arguments.get("host_keys")
    if isinstance(keys, dict) and (ready.has_ssh if ready else os.path.isdir("/etc/ssh")):
        for kind in _KEYS:
            parts.set("ssh host key", _set_host_key, kind, keys.get(kind), ready)
        parts.set("ssh host key", _remove_old_keys, ready)
    machine_id = arguments.get("machine_id")
    if isinstance(machine_id, str) and len(machine_id) == 32 and machine_id.isalnum():
        for path in ready.machine_ids if ready else _find_machine_ids():
            parts.set("machine-id", _set_machine_id, path, machine_id, ready)
    hostname = arguments.get("hostname")
    if isinstance(hostname, str):
        parts.set("host name on the disk", _write_hostname, hostname, ready)
        parts.set("host name in /etc/hosts", _write_hosts, hostname, ready)
    # Each of the following steps wakes services, and the services slow the other steps. So these steps come
    # last, in the order of the time until a service wakes, the longest first.
    for mac_from, mac in _mac_changes(arguments):
        parts.set("MAC address", _set_mac, mac_from, mac, ready)
    if isinstance(hostname, str):
        parts.set("host name", _socket.sethostname, hostname)
    took = time.monotonic_ns() - began
    now = arguments.get("unix_ns")
    if isinstance(now, int):
        parts.set("time", time.clock_settime_ns, time.CLOCK_REALTIME, now + took)
    return {"took_ns": took, "failed": parts.failed, "volatile": os.path.isdir(_SHADOWS)}


def _mac_changes(arguments: Arguments) -> list[tuple[str, str]]:
    """Return the old and the new address of each network card with a new address."""
    macs = arguments.get("macs")
    return [
        (pair[0], pair[1])
        for pair in (macs if isinstance(macs, list) else ())
        if isinstance(pair, list) and [len(mac) for mac in pair if isinstance(mac, str)] == [17, 17]
    ]


class Parts:
    """The parts of an identity, each set independently.

    Attributes:
        failed: the parts that could not be set, and why.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []

    def set(self, what: str, action: Callable[..., object], *arguments: object) -> None:
        try:
            action(*arguments)
        except OSError as error:
            name = "" if error.filename is None else f" ({os.fsdecode(error.filename)})"
            self.failed.append(f"{what}: {error.strerror or error}{name}"[:300])
        except Exception as error:  # one part's error must not keep the others from being set
            self.failed.append(f"{what}: {type(error).__name__}: {error}"[:300])


def settle(arguments: Arguments, _tell: Tell) -> dict[str, object]:
    """Wait until the new identity is on the disk, and make sshd and journalctl use it.

    Takes {"macs": [[from, to]]} for network cards with a new address. A running sshd loads the new keys, and
    journalctl finds the journal. The DHCP lease needs no renewal: each machine's uplink gives every client
    the same address.
    """
    try:
        with open("/run/sshd.pid", "rb", buffering=0) as file:
            os.kill(int(file.read(20)), _SIGHUP)
    except (OSError, ValueError):
        pass  # sshd does not run: the next sshd reads the new keys
    for place in _JOURNALS:
        try:
            _lead_to_journal(place)
        except OSError:
            pass  # no journal, or a read-only directory
    changes = _mac_changes(arguments)
    if changes:
        from bough.guest import agent_nic

        agent_nic.follow(changes)
    from bough.guest import agent_renewal

    agent_renewal.renew_seeds()
    agent_renewal.renew_dropbear_keys()
    os.sync()
    return {}


def _lead_to_journal(place: str) -> None:
    """Link the new machine-id to the journal. journald still writes below the parent's machine-id; journalctl
    looks below the new machine-id.
    """
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


def stir(entropy: bytes, device: int = -1) -> None:
    """Add entropy to the kernel's pool and reseed the generator.

    Args:
        device: a descriptor of /dev/urandom, if it is open.
    """
    padded = entropy + bytes(-len(entropy) % 4)
    opened = device if device >= 0 else os.open("/dev/urandom", os.O_WRONLY)
    try:
        fcntl.ioctl(opened, _RNDADDENTROPY, pack("ii", 8 * len(entropy), len(padded)) + padded)
        fcntl.ioctl(opened, _RNDRESEEDCRNG, 0)
    finally:
        if opened != device:
            os.close(opened)


def _find_machine_ids() -> list[str]:
    """Return the files with a machine-id, without links to another one. Not every guest has a machine-id."""
    return [path for path in _MACHINE_IDS if os.path.isfile(path) and not os.path.islink(path)]


def _set_machine_id(path: str, machine_id: str, ready: Ready | None) -> None:
    text = machine_id + "\n"
    try:
        _write(path, text, 0o444, ready, shadow=False)
    except OSError as error:
        if error.errno not in (_EBUSY, _EROFS):
            raise
        # In an unfinished first boot, a file of systemd is mounted over the path until systemd writes the
        # file to the disk.
        _run_mount("umount", "-l", path)
        _write(path, text, 0o444, None)


def _write_hostname(name: str, ready: Ready | None) -> None:
    label = name.replace(".", "-").replace("-", "")
    if not label.isascii() or not label.isalnum() or len(name) > 64:
        raise OSError(22, f"{name[:80]!r} cannot be a host name")
    _write("/etc/hostname", name + "\n", 0o644, ready)


def _write_hosts(name: str, ready: Ready | None) -> None:
    hosts = ready.hosts if ready else _split_hosts()
    if hosts is None or _socket.gethostname() == name:
        return
    short = name.partition(".")[0]
    own = "127.0.1.1 " + (name if short == name else name + " " + short) + "\n"
    _write("/etc/hosts", hosts[0] + own.encode() + hosts[1], 0o644, ready)


def _split_hosts() -> tuple[bytes, bytes] | None:
    content = _read("/etc/hosts")
    if not content or len(content) == _MOST_READ:
        return None
    lines = [line for line in content.splitlines() if not line.startswith(b"127.0.1.1")]
    return b"".join(line + b"\n" for line in lines[:1]), b"".join(line + b"\n" for line in lines[1:])


def _set_host_key(kind: str, pair: object, ready: Ready | None) -> None:
    if isinstance(pair, list) and len(pair) == 2:
        _write(_KEYS[kind], str(pair[0]), 0o600, ready)
        _write(_KEYS[kind] + ".pub", str(pair[1]), 0o644, ready)


def _remove_old_keys(ready: Ready | None) -> None:
    for path in ready.old_keys if ready else _OLD_KEYS:
        # Asked first: on a read-only file system unlink fails with EROFS also for a missing file.
        if not os.path.lexists(path):
            continue
        try:
            os.unlink(path)
        except OSError as error:
            if error.errno != _EROFS:
                raise
            _shadow(path, b"", 0o600)  # sshd ignores an empty key


def _set_mac(mac_from: str, mac: str, ready: Ready | None) -> None:
    name = (ready.nics if ready else _find_nics()).get(mac_from.lower())
    if name is None:
        return
    sock = ready.socket if ready else _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0)
    address = bytes.fromhex(mac.replace(":", ""))
    try:
        fcntl.ioctl(sock.fileno(), _SIOCSIFHWADDR, pack("16sH14s", name, 1, address))
    except OSError as error:
        if ready is None or error.errno != _ENODEV:
            raise
        _set_mac(mac_from, mac, None)  # the card was renamed meanwhile, as happens during a boot
    finally:
        if not ready:
            sock.close()


def _find_nics() -> dict[str, bytes]:
    """Return hardware address -> name."""
    found = {}
    for name in os.listdir("/sys/class/net"):
        address = _read(f"/sys/class/net/{name}/address").decode("ascii", "replace").strip()
        found[address] = name.encode()
    return found


def _read(path: str) -> bytes:
    """Return the file's content; empty if the file cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_MOST_READ)
    except OSError:
        return b""


def _write(path: str, text: str | bytes, mode: int, ready: Ready | None, *, shadow: bool = True) -> None:
    """Overwrite a file in place. A link or a missing file is replaced by a file with the given mode.

    On a read-only file system, a file of /run is mounted over the path, unless `shadow` is false.
    """
    content = text.encode() if isinstance(text, str) else text
    try:
        _write_file(path, content, mode, ready)
    except OSError as error:
        if error.errno != _EROFS or not shadow:
            raise
        _shadow(path, content, mode)


def _write_file(path: str, content: bytes, mode: int, ready: Ready | None) -> None:
    opened = ready.files.get(path) if ready else None
    # A file replaced right before the snapshot has no name any more.
    if opened is not None and os.fstat(opened[0]).st_nlink:
        _overwrite(*opened, content)
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (2, 40):  # ENOENT, ELOOP
            raise
        _replace(path, content, mode)
        return
    try:
        _overwrite(fd, os.lseek(fd, 0, 2), content)
    finally:
        os.close(fd)


def _shadow(path: str, content: bytes, mode: int) -> None:
    """Show `content` at `path` until the guest's next boot, although the file system is read-only."""
    os.makedirs(_SHADOWS, mode=0o755, exist_ok=True)
    shadow = _SHADOWS + path.replace("/", "-")
    _replace(shadow, content, mode)
    if _run_mount("mount", "-o", "bind", shadow, path):
        raise OSError(_EROFS, os.strerror(_EROFS), path)


def _run_mount(*words: str) -> int:
    """Run mount or umount, the guest's or the agent's own. Return the wait status."""
    for place in ("/bin", "/usr/bin", TOOLS):
        try:
            pid = os.posix_spawn(f"{place}/{words[0]}", list(words), dict(os.environ))
        except OSError:
            continue  # the program does not exist
        return os.waitpid(pid, 0)[1]
    return 127


def _overwrite(fd: int, length: int, content: bytes) -> None:
    os.pwrite(fd, content, 0)
    if length > len(content):
        os.ftruncate(fd, len(content))


def _replace(path: str, content: bytes, mode: int) -> None:
    fresh = path + ".bough-new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        os.write(fd, content)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)
    os.rename(fresh, path)
