"""What a live host tells about itself: parsed, bounded, and never trusted for a path or a size here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from bough.errors import BadImage

_MOST_TEXT = 4 * 1024 * 1024
_MOST_ENTRIES = 10_000
_MOST_WORD = 4096
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A mounted file system.

    Attributes:
        root: the directory of the file system that is mounted: "/" unless it is a bind mount or a subvolume.
        point: the mount point.
        kind: the file system type: "ext4".
        device: as in the mount table: "/dev/sda1".
        numbers: major and minor device number.
    """

    numbers: str
    root: str
    point: str
    kind: str
    device: str


@dataclass
class HostFacts:
    """A live host.

    Attributes:
        uid: of the user who asked: 0 for root.
        machine: processor, as `uname -m` says.
        cmdline: of its kernel. firmware: "bios" or "uefi".
        lacks: abilities that its rsync was built without: "ACLs", "xattrs".
        used: mount point -> bytes in use. files: mount point -> number of files.
        layers: device -> kinds of block devices, from lsblk: "part", "lvm", "crypt", "raid1".
        drivers: name -> "builtin" or "module".
        images: kernel images.
    """

    uid: int = -1
    machine: str = ""
    kernel: str = ""
    hostname: str = ""
    init: str = ""
    container: str = ""
    rsync: str = ""
    cmdline: str = ""
    firmware: str = "bios"
    os: dict[str, str] = field(default_factory=dict)
    programs: set[str] = field(default_factory=set)
    lacks: set[str] = field(default_factory=set)
    mounts: list[Mount] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    layers: dict[str, set[str]] = field(default_factory=dict)
    swap_bytes: int = 0
    images: list[str] = field(default_factory=list)
    drivers: dict[str, str] = field(default_factory=dict)
    complete: bool = False


def parse_facts(text: str) -> HostFacts:
    """Return the facts from the output of look.sh.

    Raises:
        BadImage: the output is not that of look.sh, or does not end as it should.
    """
    facts = HostFacts()
    lines = text[:_MOST_TEXT].split("\n")
    for line in lines[:_MOST_ENTRIES]:
        key, tab, value = line.partition("\t")
        if tab:
            _add(facts, key, value)
    if not facts.complete:
        raise BadImage(
            "the host's shell did not finish the script that looks at the host",
            hint="a login script that prints or asks something may be the reason: try ssh HOST true",
        )
    return facts


_TEXTS = ("machine", "kernel", "hostname", "init", "container", "rsync", "cmdline", "firmware")


def _add(facts: HostFacts, key: str, value: str) -> None:
    if key in _TEXTS:
        setattr(facts, key, _clean(value))
    elif key == "uid":
        facts.uid = int(value) if value.isdigit() else -1
    elif key.startswith("os."):
        facts.os[key[3:]] = _clean(value)
    elif key == "program":
        facts.programs.add(_clean(value))
    elif key == "lacks":
        facts.lacks.add(_clean(value))
    elif key == "image":
        facts.images.append(_clean(value))
    elif key == "driver":
        name, _, kind = value.partition(" ")
        facts.drivers[_clean(name)] = kind
    elif key == "done":
        facts.complete = True
    else:
        _add_storage(facts, key, value)


def _add_storage(facts: HostFacts, key: str, value: str) -> None:
    words = value.split(" ")
    if key == "mount" and len(words) == 5:
        numbers, root, point, kind, device = words
        facts.mounts.append(Mount(numbers, _unescape(root), _unescape(point), kind, _unescape(device)))
    elif key == "used" and len(words) >= 3 and words[0].isdigit():
        facts.used[" ".join(words[2:])] = int(words[0][:18]) * 1024
    elif key == "files" and len(words) >= 2 and words[0].isdigit():
        facts.files[" ".join(words[1:])] = int(words[0][:18])
    elif key == "block" and len(words) >= 2:
        facts.layers.setdefault(words[0], set()).add(words[1])
    elif key == "swap" and words[0].isdigit():
        facts.swap_bytes += int(words[0][:18]) * 1024


def _unescape(text: str) -> str:
    """Return a field of mountinfo without its octal escapes (proc(5))."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)


def _clean(text: str) -> str:
    return "".join(letter for letter in text[:_MOST_WORD] if letter.isprintable())
