"""The first steps of bough's init: mounts, modules, host name, and the files that a container finds.

Docker mounts the same, except for control groups, which are writable here. /run and /tmp are the image's.
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH103, PTH108, PTH110, PTH112, PTH114, PTH123, PTH208, PTH211

from __future__ import annotations

import os

from bough.guest import agent_system_calls as system
from bough.guest.agent_python import BUSYBOX, TOOLS

#: Directory of bough's sockets. In memory: sockets of an earlier boot must not be found.
RUN = "/run/bough"
_BOOT = "/.bough/boot"
_MODULES = "/lib/modules"
_QUIET = system.NOSUID | system.NODEV | system.NOEXEC
#: Source, target, type, flags, data; in order.
_MOUNTS = (
    ("proc", "/proc", "proc", _QUIET, ""),
    ("sysfs", "/sys", "sysfs", _QUIET, ""),
    ("devtmpfs", "/dev", "devtmpfs", system.NOSUID, "mode=0755"),
    ("devpts", "/dev/pts", "devpts", system.NOSUID | system.NOEXEC, "gid=5,mode=620,ptmxmode=666"),
    ("shm", "/dev/shm", "tmpfs", _QUIET, "mode=1777"),
    ("mqueue", "/dev/mqueue", "mqueue", _QUIET, ""),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", _QUIET, "nsdelegate"),
    ("tmpfs", RUN, "tmpfs", system.NOSUID | system.NODEV, "mode=0700,size=16m"),
)
_LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}
#: What an init gets from the kernel.
INIT_ENVIRONMENT = {
    "HOME": "/",
    "TERM": "linux",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
#: As in a container of Docker: any user may open low ports, and ping.
_SETTINGS = {
    "/proc/sys/net/ipv4/ip_unprivileged_port_start": "0",
    "/proc/sys/net/ipv4/ping_group_range": "0 2147483647",
}
#: Soft and hard limit of open files, as systemd sets them. The kernel's own hard limit is 4096.
_OPEN_FILES = (1024, 524288)
_RESOLV_CONF = "/etc/resolv.conf"
_HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
#: Classes of PCI devices that the agent needs a driver for: storage and network.
_NEEDED_CLASSES = ("0x01", "0x02")
_MODPROBE = "/proc/sys/kernel/modprobe"
_MOST_DEVICES = 500
#: A structure of the SMBIOS, and the OEM string with a word of the image's init.
_OEM_STRINGS, _INIT_WORD = 11, b"bough.init="
_MOST_TABLE = 1 << 20


def say(text: str) -> None:
    """Write a line to the kernel's log, which the console shows."""
    try:
        with open("/dev/kmsg", "wb", buffering=0) as file:
            file.write(f"<3>bough: {text}\n".encode("utf-8", "replace")[:900])
    except OSError:
        pass  # no /dev


def attempt(what: str, action: object, *arguments: object) -> None:
    """Call `action`. An error is told, and does not end process 1."""
    try:
        action(*arguments)  # type: ignore[operator]
    except Exception as error:
        say(f"{what}: {type(error).__name__}: {error}")


def prepare_guest() -> None:
    """Do all steps for bough's own init."""
    for source, target, kind, flags, data in _MOUNTS:
        attempt(f"mounting {target}", _mount, source, target, kind, flags, data)
    attempt("links in /dev", _make_links)
    attempt("the modules", show_modules)
    attempt("the host name", _set_hostname)
    attempt("/etc/hosts", _write_hosts)
    attempt(_RESOLV_CONF, _free_resolver)
    for path, value in _SETTINGS.items():
        attempt(path, _write, path, value)
    attempt("the limit of open files", _raise_limits)


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    if os.path.ismount(target):
        return
    try:
        os.makedirs(target, exist_ok=True)
    except OSError:
        # A read-only root without the directory, or /run as a link to nowhere.
        if target != RUN or not system.mount(
            "tmpfs", "/run", "tmpfs", system.NOSUID | system.NODEV, "mode=0755"
        ):
            raise
        os.makedirs(target, exist_ok=True)
    if not system.mount(source, target, kind, flags, data):
        say(f"{kind} could not be mounted at {target}")


def _make_links() -> None:
    for link, target in _LINKS.items():
        if not os.path.lexists(link):
            os.symlink(target, link)


def show_modules() -> None:
    """Show the modules of the running kernel at the usual place, and let the kernel load modules itself."""
    version = os.uname().release
    source, target = f"{_BOOT}{_MODULES}/{version}", f"{_MODULES}/{version}"
    if os.path.isdir(source) and not os.path.ismount(target):
        os.makedirs(target, exist_ok=True)
        system.mount(source, target, "", system.BIND)
    if TOOLS and not os.path.exists("/sbin/modprobe"):
        _write(_MODPROBE, f"{TOOLS}/modprobe")


def load_drivers() -> None:
    """Load the drivers of all devices that have none. Wait if the agent needs one of them."""
    aliases, needed = find_aliases()
    if aliases and BUSYBOX:
        # A driver whose device is not there, as of some processors', says so.
        silence = [(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
        words = ["modprobe", "-a", "-q", "-b", *aliases]
        pid = os.posix_spawn(BUSYBOX, words, os.environ, file_actions=silence)
        if needed:
            os.waitpid(pid, 0)


def find_aliases(root: str = "") -> tuple[list[str], bool]:
    """Return the aliases of the devices without a driver, and whether the agent needs such a device."""
    aliases, needed = [], False
    for bus in ("pci", "virtio", "acpi", "platform"):
        place = f"{root}/sys/bus/{bus}/devices"
        for name in sorted(os.listdir(place))[:_MOST_DEVICES] if os.path.isdir(place) else ():
            alias = _read(f"{place}/{name}/modalias").strip()
            if not alias or os.path.exists(f"{place}/{name}/driver"):
                continue
            aliases.append(alias)
            needed = needed or _read(f"{place}/{name}/class").startswith(_NEEDED_CLASSES)
    return sorted(set(aliases)), needed


def _set_hostname() -> None:
    import _socket

    name = _read("/etc/hostname").strip()
    _socket.sethostname(name if 0 < len(name) <= 64 else "localhost")


def _write_hosts() -> None:
    if not _read("/etc/hosts").strip():
        from bough.guest.agent_identity import write_file

        write_file("/etc/hosts", _HOSTS.encode())


def _free_resolver() -> None:
    """Remove a link to the file of a resolver that does not run: name servers are written here."""
    if os.path.islink(_RESOLV_CONF) and not os.path.exists(_RESOLV_CONF):
        os.unlink(_RESOLV_CONF)


def _raise_limits() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, _OPEN_FILES)


def _write(path: str, value: str) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(value.encode())


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(4096).decode("utf-8", "replace")
    except OSError:
        return ""


def catch_ctrl_alt_del() -> None:
    """Have the kernel send SIGINT for Ctrl-Alt-Delete instead of restarting at once."""
    system.reboot(system.NO_CTRL_ALT_DEL)


# -- the image's own init -----------------------------------------------------------------------------


def find_image_init(table: str = "/sys/firmware/dmi/tables/DMI") -> list[str]:
    """Return the words of the image's init, if the host wants it as process 1; none for bough's init.

    The host passes each word as an OEM string of the SMBIOS: bough.init=/sbin/init.

    Args:
        table: the SMBIOS structures, for tests.
    """
    try:
        with open(table, "rb", buffering=0) as file:
            strings = oem_strings(file.read(_MOST_TABLE))
    except OSError:
        return []  # firmware without SMBIOS
    return [os.fsdecode(one[len(_INIT_WORD) :]) for one in strings if one.startswith(_INIT_WORD)]


def oem_strings(table: bytes) -> list[bytes]:
    """Return the OEM strings (SMBIOS specification 7.12) of a table of structures."""
    found: list[bytes] = []
    at = 0
    while at + 4 <= len(table) and table[at + 1] >= 4:
        end = table.find(b"\0\0", at + table[at + 1])
        if end < 0:
            break
        if table[at] == _OEM_STRINGS:
            found += table[at + table[at + 1] : end].split(b"\0")
        at = end + 2
    return found
