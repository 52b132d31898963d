"""Detect the format of a file and check its header, before any other program opens the file.

The header is not trusted. A reference to another file is always refused, because the reference names a file
of this host. Examples are a qcow2's backing file or data file, a vmdk's parent or extents, and the parents of
vdi and vhdx. A size above the allowed limit is refused, too. bough reads some kilobytes at most, whatever the
header says.

    qcow2   QEMU docs/interop/qcow2.txt             vmdk   VMware Virtual Disk Format 1.1
    vdi     VirtualBox src/VBox/Storage/VDICore.h   vhdx   [MS-VHDX]
    iso     ECMA-119, El Torito 1.0                 ova    a tar (POSIX ustar) with an OVF inside
    vhd     Virtual Hard Disk Image Format 1.0: a disk, and 512 bytes after it with its description
"""

from __future__ import annotations

import io
import re
import struct
import uuid
from dataclasses import dataclass
from typing import BinaryIO

from bough.errors import BadImage
from bough.units import GIB, TIB, format_size

SECTOR = 512
#: Formats that a user may name.
FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vhd", "ova", "iso")
#: Programs that unpack standard input to standard output.
COMPRESSIONS = {
    "gz": ("gzip", "-dc"),
    "xz": ("xz", "-dc", "--memlimit=1GiB"),
    "zst": ("zstd", "-dc", "-q", "--memory=1024MB"),
    "bz2": ("bzip2", "-dc"),
}
MOST_BYTES = 2 * TIB
_MAGIC = {
    b"\x1f\x8b": "gz",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"BZh": "bz2",
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"vhdxfile": "vhdx",
}
#: Formats that bough recognizes only to refuse them with a helpful message.
_REFUSED = {
    b"# Disk DescriptorFile": (
        "is the description of a vmdk whose data is in other files",
        "import the data file (*-flat.vmdk) with --format raw, or merge the files: "
        "qemu-img convert -O qcow2 disk.vmdk disk.qcow2",
    ),
    b"COWD": ("is a vmdk of the old ESX kind", "convert it first: qemu-img convert -f vmdk -O qcow2"),
    b"conectix": ("is a vhd", "convert it first: qemu-img convert -f vpc -O qcow2"),
    b"PK\x03\x04": ("is a zip archive", "unpack it, and import the disk inside"),
    b"7z\xbc\xaf\x27\x1c": ("is a 7z archive", "unpack it, and import the disk inside"),
    b"MSWIM\0\0\0": ("is a Windows installation archive (wim)", "import the ISO that contains it"),
    b"LUKS\xba\xbe": ("is encrypted (LUKS)", "decrypt it first"),
    b"\x7fELF": ("is a program", None),
}
_ISO_START = 0x8000
_VHD_COOKIE = b"conectix"
_VHD_FIXED = 2
_QCOW2_DATA_FILE = 1 << 2
_QCOW2_KNOWN = 0b11111  # dirty, corrupt, data file, compression type, extended L2 entries
_VMDK_DESCRIPTOR_BYTES = 20 * SECTOR
_VHDX_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_VHDX_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_VHDX_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_VHDX_REGION_TABLES = (0x30000, 0x40000)
#: Size of the largest floppy. Every disk is larger.
_FLOPPY_BYTES = 2880 * 1024


@dataclass(frozen=True)
class Header:
    """The checked header of a disk image.

    Attributes:
        size_bytes: size of the disk in a guest.
        firmware: firmware types that an ISO supports; empty if the ISO names none.
    """

    format: str
    size_bytes: int
    firmware: tuple[str, ...] = ()


def detect(stream: BinaryIO, size_bytes: int) -> str:
    """Return the format of a file: one of FORMATS or of COMPRESSIONS.

    Raises:
        BadImage: the file is empty, is known not to be a disk, or is not recognized.
    """
    head = _read(stream, 0, 4096)
    if not head:
        raise BadImage("the file is empty")
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    for magic, (what, hint) in _REFUSED.items():
        if head.startswith(magic):
            raise BadImage(f"the file {what}", hint=hint)
    if head[0x40:0x44] == b"\x7f\x10\xda\xbe":
        return "vdi"
    if _read(stream, _ISO_START + 1, 5) == b"CD001":
        return "iso"
    if head[257:262] == b"ustar":
        return "ova"
    if _read(stream, size_bytes - SECTOR, 8) == _VHD_COOKIE:
        return "vhd"
    if _is_raw(stream, head, size_bytes):
        return "raw"
    text = head[:512].lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise BadImage("the file is a web page, not a disk image", hint="use the address of the file itself")
    raise BadImage(
        "the file has no known disk format, and no boot sector or partition table",
        hint="if it is a raw disk, use --format raw",
    )


def _is_raw(stream: BinaryIO, head: bytes, size_bytes: int) -> bool:
    """Return whether the file has a boot sector, a partition table, or a file system on the whole disk."""
    if size_bytes % SECTOR:
        return False
    return (
        head[510:512] == b"\x55\xaa"
        or head[512:520] == b"EFI PART"
        or _read(stream, 4096, 8) == b"EFI PART"
        or head[0x438:0x43A] == b"\x53\xef"  # ext2 to ext4
        or head[:4] == b"XFSB"
        or _read(stream, 0x10040, 8) == b"_BHRfS_M"  # btrfs
    )


def read_header(stream: BinaryIO, size_bytes: int, format: str, *, most_bytes: int = MOST_BYTES) -> Header:
    """Read and check the header of a disk image of `format` (one of FORMATS, except for "ova").

    Raises:
        BadImage: the file has another format, is truncated, names another file, or holds a disk of more than
            `most_bytes`.
    """
    readers = {
        "raw": _read_raw,
        "qcow2": _read_qcow2,
        "vmdk": _read_vmdk,
        "vdi": _read_vdi,
        "vhdx": _read_vhdx,
        "iso": _read_iso,
        "vhd": _read_vhd,
    }
    try:
        header = readers[format](stream, size_bytes)
    except (struct.error, IndexError):
        raise BadImage(f"the file ends in the middle of its {format} header") from None
    if header.size_bytes <= 0:
        raise BadImage(f"the {format} holds a disk of 0 bytes")
    if header.size_bytes > most_bytes:
        raise BadImage(
            f"the {format} says that its disk has {_format_any(header.size_bytes)}, "
            f"more than the limit of {format_size(most_bytes)}",
            hint="raise the limit with --max-size",
        )
    return header


def _format_any(size_bytes: int) -> str:
    return format_size(size_bytes) if size_bytes < 1 << 60 else f"2^{size_bytes.bit_length() - 1} bytes"


def _read(stream: BinaryIO, offset: int, length: int) -> bytes:
    if offset < 0 or offset > 1 << 62:
        return b""
    try:
        stream.seek(offset)
        return stream.read(length)
    except (OSError, OverflowError):
        return b""


def _round_up(size_bytes: int) -> int:
    return -(-size_bytes // SECTOR) * SECTOR


def _read_raw(stream: BinaryIO, size_bytes: int) -> Header:
    if size_bytes == 0:
        raise BadImage("the file is empty")
    table = _read(stream, SECTOR, 92)
    if table.startswith(b"EFI PART"):
        # UEFI specification 5.3.2: AlternateLBA is the last sector of the disk.
        (last,) = struct.unpack_from("<Q", table, 32)
        if (last + 1) * SECTOR > size_bytes:
            raise BadImage(
                f"the file has {format_size(size_bytes)}, but its partition table describes a disk of "
                f"{_format_any((last + 1) * SECTOR)}: its end is missing"
            )
    return Header("raw", _round_up(size_bytes))


def _read_qcow2(stream: BinaryIO, size_bytes: int) -> Header:
    head = _read(stream, 0, 104)
    magic, version, backing, backing_length, bits, size, crypt = struct.unpack_from(">4sIQIIQI", head)
    if magic != b"QFI\xfb":
        raise BadImage("the file is not a qcow2")
    if version not in (2, 3):
        raise BadImage(
            f"the file is a qcow of version {version}, which bough cannot read",
            hint="convert it first: qemu-img convert -O qcow2",
        )
    if backing:
        raise _reference("qcow2", "backing file", _read(stream, backing, min(backing_length, 200)))
    if crypt:
        raise BadImage("the qcow2 is encrypted", hint="decrypt it first: qemu-img convert")
    incompatible = 0
    if version == 3:
        (incompatible,) = struct.unpack_from(">Q", head, 72)
        (header_length,) = struct.unpack_from(">I", head, 100)
        name = _find_data_file(stream, min(header_length, 4096))
        if incompatible & _QCOW2_DATA_FILE or name is not None:
            raise _reference("qcow2", "data file", name or b"")
    if incompatible & ~_QCOW2_KNOWN:
        raise BadImage("the qcow2 uses unknown features", hint="a newer QEMU may convert it")
    if not 9 <= bits <= 21:
        raise BadImage(f"the qcow2 says that its clusters have 2^{bits} bytes, but 2^9 to 2^21 are allowed")
    if size_bytes < 1 << bits:
        raise BadImage("the qcow2 is truncated: it ends in its first cluster")
    return Header("qcow2", _round_up(size))


def _find_data_file(stream: BinaryIO, offset: int) -> bytes | None:
    """Return the name in the header extension "DATA"; None without the extension."""
    area = _read(stream, offset, 4096)
    place = 0
    while place + 8 <= len(area):
        kind, length = struct.unpack_from(">II", area, place)
        if kind == 0:
            return None
        if kind == 0x44415441:
            return area[place + 8 : place + 8 + min(length, 200)]
        place += 8 + -(-length // 8) * 8
    return None


def _reference(format: str, what: str, name: bytes) -> BadImage:
    shown = name.decode(errors="replace").strip("\0")[:100]
    named = f" ({shown!r})" if shown else ""
    return BadImage(
        f"the {format} names another file as its {what}{named}, which an imported image must not do",
        hint=f"merge the files, if you trust them: qemu-img convert -O qcow2 disk.{format} whole.qcow2",
    )


def _read_vmdk(stream: BinaryIO, size_bytes: int) -> Header:
    head = _read(stream, 0, SECTOR)
    magic, _, _, capacity, _, place, length = struct.unpack_from("<4sIIQQQQ", head)
    if magic != b"KDMV":
        raise BadImage("the file is not a sparse vmdk", hint="import a *-flat.vmdk with --format raw")
    if capacity == 0:
        # With a capacity of 0, QEMU reads the extents from the description inside.
        raise _reference("vmdk", "extent", b"")
    # QEMU always reads the description at 0x200. Other programs read it at the place in the header.
    for offset, limit in ((SECTOR, _VMDK_DESCRIPTOR_BYTES), (place * SECTOR, length * SECTOR)):
        _check_vmdk_description(_read(stream, offset, min(limit, 64 * 1024)))
    if capacity > 1 << 54:
        return Header("vmdk", 1 << 62)
    return Header("vmdk", capacity * SECTOR)


def _check_vmdk_description(text: bytes) -> None:
    if not text.lstrip().startswith(b"# Disk DescriptorFile"):
        return
    text = text.partition(b"\0")[0]
    hint = re.search(rb'parentFileNameHint\s*=\s*"?([^"\r\n]*)', text, re.IGNORECASE)
    parent = re.search(rb"parentCID\s*=\s*([0-9a-f]+)", text, re.IGNORECASE)
    if hint or (parent and parent[1].lower() != b"ffffffff"):
        raise _reference("vmdk", "parent", hint[1] if hint else b"")
    extents = re.findall(
        rb"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)\s*(?:\"([^\"\r\n]*)\")?", text, re.MULTILINE
    )
    for kind, name in extents[1:] if len(extents) > 1 else []:
        raise _reference("vmdk", f"{kind.decode(errors='replace').lower()[:20]} extent", name)
    if extents and extents[0][0] not in (b"SPARSE", b"ZERO"):
        raise _reference("vmdk", "extent", extents[0][1])


def _read_vdi(stream: BinaryIO, size_bytes: int) -> Header:
    head = _read(stream, 0, SECTOR)
    signature, version = struct.unpack_from("<II", head, 0x40)
    if signature != 0xBEDA107F:
        raise BadImage("the file is not a vdi")
    if version != 0x0001_0001:
        raise BadImage(
            f"the file is a vdi of version {version >> 16}.{version & 0xFFFF}, which bough cannot read"
        )
    (kind,) = struct.unpack_from("<I", head, 0x4C)
    offset, size, block_size, _, blocks = (
        *struct.unpack_from("<I", head, 0x158),
        *struct.unpack_from("<QIII", head, 0x170),
    )
    (allocated,) = struct.unpack_from("<I", head, 0x184)
    if kind not in (1, 2) or any(head[0x1A8:0x1C8]):
        raise _reference("vdi", "parent", b"")
    if blocks * block_size < size or block_size != 1 << 20:
        raise BadImage("the vdi contradicts itself: its blocks do not make up its disk")
    partial = -size % block_size  # the last block may be partial
    if offset + allocated * block_size > size_bytes + partial:
        raise BadImage("the vdi is truncated: blocks that its header counts are missing")
    return Header("vdi", _round_up(size))


def _read_vhdx(stream: BinaryIO, size_bytes: int) -> Header:
    if _read(stream, 0, 8) != b"vhdxfile":
        raise BadImage("the file is not a vhdx")
    for place in _VHDX_REGION_TABLES:
        metadata = _find_vhdx_metadata(_read(stream, place, 64 * 1024))
        if metadata is not None:
            break
    else:
        raise BadImage("the vhdx has no table of its regions: it is truncated or altered")
    items = _read_vhdx_items(stream, metadata)
    parameters, size = items.get(_VHDX_PARAMETERS, b""), items.get(_VHDX_SIZE, b"")
    (_, flags), (size_told,) = struct.unpack("<II", parameters[:8]), struct.unpack("<Q", size[:8])
    if flags & 0b10:
        raise _reference("vhdx", "parent", b"")
    return Header("vhdx", _round_up(size_told))


def _find_vhdx_metadata(table: bytes) -> int | None:
    if not table.startswith(b"regi"):
        return None
    (count,) = struct.unpack_from("<I", table, 8)
    for index in range(min(count, 2047)):
        guid, offset, _, _ = struct.unpack_from("<16sQII", table, 16 + 32 * index)
        if uuid.UUID(bytes_le=guid) == _VHDX_METADATA:
            return int(offset)
    return None


def _read_vhdx_items(stream: BinaryIO, metadata: int) -> dict[uuid.UUID, bytes]:
    table = _read(stream, metadata, 64 * 1024)
    if not table.startswith(b"metadata"):
        raise BadImage("the vhdx has no metadata at the place in its table: it is truncated or altered")
    (count,) = struct.unpack_from("<H", table, 10)
    found = {}
    for index in range(min(count, 2047)):
        guid, offset, length = struct.unpack_from("<16sII", table, 32 + 32 * index)
        found[uuid.UUID(bytes_le=guid)] = _read(stream, metadata + offset, min(length, 64))
    return found


def _read_vhd(stream: BinaryIO, size_bytes: int) -> Header:
    """Read the header of a fixed vhd. A dynamic vhd begins with the same 512 bytes (see detect)."""
    footer = _read(stream, size_bytes - SECTOR, SECTOR)
    if not footer.startswith(_VHD_COOKIE):
        raise BadImage("the file is not a vhd, or its end is missing")
    size, kind = struct.unpack_from(">Q", footer, 48)[0], struct.unpack_from(">I", footer, 60)[0]
    if kind != _VHD_FIXED:
        raise BadImage("the vhd has no fixed size", hint="convert it first: qemu-img convert -f vpc -O qcow2")
    if size > size_bytes - SECTOR or size % SECTOR:
        raise BadImage("the vhd is truncated, or its size is altered")
    return Header("vhd", size)


def _read_iso(stream: BinaryIO, size_bytes: int) -> Header:
    volume = _read(stream, _ISO_START, 2048)
    if volume[1:6] != b"CD001":
        raise BadImage("the file is not an ISO")
    (blocks,) = struct.unpack_from("<I", volume, 80)
    if blocks * 2048 > size_bytes:
        raise BadImage(
            f"the ISO is truncated: it has {format_size(size_bytes)} of {format_size(blocks * 2048)}"
        )
    return Header("iso", -(-size_bytes // 2048) * 2048, _read_el_torito(stream))


def _read_el_torito(stream: BinaryIO) -> tuple[str, ...]:
    """Return the firmware types in the ISO's boot catalogue; () if the ISO has no catalogue."""
    record = _read(stream, _ISO_START + 2048, 2048)
    if record[1:6] != b"CD001" or not record[7:].startswith(b"EL TORITO SPECIFICATION"):
        return ()
    (sector,) = struct.unpack_from("<I", record, 71)
    catalogue = io.BytesIO(_read(stream, sector * 2048, 2048)).getvalue()
    platforms = {0: "bios", 0xEF: "uefi"}
    found = []
    for place in range(0, len(catalogue) - 31, 32):
        # The validation entry (1) and each section header (0x90, 0x91) name a platform.
        if (place == 0 and catalogue[0] == 1) or catalogue[place] in (0x90, 0x91):
            name = platforms.get(catalogue[place + 1])
            if name is not None and name not in found:
                found.append(name)
    return tuple(found)


def is_floppy(size_bytes: int) -> bool:
    return size_bytes <= _FLOPPY_BYTES


def check_most(size_bytes: int | None) -> int:
    """Return the effective size limit.

    Raises:
        BadImage: the limit is larger than any file system allows.
    """
    if size_bytes is not None and size_bytes > 8 * 1024 * 1024 * GIB:
        raise BadImage("the size limit is too large", hint="use --max-size with at most 8 EiB")
    return size_bytes or MOST_BYTES
