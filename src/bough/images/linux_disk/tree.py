"""The files of a file system on a disk. Everything read is untrusted.

`Tree` is implemented by debugfs.py for ext2, ext3 and ext4, without mounting the file system, and by
disk_guest.py for others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

#: Paths that bough uses. Others, as a link of a hostile disk may have, count as missing.
_PATH = re.compile(r"/[A-Za-z0-9/._+@:%,=~-]{0,1023}")
#: Links that are followed one after the other, as in Linux.
_MOST_LINKS = 16


class TreeUnreadable(Exception):
    """The file system is damaged, has unknown features, or is too slow to read. The text says which."""


@dataclass(frozen=True)
class Entry:
    """A file, directory or link.

    Attributes:
        kind: "regular", "directory", "symlink", or another word of debugfs.
        mode: the permissions, such as 0o644.
        target: of a symlink; None also if the target contains unusual characters.
    """

    kind: str
    mode: int = 0o644
    size_bytes: int = 0
    inode: int = 0
    target: str | None = None


class Tree(Protocol):
    """Read access to a file system. Links are followed, except a link at the end of a path.

    All methods raise TreeUnreadable.
    """

    async def look(self, paths: Sequence[str]) -> dict[str, Entry]:
        """Return the existing entries."""
        ...

    async def names(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """Return the names in the existing directories. Unusual names are left out."""
        ...

    async def read(self, paths: Sequence[str], most_bytes: int) -> dict[str, bytes]:
        """Return the content of regular files, which have at most `most_bytes` together."""
        ...

    async def copy(self, path: str, target: BinaryIO, most_bytes: int) -> None:
        """Write the content of a regular file to an open file."""
        ...

    async def read_security_labels(self, paths: Sequence[str]) -> dict[str, str]:
        """Return the SELinux context of each file that has one."""
        ...


def is_usable(path: str) -> bool:
    return _PATH.fullmatch(path) is not None


async def resolve(tree: Tree, paths: Sequence[str]) -> dict[str, tuple[str, Entry]]:
    """Follow the links at the end of paths. Return the final path and entry of each existing path.

    A final path may contain "..", which counts from the directory that a link leads to.
    """
    found: dict[str, tuple[str, Entry]] = {}
    places = {path: path for path in paths if is_usable(path)}
    for _ in range(_MOST_LINKS):
        if not places:
            break
        entries = await tree.look(sorted(set(places.values())))
        following: dict[str, str] = {}
        for path, place in places.items():
            entry = entries.get(place)
            if entry is not None and entry.kind != "symlink":
                found[path] = (place, entry)
            elif entry is not None and entry.target:
                target = entry.target
                joined = target if target.startswith("/") else f"{place.rpartition('/')[0]}/{target}"
                if is_usable(joined):
                    following[path] = joined
        places = following
    return found
