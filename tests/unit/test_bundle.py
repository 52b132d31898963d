"""The format of a bundle: a round trip, and refusal of altered bundles."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import pytest

from bough.bundle import read_manifest, read_pieces, write_bundle
from bough.errors import BadBundle
from bough.snapshots.bundle_manifest import parse_manifest
from bough.snapshots.bundle_writing import read_difference

SIZES = [2_000_000, 100]
PARTS = [
    (0, [(0, b"a" * 1000), (4096, os.urandom(1 << 20)), (1_999_999, b"z")]),
    (1, [(3, b"small")]),
]


def bundle() -> bytes:
    return b"".join(write_bundle({"name": "web"}, PARTS))


def read(data: bytes, sizes: list[int] = SIZES) -> dict[int, bytearray]:
    source = io.BytesIO(data)
    manifest, digest = read_manifest(source)
    assert manifest == {"name": "web"}
    parts = {number: bytearray(size) for number, size in enumerate(sizes)}
    for piece in read_pieces(source, digest, sizes):
        parts[piece.part][piece.offset : piece.offset + len(piece.data)] = piece.data
    return parts


def test_what_was_written_comes_back() -> None:
    parts = read(bundle())
    for number, content in PARTS:
        for offset, data in content:
            assert parts[number][offset : offset + len(data)] == data
    assert sum(map(bool, parts[1])) == 5


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_one_that_is_cut_off_is_refused(share: float) -> None:
    data = bundle()
    with pytest.raises(BadBundle):
        read(data[: int(len(data) * share)])
    with pytest.raises(BadBundle):
        read(data + b"x")


def test_one_that_was_altered_is_refused() -> None:
    data = bundle()
    for at in {*range(0, 140), *range(140, len(data), len(data) // 50), len(data) - 1}:
        changed = bytearray(data)
        changed[at] ^= 0x10
        with pytest.raises(BadBundle):
            read(bytes(changed))


def test_a_newer_one_is_refused_by_its_version() -> None:
    data = bytearray(bundle())
    data[8:12] = struct.pack("<I", 2)
    with pytest.raises(BadBundle, match="version 2"):
        read(bytes(data))


def test_nothing_lies_outside_of_its_part() -> None:
    with pytest.raises(BadBundle, match="outside of its part"):
        read(bundle(), [1_999_999, 100])
    with pytest.raises(BadBundle, match="invalid chunk header"):
        read(bundle(), [2_000_000])


@pytest.mark.parametrize("other", [b"", b"QFI\xfb\0\0\0\3", b"PK\x03\x04", b"\x89BOUGH\n"])
def test_other_files_are_none(other: bytes) -> None:
    with pytest.raises(BadBundle, match="not a bundle"):
        read_manifest(io.BytesIO(other + bytes(1000)))


def manifest(**changes: object) -> dict[str, object]:
    digest = "0" * 64
    hardware = {
        "arch": "x86_64",
        "machine_type": "pc-q35-7.2",
        "cpu_model": "EPYC",
        "firmware": "bios",
        "uuid": "10000000-0000-4000-8000-000000000000",
        "vmgenid": "20000000-0000-4000-8000-000000000000",
        "mac": "52:54:00:00:00:01",
        "uid": None,
    }
    return {
        "created": "",
        "bough": "0",
        "name": "web",
        "consistency": "stopped",
        "spec": {"image": "debian:12", "memory": 512 << 20, "autostart": True, "ports": [
            {"host": "0.0.0.0", "host_port": 80, "guest_port": 80}]},
        "hardware": hardware,
        "image_digest": digest,
        "image_agent": True,
        "first_boot": {"done": True},
        "media": {},
        "parts": [{"name": "disk0", "size_bytes": 1 << 30}],
    } | changes  # fmt: skip


WITH_MEMORY = [
    {"name": "disk0", "size_bytes": 512},
    {"name": "memory", "size_bytes": 512 << 20},
    {"name": "devices", "size_bytes": 4096},
]
AGENT_PART = {"name": "agent", "size_bytes": 4096}


def test_a_bundle_with_memory_has_the_agent_disk_that_the_memory_knows() -> None:
    told = {"accelerator": "tcg", "agent_disk": "1" * 64}
    assert parse_manifest(manifest(parts=[*WITH_MEMORY, AGENT_PART], **told)).number("agent") == 3
    disks_alone = parse_manifest(manifest(agent_disk="1" * 64))
    assert disks_alone.agent_disk == "1" * 64, "a boot attaches a disk of the importing host"


def with_cards(*macs: str, **more: object) -> dict[str, object]:
    """Return hardware whose cards are all in the first place, unless `more` says otherwise."""
    hardware = dict(manifest()["hardware"])  # type: ignore[call-overload]
    del hardware["mac"]
    return {**hardware, "nics": [{"mac": mac, **more} for mac in macs]}


def test_a_bundle_of_an_earlier_version_has_one_card() -> None:
    assert parse_manifest(manifest()).hardware.mac_addresses == ["52:54:00:00:00:01"]
    new = parse_manifest(manifest(hardware=with_cards("52:54:00:00:00:01")))
    assert new.hardware.mac_addresses == ["52:54:00:00:00:01"]


def test_what_is_for_its_owner_to_decide_is_not_taken_over() -> None:
    spec = parse_manifest(manifest()).spec
    assert not spec.autostart
    assert spec.ports[0].host == "127.0.0.1"
    mounts = [{"source": "/etc", "target": "/mnt"}]
    assert not parse_manifest(manifest(spec={"image": "debian:12", "mounts": mounts})).spec.mounts


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": {"image": "debian:12", "kernel": "/etc/shadow"}},
        {"spec": {"image": "debian:12", "memory": "x"}},
        {"spec": None},
        {"name": "../../etc" * 20},
        {"parts": []},
        {"parts": [{"name": "../disk0", "size_bytes": 512}]},
        {"parts": [{"name": "disk0", "size_bytes": 1 << 60}]},
        {"parts": [{"name": "disk0", "size_bytes": 511}]},
        {"parts": [{"name": "disk0", "size_bytes": 512, "image": "1" * 64}]},
        {"parts": [{"name": "disk0", "size_bytes": 512}, {"name": "memory", "size_bytes": 512 << 20}]},
        {"hardware": {**manifest()["hardware"], "uuid": "x,y"}},  # type: ignore[dict-item]
        {"hardware": {**manifest()["hardware"], "cpu_model": "EPYC -S"}},  # type: ignore[dict-item]
        {"hardware": {**manifest()["hardware"], "arch": "vax"}},  # type: ignore[dict-item]
        {"hardware": with_cards("52:54:00:00:00:01,script=/x")},
        {"hardware": with_cards("53:54:00:00:00:01")},
        {"hardware": with_cards("52:54:00:00:00:01", model="virtio,romfile=/etc/shadow")},
        {"hardware": with_cards("52:54:00:00:00:01", place=8)},
        {"hardware": with_cards("52:54:00:00:00:01", "52:54:00:00:00:02")},
        {
            "hardware": with_cards("52:54:00:00:00:01", "52:54:00:00:00:02"),
            "spec": {"image": "debian:12", "nics": ["back", "front"]},
        },
        {"spec": {"image": "debian:12", "memory": 512 << 20, "uplink": False}},
        {"hardware": {**manifest()["hardware"], "disk_bus": "usb"}},  # type: ignore[dict-item]
        {"hardware": {**manifest()["hardware"], "nic_model": "virtio,romfile=/x"}},  # type: ignore[dict-item]
        {"hardware": {**manifest()["hardware"], "agent_port": "tcp"}},  # type: ignore[dict-item]
        {"parts": [{"name": "disk0", "size_bytes": 1 << 30}, {"name": "tpm", "size_bytes": 2240}]},
        {
            "spec": {"image": "debian:12", "memory": 512 << 20, "disk_bus": "nvme"},
            "accelerator": "tcg",
            "parts": [
                {"name": "disk0", "size_bytes": 1 << 30},
                {"name": "memory", "size_bytes": 512 << 20},
                {"name": "devices", "size_bytes": 100},
            ],
        },
        {
            "spec": {"image": "debian:12", "memory": 512 << 20, "disk_bus": "ide", "disks": ["1GiB"] * 4},
            "parts": [{"name": f"disk{number}", "size_bytes": 1 << 30} for number in range(5)],
        },
        {"image_digest": "../../lock"},
        {"agent_disk": "../../lock"},
        {"parts": WITH_MEMORY, "accelerator": "tcg", "agent_disk": "1" * 64},
        {"parts": [*WITH_MEMORY, AGENT_PART], "accelerator": "tcg"},
        {"parts": [{"name": "disk0", "size_bytes": 512}, AGENT_PART], "agent_disk": "1" * 64},
        {
            "parts": [*WITH_MEMORY, {**AGENT_PART, "size_bytes": 9 << 20}],
            "accelerator": "tcg",
            "agent_disk": "1" * 64,
        },
        {"media": {"cdrom": "../../../etc/passwd"}},
    ],
)
def test_what_no_machine_is_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BadBundle):
        parse_manifest(manifest(**changes))


def test_the_difference_of_two_disks_is_looked_for_where_there_is_data(tmp_path: Path) -> None:
    """Compare disks of 1 TiB: reading their holes would take an hour."""
    disk, image = tmp_path / "disk", tmp_path / "image"
    size, block = 1 << 40, 64 * 1024
    written = {
        disk: {0: b"s", 3 * block: b"d", 700 << 30: b"d", size - block: b"s"},
        image: {0: b"s", 5 << 20: b"i", 700 << 30: b"i", size - block: b"s"},
    }
    for path, blocks in written.items():
        with path.open("wb") as stream:
            stream.truncate(size)
            for offset, letter in blocks.items():
                stream.seek(offset)
                stream.write(letter * block)
    seen = dict(read_difference(disk, image))
    assert seen == {3 * block: b"d" * block, 5 << 20: bytes(block), 700 << 30: b"d" * block}
