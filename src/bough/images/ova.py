"""An OVA: a tar with a description (OVF, XML) and disks. Read with bounds; only its disk is taken out.

DMTF DSP0243 (OVF) and ISO 17203. Nothing of the machine that the description describes is taken over.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from bough.errors import BadImage
from bough.images.convert import SparseWriter
from bough.units import MIB

_MOST_MEMBERS = 1000
_MOST_TEXT = 1 * MIB
_DIGEST_LINE = re.compile(r"(SHA1|SHA256|SHA512)\s*\((.{1,255})\)\s*=\s*([0-9a-fA-F]{40,128})")


@dataclass(frozen=True)
class Member:
    """A file in the tar: `size_bytes` of it, `offset_bytes` from the start; its digest where one is given."""

    name: str
    offset_bytes: int
    size_bytes: int
    digest: tuple[str, str] | None = None


def find_disk(stream: BinaryIO, size_bytes: int, wanted: str | None = None) -> Member:
    """The disk that is in the OVA; with several, the one called `wanted`.

    Raises:
        BadImage: no OVA, a truncated one, one that leads outside, none or several disks.
    """
    members = _read_members(stream, size_bytes)
    described = [name for name in members if name.lower().endswith(".ovf")]
    if len(described) != 1:
        raise BadImage(
            f"the archive has {len(described)} descriptions (.ovf), an OVA has one",
            hint="a tar of something else? Unpack it, and import the disk that is in it",
        )
    disks = _read_description(_text(stream, members[described[0]]))
    missing = [name for name in disks if name not in members]
    if missing:
        raise BadImage(f"the OVA is incomplete: {missing[0][:100]!r} is described and not there")
    if wanted is not None and wanted not in disks:
        raise BadImage(f"the OVA has no disk {wanted[:100]!r}", hint=f"it has: {_list(disks)}")
    if not disks or (len(disks) > 1 and wanted is None):
        raise BadImage(
            "the OVA has no disk" if not disks else f"the OVA has {len(disks)} disks: {_list(disks)}",
            hint="name one of them: --disk FILE" if disks else None,
        )
    found = members[wanted or disks[0]]
    for name, member in members.items():
        if name.lower().endswith(".mf"):
            digests = _read_digests(_text(stream, member))
            return Member(found.name, found.offset_bytes, found.size_bytes, digests.get(found.name))
    return found


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
                if not info.isreg() or info.issparse() or info.isdir():
                    raise BadImage("the OVA has something in it that is no plain file")
                name = info.name.removeprefix("./")
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


def _read_description(text: str) -> list[str]:
    """Names of the disks' files, in the description's order."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BadImage("the OVA's description defines entities, which none needs")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise BadImage(f"the OVA's description is broken: {str(error)[:200]}") from error
    files: dict[str, str] = {}
    disks: list[str] = []
    for element in root.iter():
        tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        if tag == "File":
            files[attributes.get("id", "")] = attributes.get("href", "")
        elif tag == "Disk" and "fileRef" in attributes:
            disks.append(attributes["fileRef"])
    names = []
    for reference in disks:
        name = files.get(reference)
        if name is None:
            raise BadImage("the OVA's description names a disk without a file")
        if "/" in name or "\\" in name:
            raise BadImage(f"the OVA's description leads outside of it: {name[:100]!r}")
        names.append(name)
    return list(dict.fromkeys(names))


def _local(name: object) -> str:
    return str(name).rpartition("}")[2]


def _read_digests(text: str) -> dict[str, tuple[str, str]]:
    return {
        match[2].strip(): (match[1].lower(), match[3].lower())
        for match in map(_DIGEST_LINE.match, text.splitlines())
        if match
    }
