"""Readers of LVM metadata, initrds and programs. The tests make all bytes by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from bough.images.linux_disk.cpio import BrokenArchive, CpioNames
from bough.images.linux_disk.elf import Program, parse_elf
from bough.images.linux_disk.initrd import module_name
from bough.images.linux_disk.lvm import LogicalVolume, parse_metadata, read_logical_volumes
from bough.images.linux_disk.magic import Kind
from bough.images.linux_disk.volumes import read_volumes
from tests.linux_disks import MIB, cpio, elf, physical_volume

METADATA = """vg0 {
id = "x"
seqno = 3
status = ["RESIZEABLE", "READ", "WRITE"]
extent_size = 2048 # 1 MiB
physical_volumes {
pv0 {
id = "012345-6789-abcd-efgh-ijkl-mnop-qrstuv"
device = "/dev/sda3"
pe_start = 2048
pe_count = 100
}
}
logical_volumes {
root {
status = ["READ", "WRITE", "VISIBLE"]
segment_count = 2
segment1 {
start_extent = 0
extent_count = 2
type = "striped"
stripe_count = 1
stripes = [
"pv0", 1
]
}
segment2 { start_extent = 2
extent_count = 1
type = "striped"
stripe_count = 1
stripes = ["pv0", 3] }
}
spread {
status = ["READ", "WRITE", "VISIBLE"]
segment_count = 2
segment1 { start_extent = 0
extent_count = 1
type = "striped"
stripe_count = 1
stripes = ["pv0", 0] }
segment2 { start_extent = 1
extent_count = 1
type = "striped"
stripe_count = 1
stripes = ["pv0", 5] }
}
mirror { status = ["VISIBLE"]
segment_count = 1
segment1 { start_extent = 0
extent_count = 1
type = "raid1"
} }
hidden { status = ["READ"]
segment_count = 1 }
}
}
contents = "Text Format Volume Group"
version = 1
"""


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        yield file


@pytest.mark.parametrize("place", [512, 65536 - 300])
def test_logical_volumes(stream: BinaryIO, place: int) -> None:
    """The metadata is a ring: it may begin near the end and go on at the beginning."""
    disk = physical_volume(METADATA.encode(), place=place)
    disk[2 * MIB : 2 * MIB + 4] = b"XFSB"
    stream.write(disk)
    assert read_logical_volumes(stream, 0, len(disk)) == [
        LogicalVolume("vg0/root", 2 * MIB, 3 * MIB),
        LogicalVolume("vg0/spread", None, 2 * MIB),
        LogicalVolume("vg0/mirror", None, MIB),
    ]
    found = {volume.name: (volume.kind, volume.offset_bytes) for volume in read_volumes(stream)}
    assert found["vg0/root"] == (Kind.XFS, 2 * MIB)
    assert found["vg0/spread"][0] == found["vg0/mirror"][0] == Kind.SPREAD


@pytest.mark.parametrize(
    "text",
    ["", "a", "vg0 {", "vg0 { x = [", "vg0 { x", "}", '"', "a {" * 100, "vg0 { extent_size = 0 }", "\0"],
)
def test_broken_metadata(stream: BinaryIO, text: str) -> None:
    disk = physical_volume(text.encode())
    stream.write(disk)
    assert read_logical_volumes(stream, 0, len(disk)) == []
    stream.truncate(700)
    assert read_logical_volumes(stream, 0, 700) == []


def test_metadata_of_another_volume(stream: BinaryIO) -> None:
    """A volume on another disk of the group has no place on this disk."""
    disk = physical_volume(METADATA.replace("qrstuv", "qrstuX").encode())
    stream.write(disk)
    assert all(found.offset_bytes is None for found in read_logical_volumes(stream, 0, len(disk)))
    assert parse_metadata('a = 1\nb { c = ["x", 2] }') == {"a": 1, "b": {"c": ["x", 2]}}


@pytest.mark.parametrize("piece", [1, 7, 110, 100_000])
def test_names_in_an_initrd(piece: int) -> None:
    data = cpio(["a", "lib/b.ko"]) + bytes(300) + cpio(["c.ko.xz"]) + bytes(64) + b"\x1f\x8b rest of it"
    names = CpioNames(module_name)
    places = range(0, len(data), piece)
    went_on = [names.feed(data[place : place + piece]) for place in places]
    assert names.names == ["lib/b.ko", "c.ko.xz"]
    assert names.is_complete
    assert False in went_on
    assert names.rest_at == data.index(b"\x1f\x8b")
    assert names.rest.startswith(b"\x1f\x8b")


@pytest.mark.parametrize("cut", [5, 60, 111, 116])
def test_truncated_initrds(cut: int) -> None:
    names = CpioNames(module_name)
    names.feed(cpio(["some/name"])[:cut])
    assert not names.is_complete


@pytest.mark.parametrize("place", [54, 94])
def test_broken_initrds(place: int) -> None:
    data = bytearray(cpio(["some/name", "other"]))
    data[place : place + 8] = b"zzzzzzzz"
    with pytest.raises(BrokenArchive):
        CpioNames(module_name).feed(bytes(data))


def test_programs() -> None:
    assert parse_elf(elf()) == Program("x86_64", "glibc")
    assert parse_elf(elf(183, "/lib/ld-musl-aarch64.so.1")) == Program("aarch64", "musl")
    assert parse_elf(elf(243, None)) == Program("riscv64", "static")
    assert parse_elf(elf(9999)) == Program(None, "glibc")
    assert parse_elf(b"#!/bin/sh\n" * 20) is None
    assert parse_elf(elf()[:70]) == Program("x86_64", "unknown")
    assert parse_elf(b"") is None


def test_module_names() -> None:
    assert module_name("usr/lib/modules/6/kernel/drivers/block/virtio-blk.ko.zst") == "virtio_blk"
    assert module_name("nvme.ko") == "nvme"
    assert module_name("etc/nvme.kontrol") is None
