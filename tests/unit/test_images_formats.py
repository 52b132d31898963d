"""Headers of disk images, above all hostile ones. The tests make them by hand and run no other program."""

from __future__ import annotations

import io
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bough.errors import BadImage
from bough.images import ova
from bough.images.contents import read_partitions
from bough.images.formats import COMPRESSIONS, FORMATS, Header, detect, read_header
from tests.images_samples import describe, make_ova

MIB = 1 << 20


def qcow2(
    *, version: int = 3, backing: int = 0, bits: int = 16, size: int = MIB, crypt: int = 0, features: int = 0
) -> bytes:
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, backing, 9 if backing else 0, bits, size,
                       crypt, 1, 0, 0, 0, 0, 0)  # fmt: skip
    head += struct.pack(">QQQII", features, 0, 0, 4, 104)
    return head.ljust(backing or 104, b"\0") + (b"/etc/shad" if backing else b"") + bytes(65536)


def vmdk(*, capacity: int = 2048, place: int = 1, descriptor: bytes = b"", at: int = 512) -> bytes:
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, capacity, 128, place, 20).ljust(at, b"\0")
    return (head + b"# Disk DescriptorFile\n" + descriptor).ljust(64 * 1024, b"\0")


def vdi(*, kind: int = 1, size: int = MIB, blocks: int = 1, parent: bytes = bytes(16)) -> bytes:
    head = bytearray(2 * MIB)
    struct.pack_into("<II", head, 0x40, 0xBEDA107F, 0x00010001)
    struct.pack_into("<I", head, 0x4C, kind)
    struct.pack_into("<I", head, 0x158, MIB)
    struct.pack_into("<QIII", head, 0x170, size, MIB, 0, blocks)
    struct.pack_into("<I", head, 0x184, 1)
    head[0x1A8:0x1B8] = parent
    return bytes(head)


def read(data: bytes, format: str | None = None) -> Header:
    stream = io.BytesIO(data)
    return read_header(stream, len(data), format or detect(stream, len(data)))


def test_good_ones() -> None:
    assert read(qcow2()) == Header("qcow2", MIB)
    assert read(qcow2(version=2)) == Header("qcow2", MIB)
    own = b'parentCID=ffffffff\nRW 2048 SPARSE "d.vmdk"\n'
    assert read(vmdk(descriptor=own)) == Header("vmdk", MIB)
    assert read(vdi()) == Header("vdi", MIB)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (qcow2(backing=200), "/etc/shad"),
        (qcow2(version=2, backing=200), "backing file"),
        (qcow2(features=4), "data file"),
        (qcow2(features=1 << 40), "unknown features"),
        (qcow2(crypt=2), "encrypted"),
        (qcow2(bits=63), "clusters"),
        (qcow2(size=1 << 63), "limit"),
        (qcow2(size=0), "disk of 0 bytes"),
        (qcow2()[:90], "in the middle"),
        (qcow2()[:1000], "truncated"),
        (vmdk(capacity=0), "extent"),
        (vmdk(capacity=1 << 63), "limit"),
        (vmdk(descriptor=b"parentCID=12345678\n"), "parent"),
        (vmdk(descriptor=b'parentCID=FFFFFFFF\nparentFileNameHint="/etc/passwd"\n'), "/etc/passwd"),
        (vmdk(descriptor=b'RW 1 FLAT "/etc/passwd" 0\n'), "/etc/passwd"),
        (vmdk(descriptor=b'RW 1 SPARSE "d"\nRW 1 SPARSE "/e"\n'), "/e"),
        # The place where QEMU looks, and the place in the header.
        (vmdk(descriptor=b"parentCID=1\n", place=99), "parent"),
        (vmdk(descriptor=b"parentCID=1\n", place=50, at=50 * 512), "parent"),
        (vdi(kind=4), "parent"),
        (vdi(parent=b"x" * 16), "parent"),
        (vdi(size=1 << 50, blocks=1), "contradicts"),
        (vdi()[: MIB + 5], "truncated"),
    ],
)
def test_hostile_ones(data: bytes, says: str) -> None:
    with pytest.raises(BadImage, match=says):
        read(data)


def test_a_data_file_without_its_feature_bit() -> None:
    data = bytearray(qcow2())
    data[104:112] = struct.pack(">II", 0x44415441, 11)
    data[112:123] = b"/etc/passwd"
    with pytest.raises(BadImage, match="/etc/passwd"):
        read(bytes(data))


def test_a_partition_table_larger_than_the_disk() -> None:
    data = bytearray(4 * MIB)
    data[510:512] = b"\x55\xaa"
    data[512:520] = b"EFI PART"
    struct.pack_into("<Q", data, 544, 1 << 20)
    with pytest.raises(BadImage, match="end is missing"):
        read(bytes(data))


_STARTS = [b"QFI\xfb\0\0\0\3", b"QFI\xfb\0\0\0\2", b"KDMV\1\0\0\0", b"vhdxfile", b"\x1f\x8b", b"", bytes(64)]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(_STARTS), st.binary(max_size=3000), st.sampled_from((*FORMATS[:5], "iso")))
def test_anything_at_all(start: bytes, rest: bytes, format: str) -> None:
    """Any bytes give a header or one kind of error."""
    data = start + rest
    stream = io.BytesIO(data)
    for attempt in (lambda: detect(stream, len(data)), lambda: read_header(stream, len(data), format)):
        try:
            found = attempt()
        except BadImage:
            continue
        assert found in FORMATS or found in COMPRESSIONS or isinstance(found, Header)
    read_partitions(stream)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([qcow2(), vmdk(descriptor=b'parentCID=ffffffff\nRW 1 SPARSE "d"\n'), vdi()]),
    st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 70_000),
)
def test_altered_and_truncated_ones(data: bytes, changes: list[tuple[int, int]], length: int) -> None:
    altered = bytearray(data)
    for place, value in changes:
        altered[place] = value
    for variant in (bytes(altered), bytes(altered[:length])):
        try:
            header = read(variant)
        except BadImage:
            continue
        assert 0 < header.size_bytes <= 2 << 40


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=8),
    st.integers(0, 12_000),
)
def test_altered_archives(changes: list[tuple[int, int]], length: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = make_ova(Path(directory) / "m.ova", {"m.ovf": describe("d.vmdk"), "d.vmdk": b"x" * 3000})
        data = bytearray(path.read_bytes())
        for place, value in changes:
            data[place] = value
        path.write_bytes(data[:length])
        with path.open("rb") as stream:
            try:
                (member,) = ova.find_disks(stream, path.stat().st_size).disks
            except BadImage:
                return
        assert member.offset_bytes + member.size_bytes <= length


@pytest.mark.parametrize(
    ("description", "says"),
    [
        (b"<Envelope>", "broken"),
        (b'<!DOCTYPE x [<!ENTITY a "b">]><Envelope/>', "entities"),
        (b"<Envelope/>", "no disk"),
        (describe("/etc/passwd"), "outside"),
        (describe("absent.vmdk"), "absent.vmdk"),
    ],
)
def test_hostile_descriptions(tmp_path: Path, description: bytes, says: str) -> None:
    path = make_ova(tmp_path / "m.ova", {"m.ovf": description, "d.vmdk": b"x"})
    with path.open("rb") as stream, pytest.raises(BadImage, match=says):
        ova.find_disks(stream, path.stat().st_size)
