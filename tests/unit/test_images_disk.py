"""The disk's layout, GRUB's patched fields, and the digest of a sparse file."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import pytest

from bough.images import disk
from bough.units import MIB


def identity() -> disk.DiskIdentity:
    return disk.DiskIdentity.derive("0" * 64)


def boot_image() -> bytes:
    return b"\xeb\x63" + bytes(508) + b"\x55\xaa"


def test_identity_is_that_of_the_recipe() -> None:
    assert identity() == disk.DiskIdentity.derive("0" * 64)
    assert identity() != disk.DiskIdentity.derive("1" * 64)


def test_partitions_do_not_overlap_and_root_is_last() -> None:
    lines = [
        line for line in disk.render_partition_table(identity(), "x86_64").splitlines() if "start=" in line
    ]
    spans = []
    for line in lines:
        fields = dict(part.strip().split("=") for part in line.split(","))
        spans.append((int(fields["start"]), int(fields["start"]) + int(fields["size"])))
    assert spans == sorted(spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert len(spans) == disk.ROOT_PARTITION
    assert spans[-1][0] * disk.SECTOR == disk.ROOT_OFFSET


def test_boot_image_keeps_the_partition_table() -> None:
    mbr = bytes(0x1B8) + b"t" * 70 + b"\x55\xaa"
    sector = disk.patch_boot_image(boot_image(), mbr)
    assert sector[0x1B8:] == mbr[0x1B8:]
    assert struct.unpack_from("<Q", sector, 0x5C) == (disk.BIOS_BOOT_LBA,)
    assert sector[0x64:0x68] == b"\xff\x00\x90\x90"


def test_what_is_no_boot_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"boot\.img"):
        disk.patch_boot_image(bytes(512), bytes(512))


def test_core_image_is_told_where_its_rest_is() -> None:
    image = disk.patch_core_image(bytes(512 * 10 + 1))
    assert struct.unpack_from("<QHH", image, 500) == (disk.BIOS_BOOT_LBA + 1, 10, 0x820)


def test_core_image_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="partition"):
        disk.patch_core_image(bytes(2 * MIB))


def sparse(path: Path, *pieces: tuple[int, bytes], size: int = 5 * MIB + 7) -> Path:
    with path.open("wb") as stream:
        for offset, content in pieces:
            stream.seek(offset)
            stream.write(content)
        stream.truncate(size)
    return path


def test_digest_does_not_depend_on_where_holes_are(tmp_path: Path) -> None:
    holes = sparse(tmp_path / "a", (2 * MIB, b"x"), (5 * MIB, b"end"))
    full = tmp_path / "b"
    full.write_bytes(holes.read_bytes())
    assert disk.digest_disk(holes, b"{}") == disk.digest_disk(full, b"{}")


def test_digest_depends_on_content_place_size_and_config(tmp_path: Path) -> None:
    digests = {
        disk.digest_disk(sparse(tmp_path / "a", (MIB, b"x")), b"{}"),
        disk.digest_disk(sparse(tmp_path / "b", (MIB, b"y")), b"{}"),
        disk.digest_disk(sparse(tmp_path / "c", (2 * MIB, b"x")), b"{}"),
        disk.digest_disk(sparse(tmp_path / "d", (MIB, b"x"), size=6 * MIB), b"{}"),
        disk.digest_disk(sparse(tmp_path / "a", (MIB, b"x")), b"[]"),
    }
    assert len(digests) == 5
