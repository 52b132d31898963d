"""Read the disks in an OVA: a tar with a description (OVF, XML) and disks. All reads are bounded.

DMTF DSP0243 (OVF) and ISO 17203. Only the disks and their order are used; the rest of the described machine
is ignored. A Vagrant box is such a tar, too. A Vagrant box for libvirt is a tar with metadata.json and disks.
The same files may be in a directory instead of a tar.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote
from xml.etree import ElementTree

from bough.errors import BadImage
from bough.images.convert import SparseWriter
from bough.images.note import ExportNote, is_note, parse_note
from bough.units import MIB

_MOST_MEMBERS = 1000
_MOST_TEXT = 1 * MIB
_MOST_DISKS = 17
#: Description in a Vagrant box for libvirt.
_BOX = "metadata.json"
#: A file, perhaps in a directory.
_NAME = re.compile(r"(?!\.\.?/)(?:[^/]+/)?(?!\.\.?$)[^/]+")
_DIGEST_LINE = re.compile(r"(SHA1|SHA256|SHA512)\s*\((.{1,255})\)\s*=\s*([0-9a-fA-F]{40,128})")


@dataclass(frozen=True)
class Member:
    """A file in the tar: place, size, and the digest if the manifest names the file.

    Attributes:
        path: of a file in a directory; None: the file is in the tar.
    """

    name: str
    offset_bytes: int
    size_bytes: int
    digest: tuple[str, str] | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Found:
    """The disks in an OVA.

    Attributes:
        disks: the disks to extract, in order; the machine boots from the first one.
        note: the note of an OVA that bough exported.
    """

    disks: tuple[Member, ...]
    note: ExportNote | None = None


ALL_DISKS = "all"


def find_disks(stream: BinaryIO, size_bytes: int, wanted: str | None = None) -> Found:
    """Find the disks to extract from an OVA or a Vagrant box.

    Args:
        wanted: name of a disk. None, ALL_DISKS: all disks.

    Raises:
        BadImage: the file is no OVA, is truncated, names a file outside, or has no disk.
    """
    members = _read_members(stream, size_bytes)
    described = [name for name in members if name.lower().endswith(".ovf")]

    def read(member: Member) -> str:
        return _text(stream.fileno(), member)

    if len(described) > 1 or not (described or _BOX in members):
        raise BadImage(
            f"the archive has {len(described)} descriptions (.ovf), an OVA has one",
            hint="if it is another kind of tar, unpack it, and import the disk inside",
        )
    return _find(members, described[0] if described else None, read, wanted)


def find_disks_beside(path: Path, wanted: str | None = None) -> Found:
    """Find the disks of an OVF in a directory. Blocking.

    Args:
        path: the description, or a directory with one.
        wanted: as for find_disks.

    Raises:
        BadImage: as find_disks. Symbolic links count as missing files.
    """
    directory = path if path.is_dir() else path.parent
    members = _read_directory(directory)
    described = [path.name] if path != directory else [m for m in members if m.lower().endswith(".ovf")]
    if len(described) > 1 or not (described or _BOX in members):
        what = "no description (.ovf)" if not described else f"{len(described)} descriptions (.ovf)"
        raise BadImage(f"the directory has {what}", hint="name the description, or a disk")
    if described and described[0] not in members:
        raise BadImage(f"{described[0][:60]!r} is not a regular file")

    def read(member: Member) -> str:
        descriptor = os.open(directory / member.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return _text(descriptor, member)
        finally:
            os.close(descriptor)

    return _find(members, described[0] if described else None, read, wanted)


def _find(
    members: dict[str, Member], described: str | None, read: Callable[[Member], str], wanted: str | None
) -> Found:
    """Return the disks that the description names; without a description, those of the box."""
    note = None
    if described is None:
        names = _read_box(read(members[_BOX]), members)
    else:
        names, note = _read_description(read(members[described]), members)
    chosen = _choose(names, wanted)
    digests: dict[str, tuple[str, str]] = {}
    for name, member in members.items():
        if name.lower().endswith(".mf"):
            digests |= _read_digests(read(member))
    found = [replace(members[name], digest=digests.get(name)) for name in chosen]
    return Found(tuple(found), note)


def _choose(names: list[str], wanted: str | None) -> list[str]:
    if not names:
        raise BadImage("the OVA has no disk")
    if wanted in (None, ALL_DISKS):
        if len(names) > _MOST_DISKS:
            raise BadImage(
                f"the OVA has {len(names)} disks, more than the {_MOST_DISKS} of a machine",
                hint="choose one: --disk FILE",
            )
        return names
    if wanted not in names:
        raise BadImage(f"the OVA has no disk {wanted[:100]!r}", hint=f"it has: {_list(names)}")
    return [name for name in names if name == wanted]


def extract(
    source: Path, member: Member, target: Path, most_bytes: int, tell: Callable[[float], None]
) -> None:
    """Extract a file, and check the digest. Blocking.

    Raises:
        BadImage: the content does not match the digest, or the OVA is truncated.
    """
    algorithm, wanted = member.digest or ("sha256", None)
    digest = hashlib.new(algorithm)
    with _open(member.path or source) as stream, SparseWriter(target, most_bytes) as writer:
        stream.seek(member.offset_bytes)
        left = member.size_bytes
        while left:
            data = stream.read(min(left, MIB))
            if not data:
                raise BadImage("the OVA is truncated in the middle of its disk")
            digest.update(data)
            left -= len(data)
            if writer.write(data):
                tell(1 - left / member.size_bytes)
    if wanted is not None and digest.hexdigest() != wanted:
        raise BadImage(
            f"{member.name[:100]!r} in the OVA differs from its manifest ({algorithm})",
            hint="the file was altered or damaged",
        )


def _open(path: Path) -> BinaryIO:
    """Open a file of the archive. A description names files, so a link must not lead elsewhere."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def _list(names: list[str]) -> str:
    return ", ".join(name[:60] for name in names[:10])


def _read_members(stream: BinaryIO, size_bytes: int) -> dict[str, Member]:
    found: dict[str, Member] = {}
    try:
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for count, info in enumerate(archive):
                if count >= _MOST_MEMBERS:
                    raise BadImage(f"the OVA has more than {_MOST_MEMBERS} files")
                if info.isdir():
                    continue  # perhaps the packed directory itself
                if not info.isreg() or info.issparse():
                    raise BadImage("the OVA contains something other than regular files")
                name = info.name.removeprefix("./")
                if name.rpartition("/")[2].startswith("._"):
                    continue  # metadata of macOS about another file
                if not _NAME.fullmatch(name) or name in found or not name.isprintable():
                    raise BadImage(f"the OVA contains an invalid file name: {name[:60]!r}")
                if info.size < 0 or info.offset_data + info.size > size_bytes:
                    raise BadImage(f"the OVA is truncated: it ends in the middle of {name[:60]!r}")
                found[name] = Member(name, info.offset_data, info.size)
    except (tarfile.TarError, ValueError, OSError, UnicodeError, EOFError, OverflowError) as error:
        raise BadImage(f"the OVA is truncated or altered: {str(error)[:200]}") from error
    return _without_directory(found)


def _without_directory(members: dict[str, Member]) -> dict[str, Member]:
    """Return the files of a tar. If all files are in one directory, the names are without the directory.

    Raises:
        BadImage: files are in several directories.
    """
    directories = {name.rpartition("/")[0] for name in members}
    if len(directories) > 1:
        inner = next(name for name in members if "/" in name)
        raise BadImage(f"the OVA contains an invalid file name: {inner[:60]!r}")
    plain = {name.rpartition("/")[2]: member for name, member in members.items()}
    return {name: replace(member, name=name) for name, member in plain.items()}


def _read_directory(directory: Path) -> dict[str, Member]:
    """Return the regular files directly below a directory."""
    found: dict[str, Member] = {}
    with os.scandir(directory) as entries:
        for count, entry in enumerate(entries):
            if count >= _MOST_MEMBERS:
                raise BadImage(f"the directory has more than {_MOST_MEMBERS} files", hint="name one file")
            if entry.is_file(follow_symlinks=False) and entry.name.isprintable():
                size = entry.stat(follow_symlinks=False).st_size
                found[entry.name] = Member(entry.name, 0, size, path=Path(entry.path))
    return found


def _text(descriptor: int, member: Member) -> str:
    if member.size_bytes > _MOST_TEXT:
        raise BadImage(f"{member.name[:60]!r} in the OVA is too large for a description")
    data = os.pread(descriptor, member.size_bytes, member.offset_bytes)
    return data.decode("utf-8", errors="replace").lstrip("\ufeff")


def _read_description(text: str, members: dict[str, Member]) -> tuple[list[str], ExportNote | None]:
    """Return the names of the disk files, in the description's order, and the note of a bough export."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BadImage("the OVA's description defines XML entities, which bough refuses")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise BadImage(f"the OVA's description is broken: {str(error)[:200]}") from error
    files: dict[str, str] = {}
    disks: dict[str, str] = {}
    note = None
    for element in root.iter():
        tag, attributes = _local(element.tag), _attributes(element)
        if tag == "File":
            if "chunkSize" in attributes:
                raise BadImage("the OVA has a disk in chunks", hint="join them: cat disk.0* > disk.vmdk")
            files[attributes.get("id", "")] = attributes.get("href", "")
        elif tag == "Disk" and "fileRef" in attributes:
            disks[attributes.get("diskId", f" {len(disks)}")] = attributes["fileRef"]
        elif tag == "ProductSection":
            note = note or _read_property(element, attributes.get("class", ""))
    names = []
    for reference in _in_hardware_order(disks, root):
        href = files.get(reference)
        if href is None:
            raise BadImage("the OVA's description names a disk without a file")
        names.append(_member_of(href, members))
    return list(dict.fromkeys(names)), note


def _in_hardware_order(disks: dict[str, str], root: ElementTree.Element) -> list[str]:
    """Return the references to the files of the disks as the described machine numbers its disks: by the
    controller, and by the address there. The machine boots from the first disk.
    """
    order: dict[str, tuple[int, int]] = {}
    controllers: dict[str, int] = {}
    for element in root.iter():
        if _local(element.tag) not in ("Item", "StorageItem"):
            continue
        about = {_local(one.tag): (one.text or "").strip() for one in element}
        disk = about.get("HostResource", "").rpartition("/disk/")[2]
        if disk in disks:
            controller = controllers.setdefault(about.get("Parent", ""), len(controllers))
            address = about.get("AddressOnParent", "")
            order.setdefault(disk, (controller, int(address) if re.fullmatch(r"[0-9]{1,6}", address) else 0))
    return [disks[disk] for disk in sorted(disks, key=lambda disk: order.get(disk, (len(disks), 0)))]


def _member_of(href: str, members: dict[str, Member]) -> str:
    """Return the file that a description names, as plain text or as a URI ("my%20disk.vmdk")."""
    href = href.removeprefix("./")
    for name in (href, unquote(href)):
        if "/" in name or "\\" in name:
            raise BadImage(f"the OVA's description leads outside of it: {name[:100]!r}")
        if name in members:
            return name
    raise BadImage(f"the OVA is incomplete: {href[:100]!r} is in the description, but not in the archive")


def _read_property(section: ElementTree.Element, kind: str) -> ExportNote | None:
    for element in section.iter():
        attributes = _attributes(element)
        if _local(element.tag) == "Property" and is_note(kind, attributes.get("key", "")):
            return parse_note(attributes.get("value"))
    return None


def _attributes(element: ElementTree.Element) -> dict[str, str]:
    return {_local(key): value for key, value in element.attrib.items()}


def _read_box(text: str, members: dict[str, Member]) -> list[str]:
    """Return the names of the disks in a Vagrant box for libvirt (vagrant-libvirt, "Box formats")."""
    try:
        told: Any = json.loads(text)
    except ValueError:
        told = None
    listed = told.get("disks") if isinstance(told, dict) else None
    if isinstance(listed, list):
        paths = [str(disk.get("path", "")) for disk in listed if isinstance(disk, dict)]
        return [_member_of(path, members) for path in paths]
    if "box.img" in members:
        return ["box.img"]
    provider = str(told.get("provider", ""))[:40] if isinstance(told, dict) else ""
    raise BadImage(
        f"the archive is a box for {provider or 'an unknown provider'}, in which no disk was found",
        hint="bough reads boxes for libvirt and virtualbox; unpack other boxes, and import the disk inside",
    )


def _local(name: object) -> str:
    return str(name).rpartition("}")[2]


def _read_digests(text: str) -> dict[str, tuple[str, str]]:
    return {
        name: (match[1].lower(), match[3].lower())
        for match in map(_DIGEST_LINE.match, text.splitlines())
        if match
        for name in _names_of(match[2].strip().removeprefix("./"))
    }


def _names_of(name: str) -> tuple[str, str]:
    """Return the possible names of a manifest's entry: as written, and decoded from a URI."""
    return name, unquote(name)
