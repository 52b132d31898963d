"""The disk of an image: layout, partition table, two boot loaders and digest.

    LBA 0        protective MBR, with GRUB's boot.img
    LBA 34       BIOS boot partition: GRUB's core.img, to 1 MiB
    1 MiB        EFI system partition, FAT16, 16 MiB: EFI/BOOT/BOOTX64.EFI or the like
    17 MiB       root, ext4, to 1 MiB before the end: the last one, so that a larger disk can be used

The layout is the same for every architecture. An unused boot partition is empty.

bough writes all parts into a plain file: no loop device, no mount, no privilege. The patched fields of GRUB's
images are described in GRUB's include/grub/i386/pc/boot.h. grub-bios-setup fills in the same fields.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.units import GIB, MIB

SECTOR = 512
DISK_BYTES = 8 * GIB
BIOS_BOOT_LBA = 34
ESP_OFFSET = 1 * MIB
ESP_BYTES = 16 * MIB
ROOT_OFFSET = ESP_OFFSET + ESP_BYTES
ROOT_BYTES = DISK_BYTES - ROOT_OFFSET - MIB
ROOT_PARTITION = 3

BIOS_BOOT_TYPE = "21686148-6449-6E6F-744E-656564454649"
ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
# Types of root partitions in the Discoverable Partitions Specification.
ROOT_TYPE = {
    "x86_64": "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
    "aarch64": "B921B045-1DF0-41C3-AF44-4C6F280D3FAE",
    "riscv64": "72EC70A6-CF74-40E6-BD49-4BDA08E8F224",
    "i386": "44479540-F297-41B2-9AF7-D131D5F0458A",
}

_BOOT_KERNEL_SECTOR = 0x5C
_BOOT_DRIVE = 0x64
_BOOT_DRIVE_CHECK = 0x66
_MBR_CODE_END = 0x1B8
_BLOCKLIST = SECTOR - 12
_KERNEL_SEGMENT = 0x820

_CHUNK = MIB
_ZEROS = bytes(_CHUNK)


@dataclass(frozen=True)
class DiskIdentity:
    """GUIDs of the disks of a recipe. The GUIDs depend on the recipe only, so a rebuild gives
    the same bytes.
    """

    disk: uuid.UUID
    bios_boot: uuid.UUID
    esp: uuid.UUID
    root: uuid.UUID
    root_filesystem: uuid.UUID

    @classmethod
    def derive(cls, recipe_digest: str) -> DiskIdentity:
        names = ("disk", "bios-boot", "esp", "root", "root-filesystem")
        return cls(*(uuid.uuid5(uuid.NAMESPACE_OID, f"{recipe_digest}/{name}") for name in names))


def partition_uuid(identity: DiskIdentity, name: str) -> uuid.UUID:
    """Return the GUID of a further partition or file system of the same disk."""
    return uuid.uuid5(identity.disk, name)


def render_partition_table(
    identity: DiskIdentity, arch: str, disk_bytes: int = DISK_BYTES, *, root_offset: int = ROOT_OFFSET
) -> str:
    """Return the script for sfdisk(8)."""
    root_bytes = disk_bytes - root_offset - MIB
    lines = [
        "label: gpt",
        f"label-id: {identity.disk}",
        f"first-lba: {BIOS_BOOT_LBA}",
        "",
        render_partition(
            BIOS_BOOT_LBA, ESP_OFFSET // SECTOR - BIOS_BOOT_LBA, BIOS_BOOT_TYPE, identity.bios_boot, "bios"
        ),
        render_partition(ESP_OFFSET // SECTOR, ESP_BYTES // SECTOR, ESP_TYPE, identity.esp, "esp"),
        render_partition(root_offset // SECTOR, root_bytes // SECTOR, ROOT_TYPE[arch], identity.root, "root"),
    ]
    return "\n".join(lines) + "\n"


def render_partition(start: int, size: int, kind: str, guid: uuid.UUID, name: str) -> str:
    return f'start={start}, size={size}, type={kind}, uuid={guid}, name="{name}"'


def patch_boot_image(boot: bytes, mbr: bytes) -> bytes:
    """Return the new first sector: GRUB's boot.img with the place of core.img and the disk's partition table.

    Raises:
        ValueError: `boot` is not a boot.img.
    """
    if len(boot) != SECTOR or boot[510:] != b"\x55\xaa":
        raise ValueError("boot.img is not a boot sector")
    sector = bytearray(boot)
    struct.pack_into("<Q", sector, _BOOT_KERNEL_SECTOR, BIOS_BOOT_LBA)
    sector[_BOOT_DRIVE] = 0xFF  # boot from the drive that the BIOS names
    # Remove a jump for floppies only: the jump skips GRUB's workaround for BIOSes that name a wrong drive.
    sector[_BOOT_DRIVE_CHECK : _BOOT_DRIVE_CHECK + 2] = b"\x90\x90"
    sector[_MBR_CODE_END:] = mbr[_MBR_CODE_END:SECTOR]
    return bytes(sector)


def patch_core_image(core: bytes) -> bytes:
    """Return core.img with the place of the remaining sectors: one run after the first sector.

    Raises:
        ValueError: core.img does not fit into the partition.
    """
    room = ESP_OFFSET - BIOS_BOOT_LBA * SECTOR
    if not SECTOR < len(core) <= room:
        raise ValueError(f"core.img has {len(core)} bytes, its partition {room}")
    image = bytearray(core)
    sectors = -(-len(core) // SECTOR) - 1
    struct.pack_into("<QHH", image, _BLOCKLIST, BIOS_BOOT_LBA + 1, sectors, _KERNEL_SEGMENT)
    return bytes(image)


def write_partition_table(disk: Path, identity: DiskIdentity, arch: str) -> None:
    """Write the partition table.

    Raises:
        CalledProcessError: sfdisk failed; the output has the reason.
    """
    apply_partition_table(disk, render_partition_table(identity, arch))


def apply_partition_table(disk: Path, script: str) -> None:
    """Write the partition table of a script for sfdisk(8).

    Raises:
        CalledProcessError: sfdisk failed; the output has the reason.
    """
    options = ["--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "never", "--wipe-partitions", "never"]
    _run(["sfdisk", *options, str(disk)], script, 0)


def write_bios_loader(disk: Path, boot: bytes, core: bytes) -> None:
    """Write GRUB for BIOS to a disk that has a partition table."""
    write_boot_sector(disk, boot)
    with disk.open("r+b") as stream:
        stream.seek(BIOS_BOOT_LBA * SECTOR)
        stream.write(patch_core_image(core))


def write_boot_sector(disk: Path, boot: bytes) -> None:
    """Write GRUB's boot.img to a disk that has a partition table."""
    with disk.open("r+b") as stream:
        mbr = stream.read(SECTOR)
        stream.seek(0)
        stream.write(patch_boot_image(boot, mbr))


def write_esp(disk: Path, loader: Path, name: str, serial: int, epoch_s: int) -> None:
    """Make the EFI system partition with `loader` as EFI/BOOT/`name`.

    Args:
        epoch_s: time of all files, in seconds since 1970.

    Raises:
        CalledProcessError: mtools failed; the output has the reason.
    """
    where = f"{disk}@@{ESP_OFFSET}"
    os.utime(loader, (epoch_s, epoch_s))
    size = str(ESP_BYTES // SECTOR)
    _run(
        [
            "mformat",
            "-i",
            where,
            "-T",
            size,
            "-h",
            "16",
            "-s",
            "32",
            "-N",
            f"{serial:08x}",
            "-v",
            "ESP",
            "::",
        ],
        "",
        epoch_s,
    )
    _run(["mmd", "-i", where, "::/EFI", "::/EFI/BOOT"], "", epoch_s)
    _run(["mcopy", "-i", where, "-m", str(loader), f"::/EFI/BOOT/{name}"], "", epoch_s)


def _run(argv: list[str], text: str, epoch_s: int) -> None:
    environment = os.environ | {
        "SOURCE_DATE_EPOCH": str(epoch_s),
        "TZ": "UTC",
        "MTOOLS_SKIP_CHECK": "1",
        "PATH": f"/usr/sbin:/sbin:{os.environ.get('PATH', '/usr/bin:/bin')}",
    }
    subprocess.run(argv, input=text, env=environment, check=True, text=True, capture_output=True, timeout=60)


#: Fields of a manifest that the image's digest covers, in addition to the disk.
_LASTING = ("os", "version", "arch", "firmware", "size_bytes", "root_partition", "agent")
#: Values of `agent` as the digest has always covered these values.
_AGENTS = {"installed": True, None: False}
#: Fields that the digest covers only with other values than the defaults.
_LASTING_TOO: dict[str, Any] = {"media": "disk", "cloud_init": False, "disks": [], "lived": False} | {
    "disk_bus": "virtio",
    "nic_model": "virtio",
    "agent_port": "virtio",
    "container": None,
}


def digest_image(disk: Path, manifest: Mapping[str, Any]) -> str:
    """Return the digest of an image with this disk and manifest (as in JSON). Reads the whole disk."""
    lasting = {name: manifest.get(name) for name in _LASTING}
    lasting["agent"] = _AGENTS.get(lasting["agent"], lasting["agent"])
    lasting |= {
        name: manifest[name]
        for name, default in _LASTING_TOO.items()
        if manifest.get(name, default) != default
    }
    return digest_disk(disk, json.dumps(lasting, sort_keys=True).encode())


def digest_disk(disk: Path, config: bytes) -> str:
    """Return the sha256 of `config` and of the content of `disk`, as 64 hexadecimal digits.

    Chunks of 1 MiB that are all zeros are skipped; other chunks count with the offset. So two copies with
    different holes have the same digest, and holes take no time.
    """
    digest = hashlib.sha256(struct.pack("<Q", len(config)) + config)
    with disk.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        digest.update(struct.pack("<Q", size))
        offset = 0
        while (offset := _next_data(stream.fileno(), offset)) < size:
            chunk = os.pread(stream.fileno(), _CHUNK, offset)
            if chunk != _ZEROS[: len(chunk)]:
                digest.update(struct.pack("<QQ", offset, len(chunk)))
                digest.update(chunk)
            offset += len(chunk)
    return digest.hexdigest()


def _next_data(descriptor: int, offset: int) -> int:
    """Return the offset of the next chunk that contains data; a huge number after the last chunk."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA) // _CHUNK * _CHUNK
    except OSError:  # ENXIO: only a hole follows
        return 1 << 62
