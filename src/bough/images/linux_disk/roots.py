"""Find the root of a Linux in a file system, and tell which Linux it is. Everything read is untrusted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bough.guest.install import ENABLED_AS, LIBRARY, STARTER_PATH
from bough.images.linux_disk.elf import Program, parse_elf
from bough.images.linux_disk.tree import Entry, Tree, resolve

#: Programs that the kernel starts (Linux, init/main.c), and that an initrd without a root starts.
_INITS = ("/sbin/init", "/usr/sbin/init", "/etc/init", "/bin/init", "/init")
_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_BUSYBOX = ("/bin/busybox", "/usr/bin/busybox", "/sbin/busybox")
_OPENRC = ("/sbin/openrc", "/usr/sbin/openrc", "/usr/bin/openrc")
_SHELLS = ("/bin/sh", "/usr/bin/sh")
_RELEASES = ("/etc/os-release", "/usr/lib/os-release")
_INITTAB, _FSTAB, _RC = "/etc/inittab", "/etc/fstab", "/etc/init.d/rc"
_LOADERS = {
    "/boot/grub/grub.cfg": "grub",
    "/boot/grub2/grub.cfg": "grub",
    "/boot/extlinux/extlinux.conf": "extlinux",
    "/boot/extlinux.conf": "extlinux",
    "/boot/syslinux/syslinux.cfg": "syslinux",
    "/boot/loader/loader.conf": "systemd-boot",
    "/etc/lilo.conf": "lilo",
}
_AGENT = f"{LIBRARY}/bough/guest/agent.py"
#: A part of init's place -> the init system.
_BY_PROGRAM = (
    ("/systemd/", "systemd"),
    ("runit", "runit"),
    ("s6-linux-init", "s6"),
    ("/dinit/", "unknown"),
    ("/openrc-init/", "openrc"),
)
_MOST_TEXT = 256 * 1024
_MOST_PROGRAM = 32 * 1024 * 1024
_RELEASE_LINE = re.compile(r"""^(ID|VERSION_ID|PRETTY_NAME)=(["']?)(.{0,200}?)\2\s*$""", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z0-9._+~-]{1,40}")
_USR = re.compile(r"^\s*[^#\s]\S*\s+/usr/?\s", re.MULTILINE)


@dataclass(frozen=True)
class Root:
    """The root of a Linux.

    Attributes:
        os, version: as in /etc/os-release; "" if missing.
        title: the name for people.
        init: systemd, openrc, sysvinit, busybox, runit, s6 or unknown.
        agent: "installed": bough's agent with the guest's own Python; "disk": the starter; None: neither.
        boot_loader: grub, extlinux, syslinux, systemd-boot or lilo; None: unknown.
        inittab: the content of /etc/inittab.
        has_own_usr: /usr is another file system, so files below /usr of this one are not seen.
    """

    os: str
    version: str
    title: str
    init: str
    libc: str
    arch: str | None
    agent: Literal["installed", "disk"] | None
    boot_loader: str | None
    has_own_usr: bool
    inittab: bytes | None = None


async def read_root(tree: Tree) -> Root | None:
    """Return the Linux in a file system; None if the file system is not a root.

    Raises:
        TreeUnreadable
    """
    found = await resolve(tree, ["/etc/.", *_INITS, *_SYSTEMD, *_RELEASES])
    init = next((found[path] for path in (*_INITS, *_SYSTEMD) if path in found), None)
    if "/etc/." not in found or init is None or init[1].kind != "regular":
        return None
    others = (*_BUSYBOX, *_OPENRC, *_SHELLS, _INITTAB, _FSTAB, _RC, _AGENT, STARTER_PATH, *_LOADERS)
    found |= await resolve(tree, others)
    links = await tree.look([ENABLED_AS])
    contents = await _read_small(tree, found, (*_RELEASES, _INITTAB, _FSTAB, _RC))
    texts = {path: content.decode(errors="replace") for path, content in contents.items()}
    program = await _read_program(tree, [init, *(found[path] for path in _SHELLS if path in found)])
    release = parse_release(texts.get(_RELEASES[0]) or texts.get(_RELEASES[1]) or "")
    return Root(
        os=_word(release.get("ID", "")),
        version=_word(release.get("VERSION_ID", "")),
        title=_title(release),
        init=_name_init(*init, found, texts),
        libc=program.libc if program else "unknown",
        arch=program.arch if program else None,
        agent=_find_agent(found, links),
        boot_loader=next((name for path, name in _LOADERS.items() if path in found), None),
        inittab=contents.get(_INITTAB),
        has_own_usr=bool(_USR.search(texts.get(_FSTAB, ""))),
    )


def _find_agent(
    found: dict[str, tuple[str, Entry]], links: dict[str, Entry]
) -> Literal["installed", "disk"] | None:
    if _AGENT in found and ENABLED_AS in links:
        return "installed"
    return "disk" if STARTER_PATH in found else None


async def _read_small(
    tree: Tree, found: dict[str, tuple[str, Entry]], paths: tuple[str, ...]
) -> dict[str, bytes]:
    """Return the content of small regular files."""
    places = {
        path: found[path][0]
        for path in paths
        if path in found and found[path][1].kind == "regular" and found[path][1].size_bytes <= _MOST_TEXT
    }
    content = await tree.read(sorted(set(places.values())), _MOST_TEXT * len(places))
    return {path: content.get(place, b"") for path, place in places.items()}


async def _read_program(tree: Tree, candidates: list[tuple[str, Entry]]) -> Program | None:
    """Return the kind of the first program; a script does not tell the processor."""
    for path, entry in candidates:
        if entry.kind == "regular" and entry.size_bytes <= _MOST_PROGRAM:
            content = await tree.read([path], entry.size_bytes)
            program = parse_elf(content.get(path, b""))
            if program is not None:
                return program
    return None


def parse_release(text: str) -> dict[str, str]:
    """Return ID, VERSION_ID and PRETTY_NAME of an os-release(5)."""
    return {match[1]: match[3] for match in _RELEASE_LINE.finditer(text)}


def _word(text: str) -> str:
    return text if _WORD.fullmatch(text) else ""


def _title(release: dict[str, str]) -> str:
    title = release.get("PRETTY_NAME") or " ".join(
        filter(None, (release.get("ID", ""), release.get("VERSION_ID", "")))
    )
    shown = "".join(c for c in title if c.isprintable() and c not in "\\`\"'")[:80].strip()
    return shown or "a Linux without /etc/os-release"


def _name_init(place: str, entry: Entry, found: dict[str, tuple[str, Entry]], texts: dict[str, str]) -> str:
    """Name the init system by the program that init is, by its configuration and by what it starts."""
    if place.startswith(("/nix/", "/gnu/")):
        return "unknown"  # a package manager makes the configuration, and replaces it as a whole
    by_program = next((init for part, init in _BY_PROGRAM if part in f"{place}/"), None)
    if by_program is not None:
        return by_program
    starts_openrc = "openrc" in texts.get(_INITTAB, "") or "openrc" in texts.get(_RC, "")
    if starts_openrc and any(path in found for path in _OPENRC):
        return "openrc"
    boxes = {found[path][1].inode for path in _BUSYBOX if path in found}
    if place.endswith("/busybox") or entry.inode in boxes:
        return "busybox"
    return "sysvinit" if _INITTAB in texts else "unknown"
