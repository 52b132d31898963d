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
