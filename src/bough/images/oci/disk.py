"""The disk of an image that is made from a container image.

    start        a copy of the boot kit: GRUB, EFI system partition, boot partition (images/oci/boot_kit)
    then         root, ext4, to 1 MiB before the end: the last one, so that a larger disk can be used

`prepare_root` and `root_environment` are for the build's directory, before root.sh runs in the namespaces.
`finish_disk` follows.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from bough.images import disk
from bough.images.disk import SECTOR, DiskIdentity, partition_uuid, render_partition
from bough.images.oci.boot_kit.build import BOOT_OFFSET
from bough.images.oci.boot_kit.store import BootKit
from bough.images.platforms import PLATFORMS
from bough.units import MIB

#: Number of the root partition.
ROOT_PARTITION = 4
#: The script that makes the root file system: `sh ./root.sh TREE`.
ROOT_SCRIPT = Path(__file__).parent / "inside" / "root.sh"
_LINUX_DATA = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"


def prepare_root(work: Path) -> None:
    """Put the script and an empty disk.raw into the directory of a build. The build has a directory out/."""
    shutil.copyfile(ROOT_SCRIPT, work / ROOT_SCRIPT.name)
    (work / ROOT_SCRIPT.name).chmod(0o644)
    path = work / "disk.raw"
    path.touch()
    path.chmod(0o666)


def root_environment(kit: BootKit, identity: DiskIdentity, epoch_s: int) -> dict[str, str]:
    """Return the variables of root.sh.

    Args:
        epoch_s: time of the file system's own data, in seconds since 1970.
    """
    offset = _root_offset(kit)
    return {
        "BOUGH_EPOCH": str(max(1, epoch_s)),
        "BOUGH_ROOT_UUID": str(identity.root_filesystem),
        "BOUGH_ROOT_OFFSET": str(offset),
        "BOUGH_ROOT_KIB": str((disk.DISK_BYTES - offset - MIB) // 1024),
    }


def finish_disk(work: Path, kit: BootKit, identity: DiskIdentity) -> int:
    """Complete disk.raw after root.sh: boot loaders, boot partition, partition table.

    Return the size in bytes.

    Raises:
        CalledProcessError: sfdisk failed. ValueError: the kit has no boot sector.
    """
    path = work / "disk.raw"
    offset = _root_offset(kit)
    root_bytes = int((work / "out/root-kib").read_text()) * 1024
    size_bytes = offset + root_bytes + MIB
    _copy_kit(kit, path)
    with path.open("r+b") as stream:
        boot = stream.read(SECTOR)
        stream.truncate(size_bytes)
    disk.apply_partition_table(path, render_table(identity, kit.arch, offset, root_bytes))
    if PLATFORMS[kit.arch].grub_bios:
        disk.write_boot_sector(path, boot)
    return size_bytes


def render_table(identity: DiskIdentity, arch: str, root_offset: int, root_bytes: int) -> str:
    """Return the partition table as a script for sfdisk(8)."""

    def part(start: int, end: int, kind: str, guid: uuid.UUID, name: str) -> str:
        return render_partition(start // SECTOR, (end - start) // SECTOR, kind, guid, name)

    bios_start = disk.BIOS_BOOT_LBA * SECTOR
    boot_guid = partition_uuid(identity, "boot")
    lines = [
        "label: gpt",
        f"label-id: {identity.disk}",
        f"first-lba: {disk.BIOS_BOOT_LBA}",
        "",
        part(bios_start, disk.ESP_OFFSET, disk.BIOS_BOOT_TYPE, identity.bios_boot, "bios"),
        part(disk.ESP_OFFSET, BOOT_OFFSET, disk.ESP_TYPE, identity.esp, "esp"),
        part(BOOT_OFFSET, root_offset, _LINUX_DATA, boot_guid, "boot"),
        part(root_offset, root_offset + root_bytes, disk.ROOT_TYPE[arch], identity.root, "root"),
    ]
    return "\n".join(lines) + "\n"


def _root_offset(kit: BootKit) -> int:
    """The root follows the kit, whose size is a multiple of 1 MiB."""
    return kit.path.stat().st_size


def _copy_kit(kit: BootKit, target: Path) -> None:
    """Copy the kit over the start of the disk. Zeros become, or stay, holes."""
    with kit.path.open("rb", buffering=0) as reading, target.open("r+b", buffering=0) as writing:
        at = 0
        while block := reading.read(65536):
            if block.strip(b"\0"):
                os.pwrite(writing.fileno(), block, at)
            at += len(block)
