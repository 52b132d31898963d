"""How each init of a guest starts the agent from the agent disk: the files, links and lines to add.

Each runs the starter (install.STARTER_PATH), which ends in silence without an agent disk, or sleeps for an
init that would start it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bough.guest.install import ENABLED_AS, STARTER_PATH, GuestFile, GuestLink

INITTAB = "/etc/inittab"
_INIT = Path(__file__).parent / "init"
_UNIT = "/etc/systemd/system/bough-agent.service"
_OPENRC, _RUNIT = "/etc/init.d/bough-agent", "/etc/sv/bough-agent"
#: Runs before the first runlevel, once. sysvinit gives up an entry that ends too often, and says so on the
#: console; busybox's init starts it again each second.
_SYSVINIT_LINE = f"bo:12345:once:{STARTER_PATH}"
_BUSYBOX_LINE = f"::once:{STARTER_PATH}"
#: The entries of busybox's init without a file.
_BUSYBOX_INITTAB = """\
::sysinit:/etc/init.d/rcS
::askfirst:-/bin/sh
tty2::askfirst:-/bin/sh
tty3::askfirst:-/bin/sh
tty4::askfirst:-/bin/sh
::ctrlaltdel:/sbin/reboot
::shutdown:/sbin/swapoff -a
::shutdown:/bin/umount -a -r
::restart:/sbin/init
"""


@dataclass(frozen=True)
class StartFiles:
    """Files and links that start the starter at each boot. Missing directories get mode 0755."""

    files: tuple[GuestFile, ...] = ()
    links: tuple[GuestLink, ...] = ()


def start_files(init: str, inittab: bytes | None = None) -> StartFiles | None:
    """Return what makes an init start the agent at each boot; None: bough does not know this init.

    Args:
        init: "systemd", "openrc", "sysvinit", "busybox" or "runit".
        inittab: content of the guest's /etc/inittab; None: there is none. The file of the result contains all
            its lines.
    """
    if init == "systemd":
        return StartFiles((_read("systemd.service", _UNIT, 0o644),), (GuestLink(ENABLED_AS, _UNIT),))
    if init == "openrc":
        link = GuestLink("/etc/runlevels/boot/bough-agent", _OPENRC)
        return StartFiles((_read("openrc.sh", _OPENRC, 0o755),), (link,))
    if init == "sysvinit":
        return None if inittab is None else _inittab(_add_first(inittab, _SYSVINIT_LINE))
    if init == "busybox":
        content = _BUSYBOX_INITTAB.encode() if inittab is None else inittab
        return _inittab(_add_last(content, _BUSYBOX_LINE))
    if init == "runit":
        link = GuestLink("/etc/runit/runsvdir/default/bough-agent", _RUNIT)
        return StartFiles((_read("runit-run.sh", f"{_RUNIT}/run", 0o755),), (link,))
    return None


def _read(name: str, path: str, mode: int) -> GuestFile:
    return GuestFile(path, (_INIT / name).read_bytes(), mode)


def _inittab(content: bytes) -> StartFiles:
    return StartFiles((GuestFile(INITTAB, content),))


def _others(inittab: bytes) -> list[bytes]:
    """Return the lines, except for entries that an earlier installation added."""
    return [line for line in inittab.split(b"\n") if not line.endswith(b":" + STARTER_PATH.encode())]


def _add_first(inittab: bytes, entry: str) -> bytes:
    """Add the entry before the first one of a runlevel: sysvinit starts entries in the file's order."""
    lines = _others(inittab)
    at = next((at for at, line in enumerate(lines) if _is_of_runlevel(line)), len(lines))
    return _join([*lines[:at], entry.encode(), *lines[at:]])


def _is_of_runlevel(line: bytes) -> bool:
    fields = line.split(b":", 3)
    early = (b"initdefault", b"sysinit", b"boot", b"bootwait")
    return len(fields) == 4 and not line.lstrip().startswith(b"#") and fields[2] not in early


def _add_last(inittab: bytes, entry: str) -> bytes:
    lines = _others(inittab)
    while lines and not lines[-1].strip():
        lines.pop()
    return _join([*lines, entry.encode()])


def _join(lines: list[bytes]) -> bytes:
    return b"\n".join(lines).rstrip(b"\n") + b"\n"
