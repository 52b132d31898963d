"""An OVA: a tar with a description (OVF, XML) and disks. Read with bounds; only its disks are taken out.

DMTF DSP0243 (OVF) and ISO 17203. Nothing of the machine that the description describes is taken over. A box
of Vagrant's is such a tar too, or, for libvirt, a tar with metadata.json and disks.
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
#: Of a box for libvirt.
_BOX = "metadata.json"
_DIGEST_LINE = re.compile(r"(SHA1|SHA256|SHA512)\s*\((.{1,255})\)\s*=\s*([0-9a-fA-F]{40,128})")


@dataclass(frozen=True)
class Member:
    """A file in the tar: `size_bytes` of it, `offset_bytes` from the start; its digest where one is given."""

    name: str
    offset_bytes: int
    size_bytes: int
    digest: tuple[str, str] | None = None


@dataclass(frozen=True)
class Found:
    """Attributes:
    disks: those to take, the first one first.
    note: of an OVA that bough exported.
    """

    disks: tuple[Member, ...]
    note: ExportNote | None = None


ALL_DISKS = "all"


def find_disks(stream: BinaryIO, size_bytes: int, wanted: str | None = None) -> Found:
    """What is to be taken out of the OVA, or the box.

    Args:
        wanted: with several disks, the name of one, or ALL_DISKS. Of an OVA of ours None is all.

    Raises:
        BadImage: no OVA, a truncated one, one that leads outside, none or several disks.
    """
    members = _read_members(stream, size_bytes)
    described = [name for name in members if name.lower().endswith(".ovf")]
    note = None
    if not described and _BOX in members:
        names = _read_box(_text(stream, members[_BOX]), members)
    elif len(described) == 1:
        names, note = _read_description(_text(stream, members[described[0]]), members)
    else:
        raise BadImage(
            f"the archive has {len(described)} descriptions (.ovf), an OVA has one",
            hint="a tar of something else? Unpack it, and import the disk that is in it",
        )
    chosen = _choose(names, wanted, note)
    digests: dict[str, tuple[str, str]] = {}
    for name, member in members.items():
        if name.lower().endswith(".mf"):
            digests |= _read_digests(_text(stream, member))
    found = [replace(members[name], digest=digests.get(name)) for name in chosen]
    return Found(tuple(found), note)


def _choose(names: list[str], wanted: str | None, note: ExportNote | None) -> list[str]:
    if wanted is None and note is not None and note.disks == len(names):
        wanted = ALL_DISKS
    if not names:
        raise BadImage("the OVA has no disk")
    if wanted == ALL_DISKS or (wanted is None and len(names) == 1):
        return names[:_MOST_DISKS]
    if wanted is None:
        raise BadImage(
            f"the OVA has {len(names)} disks: {_list(names)}",
            hint=f"name one of them: --disk FILE; or all, the first one being what boots: --disk {ALL_DISKS}",
        )
    if wanted not in names:
        raise BadImage(f"the OVA has no disk {wanted[:100]!r}", hint=f"it has: {_list(names)}")
    return [wanted]


def extract(
    source: Path, member: Member, target: Path, most_bytes: int, tell: Callable[[float], None]
) -> None:
    """Copy it out, and hold it against its digest. Blocking.

    Raises:
        BadImage: it is not what its digest says.
    """
    algorithm, wanted = member.digest or ("sha256", None)
    digest = hashlib.new(algorithm)
    with source.open("rb") as stream, SparseWriter(target, most_bytes) as writer:
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
            f"{member.name[:100]!r} in the OVA is not what its manifest says ({algorithm} differs)",
            hint="it was altered, or damaged on its way",
        )


def _list(names: list[str]) -> str:
    return ", ".join(name[:60] for name in names[:10])


def _read_members(stream: BinaryIO, size_bytes: int) -> dict[str, Member]:
    found: dict[str, Member] = {}
    try:
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for count, info in enumerate(archive):
                if count >= _MOST_MEMBERS:
                    raise BadImage(f"the OVA has more than {_MOST_MEMBERS} files in it")
                if info.isdir() and info.name.strip("./") == "":
                    continue  # the directory that was packed
                if not info.isreg() or info.issparse():
                    raise BadImage("the OVA has something in it that is no plain file")
                name = info.name.removeprefix("./")
                if name.startswith("._"):
                    continue  # what macOS keeps beside a file
                if not name or "/" in name or name in found or not name.isprintable():
                    raise BadImage(f"the OVA has a file {name[:60]!r} in it, which no OVA has")
                if info.size < 0 or info.offset_data + info.size > size_bytes:
                    raise BadImage(f"the OVA is truncated: it ends in the middle of {name[:60]!r}")
                found[name] = Member(name, info.offset_data, info.size)
    except (tarfile.TarError, ValueError, OSError, UnicodeError, EOFError, OverflowError) as error:
        raise BadImage(f"the OVA is truncated or altered: {str(error)[:200]}") from error
    return found


def _text(stream: BinaryIO, member: Member) -> str:
    if member.size_bytes > _MOST_TEXT:
        raise BadImage(f"{member.name[:60]!r} in the OVA is larger than any description")
    data = os.pread(stream.fileno(), member.size_bytes, member.offset_bytes)
    return data.decode("utf-8", errors="replace").lstrip("\ufeff")


def _read_description(text: str, members: dict[str, Member]) -> tuple[list[str], ExportNote | None]:
    """Names of the disks' files, in the description's order; and the note of an export of ours."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BadImage("the OVA's description defines entities, which none needs")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise BadImage(f"the OVA's description is broken: {str(error)[:200]}") from error
    files: dict[str, str] = {}
    disks: list[str] = []
    note = None
    for element in root.iter():
        tag, attributes = _local(element.tag), _attributes(element)
        if tag == "File":
            if "chunkSize" in attributes:
                raise BadImage("the OVA has a disk in chunks", hint="join them: cat disk.0* > disk.vmdk")
            files[attributes.get("id", "")] = attributes.get("href", "")
        elif tag == "Disk" and "fileRef" in attributes:
            disks.append(attributes["fileRef"])
        elif tag == "ProductSection":
            note = note or _read_property(element, attributes.get("class", ""))
    names = []
    for reference in disks:
        href = files.get(reference)
        if href is None:
            raise BadImage("the OVA's description names a disk without a file")
        names.append(_member_of(href, members))
    return list(dict.fromkeys(names)), note


def _member_of(href: str, members: dict[str, Member]) -> str:
    """The file that a description names: as it is, or as a URI has it ("my%20disk.vmdk")."""
    href = href.removeprefix("./")
    for name in (href, unquote(href)):
        if "/" in name or "\\" in name:
            raise BadImage(f"the OVA's description leads outside of it: {name[:100]!r}")
        if name in members:
            return name
    raise BadImage(f"the OVA is incomplete: {href[:100]!r} is described and not there")


def _read_property(section: ElementTree.Element, kind: str) -> ExportNote | None:
    for element in section.iter():
        attributes = _attributes(element)
        if _local(element.tag) == "Property" and is_note(kind, attributes.get("key", "")):
            return parse_note(attributes.get("value"))
    return None


def _attributes(element: ElementTree.Element) -> dict[str, str]:
    return {_local(key): value for key, value in element.attrib.items()}


def _read_box(text: str, members: dict[str, Member]) -> list[str]:
    """Names of the disks of a Vagrant box for libvirt (vagrant-libvirt, "Box formats")."""
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
        hint="boxes for libvirt and virtualbox are read; unpack any other, and import the disk in it",
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
    """A manifest has names as they are, or as its description's URIs have them."""
    return name, unquote(name)
