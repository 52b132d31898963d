"""The file systems of one side, mounted on each other as in its /etc/fstab. Everything read is untrusted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bough.differences.disk import Disk, DiskUnreadable
from bough.differences.ext.files import ROOT, ExtFiles
from bough.differences.ext.inode import Inode
from bough.guest.install import DISK_PLACE

#: Links that are followed one after the other, as in Linux.
_MOST_LINKS = 16
_MOST_NAMES = 64
_FSTAB_LINE = re.compile(rb"^[ \t]*([^#\s]\S*)[ \t]+(/\S+)[ \t]+\S+", re.MULTILINE)
_DEVICE = re.compile(rb"/dev/(?:[a-z]+?([a-z])|[a-z]+\d+(?:n\d+)?)p?(\d+)")
_MOST_TEXT = 1 << 20
#: Content of a volume, by its magic bytes -> why bough does not read its files.
_REASONS = {
    "LUKS": "it is encrypted (LUKS)",
    "BitLocker": "it is encrypted (BitLocker)",
    "ntfs": "it has a file system of Windows (NTFS)",
    "LVM volume": "it is not in one piece on one disk",
    "Linux RAID": "it is a part of a RAID",
    "bcache": "it is a part of a bcache",
    "swap": "it has swap",
    "swap with a hibernated system": "it has swap with a hibernated system",
}
#: Volumes that never hold the root of a Linux.
_WITHOUT_ROOT = ("vfat", "swap")


@dataclass(frozen=True)
class Found:
    """A file system on a disk of the side.

    Attributes:
        disk: number of the disk.
        name: of the volume: a partition's number, "group/volume" of LVM, or "disk".
        kind: the content, by its magic bytes.
    """

    disk: int
    name: str
    kind: str
    offset_bytes: int
    size_bytes: int

    def __str__(self) -> str:
        place = "the whole disk" if self.name == "disk" else f"partition {self.name}"
        place = f"LVM volume {self.name}" if "/" in self.name else place
        return place if not self.disk else f"{place} of disk {self.disk}"


class Node(NamedTuple):
    """A file: its file system and its inode."""

    files: ExtFiles
    inode: Inode


@dataclass
class Tree:
    """The files of one side.

    Attributes:
        mounts: path -> the root of another file system. The root itself is at b"".
        unread: file systems that bough cannot read, with the reason.
        notes: sentences about the reading.
    """

    disks: Sequence[Disk]
    mounts: dict[bytes, ExtFiles] = field(default_factory=dict)
    unread: list[tuple[Found, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def root(self) -> Node:
        return root_of(self.mounts[b""])

    def child(self, path: bytes, parent: Node, number: int) -> Node:
        """Return the file at `path`, which the directory `parent` names as inode `number`."""
        mounted = self.mounts.get(path)
        return Node(parent.files, parent.files.inode(number)) if mounted is None else root_of(mounted)

    def find(self, path: bytes) -> Node | None:
        """Return the file at an absolute path. Links are followed, also at the end.

        A damaged directory, and a circle of links, count as missing.
        """
        names, done = path.split(b"/")[::-1], [(b"", self.root)]
        links = 0
        while names:
            name = names.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                done = done[:-1] if len(done) > 1 else done
                continue
            above, parent = done[-1]
            here = above + b"/" + name
            try:
                number = parent.files.entries(parent.inode).get(name) if parent.inode.is_directory else None
                node = None if number is None else self.child(here, parent, number)
                if node is not None and node.inode.is_link:
                    links += 1
                    target = node.files.link(node.inode)
                    if links > _MOST_LINKS or len(names) > _MOST_NAMES:
                        return None
                    done = done[:1] if target.startswith(b"/") else done
                    names += target.split(b"/")[::-1]
                    continue
            except DiskUnreadable:
                return None
            if node is None:
                return None
            done.append((here, node))
        return done[-1][1]

    def read(self, path: bytes, most_bytes: int = _MOST_TEXT) -> bytes | None:
        """Return the content of a regular file; None: missing, larger than `most_bytes`, or damaged."""
        node = self.find(path)
        if node is None or not node.inode.is_regular or node.inode.size > most_bytes:
            return None
        try:
            return node.files.read(node.inode, most_bytes)
        except DiskUnreadable:
            return None

    def names(self, path: bytes) -> dict[bytes, Node]:
        """Return the files in a directory; {} if the directory is missing or damaged."""
        node = self.find(path)
        if node is None or not node.inode.is_directory:
            return {}
        found = {}
        try:
            for name, number in node.files.entries(node.inode).items():
                found[name] = Node(node.files, node.files.inode(number))
        except DiskUnreadable:
            pass
        return found


def root_of(files: ExtFiles) -> Node:
    return Node(files, files.inode(ROOT))


def open_tree(disks: Sequence[Disk], found: Sequence[Found]) -> Tree:
    """Open the file systems of a side.

    Raises:
        DiskUnreadable: no file system has the root of a Linux. The text says what is there.
    """
    tree = Tree(disks)
    opened: list[tuple[Found, ExtFiles]] = []
    for one in found:
        if one.kind != "ext":
            tree.unread.append((one, _REASONS.get(one.kind, f"it has the file system {one.kind}")))
            continue
        try:
            files = ExtFiles(disks[one.disk], one.offset_bytes, one.size_bytes, str(one))
            if not root_of(files).inode.is_directory:
                raise DiskUnreadable("its first directory is damaged")
            opened.append((one, files))
        except DiskUnreadable as error:
            tree.unread.append((one, str(error)))
    roots = [files for _, files in opened if _is_linux(files)]
    if not roots and all(one.kind in _WITHOUT_ROOT for one, _ in tree.unread):
        roots = [files for _, files in opened]  # such as a container image that is one program
    if not roots:
        raise DiskUnreadable(_describe(tree.unread))
    # Of two Linuxes, the larger one: a rescue system is small.
    root = max(roots, key=lambda files: files.volume.size_bytes)
    tree.mounts[b""] = root
    if sum(map(_is_linux, roots)) > 1:
        tree.notes.append(f"the disk has {len(roots)} Linuxes; bough compares the one in {root.name}")
    _mount(tree, [(one, files) for one, files in opened if files is not root])
    return tree


def _is_linux(files: ExtFiles) -> bool:
    try:
        names = files.entries(root_of(files).inode)
    except DiskUnreadable:
        return False
    # The disk of each container image has the place of the agent disk; the image may have one program only.
    agent_place = DISK_PLACE.strip("/").encode()
    return agent_place in names or (b"etc" in names and bool({b"usr", b"bin"} & set(names)))


def _describe(unread: list[tuple[Found, str]]) -> str:
    if not unread:
        return "no file system was found"
    return "; ".join(f"{one}: {why}" for one, why in unread[:6])


def _mount(tree: Tree, others: list[tuple[Found, ExtFiles]]) -> None:
    """Give each further file system its place by /etc/fstab, or a place of its own beside the root."""
    lines = _FSTAB_LINE.findall(tree.read(b"/etc/fstab") or b"")
    for one, files in others:
        place = next((target for source, target in lines if _means(source, one, files)), None)
        path = place.rstrip(b"/") if place else b"/[" + str(one).encode() + b"]"
        if path and path not in tree.mounts:
            tree.mounts[path] = files
        if place is None:
            tree.notes.append(f"/etc/fstab does not name {one}; its files are below {path.decode()}")


def _means(source: bytes, one: Found, files: ExtFiles) -> bool:
    """Return whether the first word of a line of fstab(5) names this file system."""
    key, _, value = source.partition(b"=")
    text = value.strip(b'"').decode(errors="replace")
    if key == b"UUID":
        return text.lower() == files.geometry.identity
    if key == b"LABEL":
        return bool(text) and text == files.geometry.label
    if source.startswith((b"/dev/mapper/", b"/dev/")) and "/" in one.name:
        group, _, volume = one.name.partition("/")
        mapped = f"/dev/mapper/{group.replace('-', '--')}-{volume.replace('-', '--')}"
        return source.decode(errors="replace") in (f"/dev/{one.name}", mapped)
    device = _DEVICE.fullmatch(source)
    if device is None or device[2].decode() != one.name:
        return False
    return (ord(device[1]) - ord("a") if device[1] else 0) == one.disk
