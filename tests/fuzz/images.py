"""Targets for imported files and a publisher's lists."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import tarfile
import tempfile

from bough.errors import BadImage, InvalidInput
from bough.images import ova
from bough.images.catalogue import parse_catalogue
from bough.images.contents import read_partitions
from bough.images.formats import COMPRESSIONS, FORMATS, MOST_BYTES, detect, read_header
from bough.images.linux_disk.cpio import BrokenArchive, CpioNames
from bough.images.linux_disk.debugfs import _LISTED, _parse_stat
from bough.images.linux_disk.elf import parse_elf
from bough.images.linux_disk.ext import read_ext_state
from bough.images.linux_disk.initrd import module_name
from bough.images.linux_disk.lvm import parse_metadata
from bough.images.linux_disk.roots import parse_release
from bough.images.linux_disk.tree import is_usable
from bough.images.linux_disk.volumes import read_volumes
from bough.images.pull import find_checksum
from bough.images.signature import parse_key, read_status

_MIB = 1 << 20
#: The first bytes of each format, as far as the first checks need them.
_HEADS = (
    struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, _MIB, 0, 1, 0, 0, 0, 0, 0)
    + struct.pack(">QQQII", 0, 0, 0, 4, 104),
    struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 2048, 128, 1, 20).ljust(512, b"\0")
    + b"# Disk DescriptorFile\nRW 2048 SPARSE \"d\"\n",
    b"\0" * 0x40 + struct.pack("<II", 0xBEDA107F, 0x00010001) + b"\0\0\0\0" + struct.pack("<I", 1),
    b"vhdxfile",
    b"\0" * 0x8000 + b"\x01CD001\x01",
    b"\xeb\x3c\x90".ljust(510, b"\0") + b"\x55\xaaEFI PART",
    b"",
)  # fmt: skip


def fuzz_disk(data: bytes) -> None:
    """Put the fuzzer's bytes over the beginning of a real format, at places of its choice."""
    choice, data = (data[:1] or b"\0")[0], data[1:]
    image = bytearray(_HEADS[choice % len(_HEADS)].ljust(96 * 1024, b"\0"))
    while len(data) > 3:
        at = int.from_bytes(data[:2], "little") * (256 if data[2] & 128 else 1)
        length = data[2] & 31
        part, data = data[3 : 3 + length], data[3 + length :]
        image[at % len(image) : at % len(image) + len(part)] = part
    image = image[: len(image) if choice & 64 else choice * 200]
    stream = io.BytesIO(bytes(image))
    read_partitions(stream)
    names = [name for name in FORMATS if name != "ova"]
    with contextlib.suppress(BadImage):
        found = detect(stream, len(image))
        assert found in (*FORMATS, *COMPRESSIONS)
    for name in names:
        with contextlib.suppress(BadImage):
            header = read_header(stream, len(image), name)
            assert 0 < header.size_bytes <= MOST_BYTES
            assert set(header.firmware) <= {"bios", "uefi"}


def fuzz_ova(data: bytes) -> None:
    """Make a tar with the fuzzer's description, some of its bytes altered."""
    changes, text = data[:8], data[8:]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in (("m.ovf", text), ("d.vmdk", b"KDMV" * 8), ("m.mf", text)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    raw = bytearray(buffer.getvalue())
    for at, value in zip(changes[::2], changes[1::2], strict=False):
        if value:
            raw[at * 6 % len(raw)] = value
    with tempfile.TemporaryFile() as stream, contextlib.suppress(BadImage):
        stream.write(raw)
        for member_found in ova.find_disks(stream, len(raw)).disks:
            assert "/" not in member_found.name
            assert 0 <= member_found.size_bytes <= len(raw)


def fuzz_lists(data: bytes) -> None:
    """Fuzz checksums, keys, output of gpgv, and catalogues."""
    with contextlib.suppress(BadImage):
        found = find_checksum(data.decode(errors="replace"), "http://x/disk.qcow2")
        assert re.fullmatch(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", found)
    with contextlib.suppress(BadImage):
        assert parse_key(data)
    with contextlib.suppress(BadImage):
        parse_key(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n" + data + b"-----END PGP PUBLIC KEY BLOCK-----")
    signers, _ = read_status(data)
    assert not signers or b"VALIDSIG" in data
    with contextlib.suppress(InvalidInput):
        parse_catalogue(b"format = 1\nserial = 2\n" + data, "x")


#: What the fuzzer's bytes are put over: an MBR with an extended partition, LVM, ext4 and an initrd.
_LVM_TEXT = (
    b'v { extent_size = 8 physical_volumes { p { id = "' + b"0" * 32 + b'" pe_start = 40 } } '
    b'logical_volumes { r { status = ["VISIBLE"] segment_count = 1 '
    b'segment1 { extent_count = 2 type = "striped" stripe_count = 1 stripes = ["p", 0] } } } }'
)
_AREA = b"\0\0\0\0\x20LVM2\x20x[5A%r0N*>" + struct.pack("<IQQQQII", 1, 4096, 8192, 512, len(_LVM_TEXT), 0, 0)
_PARTS = {
    446: struct.pack("<BBBBBBBBII", 0, 0, 0, 0, 5, 0, 0, 0, 8, 64)
    + struct.pack("<BBBBBBBBII", 0, 0, 0, 0, 0x8E, 0, 0, 0, 64, 120),
    510: b"\x55\xaa",
    8 * 512 + 446: struct.pack("<BBBBBBBBII", 0, 0, 0, 0, 0x83, 0, 0, 0, 1, 8),
    8 * 512 + 510: b"\x55\xaa",
    9 * 512 + 1080: b"\x53\xef",
    65 * 512: struct.pack("<8sQII8s", b"LABELONE", 1, 0, 32, b"LVM2 001")
    + b"0" * 32 + struct.pack("<QQQQQQQQQ", 61440, 4096, 0, 0, 0, 4096, 8192, 0, 0),
    104 * 512 + 1080: b"\x53\xef",
    64 * 512 + 4096: _AREA,
    64 * 512 + 4096 + 512: _LVM_TEXT,
}  # fmt: skip


def fuzz_linux_disk(data: bytes) -> None:
    """Put the fuzzer's bytes over tables of a disk, and read them as text, names and programs."""
    image = bytearray(96 * 1024)
    for at, part in _PARTS.items():
        image[at : at + len(part)] = part
    rest = data
    while len(rest) > 3:
        at = list(_PARTS)[rest[0] % len(_PARTS)] + rest[1]
        length = rest[2] & 31
        image[at : at + length] = rest[3 : 3 + length].ljust(length, b"\0")
        rest = rest[3 + length :]
    with tempfile.TemporaryFile() as stream:
        stream.write(image)
        for volume in read_volumes(stream):
            assert 0 <= volume.offset_bytes < volume.offset_bytes + volume.size_bytes
            assert volume.name.isprintable()
            read_ext_state(stream, volume.offset_bytes)
    text = data.decode(errors="replace")
    with contextlib.suppress(ValueError):
        parse_metadata(text)
    assert set(parse_release(text)) <= {"ID", "VERSION_ID", "PRETTY_NAME"}
    parse_elf(b"\x7fELF" + data)
    for listing in (data, b"/12/100644/0/0/" + data):
        assert all(is_usable(f"/{name.decode()}") for name in _LISTED.findall(listing))
    entry = _parse_stat(b"Inode: 12   Type: symlink    Mode:  0777\nSize: 21\n" + data)
    assert entry is None or entry.target is None or is_usable(f"/{entry.target}")
    _feed_archive(b"070701" + data)
    _feed_archive(data)


def _feed_archive(data: bytes) -> None:
    """Feed an archive in two ways. The names are the same."""
    found = []
    for size in (len(data) or 1, 13):
        names = CpioNames(lambda name: name)
        with contextlib.suppress(BrokenArchive):
            any(not names.feed(data[at : at + size]) for at in range(0, len(data), size))
        found.append((names.names, names.rest_at))
    assert found[0] == found[1]
    assert module_name("x" * len(data)) is None
