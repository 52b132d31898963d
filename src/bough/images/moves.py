"""Root file systems other than ext4, and further partitions.

A temporary machine lays out the partitions on a second, empty disk, and copies its own root to the disk. So
the host needs no tools for these file systems, and mounts nothing. The boot loader finds all files as before:
the root is still partition 3, the last on the disk, with the same UUID.

    as in disk.py, to the EFI system partition; partitions 4, 5, ... in the recipe's order; 3, the root
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Protocol

from bough.errors import InvalidInput
from bough.images.disk import (
    BIOS_BOOT_LBA,
    ROOT_OFFSET,
    ROOT_PARTITION,
    SECTOR,
    DiskIdentity,
    partition_uuid,
    render_partition_table,
)
from bough.units import MIB, format_size

#: Serial number of the second disk in the guest.
TARGET_SERIAL = "bough-target"
_SWAP_TYPE = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
_DATA_TYPE = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
_LEAST_ROOT = 2048 * MIB
_OPTIONS = {"ext4": "errors=remount-ro", "xfs": "defaults", "btrfs": "defaults"}


class Partition(Protocol):
    """A further partition. See bough.spec.recipe.PartitionSpec."""

    @property
    def mount(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def file_system(self) -> str: ...


def check_room(size_bytes: int, partitions: Sequence[Partition]) -> None:
    """Check that the partitions leave enough room for the root.

    Raises:
        InvalidInput: less than 2 GiB of the disk is left for the root.
    """
    left = size_bytes - ROOT_OFFSET - MIB - sum(partition.size for partition in partitions)
    if left < _LEAST_ROOT:
        raise InvalidInput(
            f"the partitions leave {format_size(max(left, 0))} of {format_size(size_bytes)} for the root, "
            f"less than {format_size(_LEAST_ROOT)}",
            hint='use a larger disk: size = "20GiB"',
        )


def render_move_script(
    identity: DiskIdentity, arch: str, size_bytes: int, file_system: str, partitions: Sequence[Partition]
) -> str:
    """Return a shell script for a guest whose second disk has `size_bytes`.

    The guest's root is on its first disk. Status 0 means that the second disk is bootable.
    """
    start, lines, makes, mounts, fstab = ROOT_OFFSET, [], [], [], []
    for number, partition in enumerate(partitions, ROOT_PARTITION + 1):
        kind = _SWAP_TYPE if partition.mount == "swap" else _DATA_TYPE
        name = partition.mount.strip("/").replace("/", "-")[:36]
        lines.append(
            f"{number} : start={start // SECTOR}, size={partition.size // SECTOR}, type={kind}, "
            f'uuid={partition_uuid(identity, f"partition-{number}")}, name="{name}"'
        )
        uuid = str(partition_uuid(identity, f"file-system-{number}"))
        if partition.mount == "swap":
            makes.append(f"mkswap -U {uuid} ${{disk}}{number}")
            fstab.append(f"UUID={uuid} none swap sw 0 0")
        else:
            makes.append(_render_make(partition.file_system, f"${{disk}}{number}", uuid, name))
            mounts.append((partition.mount, number))
            fstab.append(_render_fstab(partition.file_system, uuid, partition.mount))
        start += partition.size
    table = render_partition_table(identity, arch, size_bytes, root_offset=start).rstrip("\n")
    root_uuid = str(identity.root_filesystem)
    return _SCRIPT.format(
        serial=TARGET_SERIAL,
        table="\n".join([table, *lines]),
        head_sectors=ROOT_OFFSET // SECTOR,
        first=BIOS_BOOT_LBA,
        root=ROOT_PARTITION,
        make="\n".join([_render_make(file_system, f"${{disk}}{ROOT_PARTITION}", root_uuid, "root"), *makes]),
        mount="\n".join(
            f"mkdir -p $new{shlex.quote(path)} && mount ${{disk}}{number} $new{shlex.quote(path)}"
            for path, number in sorted(mounts)
        ),
        fstab="\n".join([_render_fstab(file_system, root_uuid, "/"), *fstab]),
        late=_LATE if partitions else "",
    )


def _render_make(file_system: str, device: str, uuid: str, label: str) -> str:
    options = {
        "ext4": f"mkfs.ext4 -q -F -m 1 -U {uuid} -L",
        "xfs": f"mkfs.xfs -q -f -m uuid={uuid} -L",
        "btrfs": f"mkbtrfs -q -f -U {uuid} -L",
    }
    return f"{options[file_system]} {shlex.quote(label[:12])} {device}"


def _render_fstab(file_system: str, uuid: str, mount: str) -> str:
    # Only ext4 is checked at boot: fsck of the other file systems does nothing.
    checked = (1 if mount == "/" else 2) if file_system == "ext4" else 0
    return f"UUID={uuid} {mount} {file_system} {_OPTIONS[file_system]} 0 {checked}"


#: Make the agent wait for all mounts. By default the agent starts before udev, but with partitions a machine
#: is ready only when all partitions are mounted.
_LATE = """
units=$new/etc/systemd/system/bough-agent.service.d
rm -f $units/early.conf
mkdir -p $units
printf '[Unit]\\nAfter=local-fs.target swap.target\\n' > $units/partitions.conf
"""
_SCRIPT = r"""
set -eu
# Read from the kernel: the agent may be there before udev has made names.
disk=
for block in /sys/block/vd*; do
    [ "$(cat "$block/serial" 2>/dev/null)" != {serial} ] || disk=/dev/${{block##*/}}
done
own=/dev/$(lsblk -no pkname "$(findmnt -no SOURCE /)")
[ -b "$disk" ] || {{ echo "there is no second disk"; exit 1; }}
[ -b "$own" ] || {{ echo "the root is on no disk: $own"; exit 1; }}
sfdisk -q "$disk" <<'END'
{table}
END
# The boot loader's parts: code of the first sector, core.img, the EFI system partition.
dd if="$own" of="$disk" bs=440 count=1 conv=notrunc status=none
count=$(({head_sectors} - {first}))
dd if="$own" of="$disk" bs=512 skip={first} seek={first} count=$count conv=notrunc status=none
udevadm settle
# It refuses a UUID that another device has, as the root's own has here: it sees this device alone.
mkbtrfs() {{
    unshare -m sh -c '
        set -e
        for device; do :; done
        mkdir -p /run/bough-move/dev
        cp -a "$device" /dev/null /run/bough-move/dev/
        mount -t tmpfs none /dev
        cp -a /run/bough-move/dev/. /dev/
        BLKID_FILE=/run/bough-move/blkid exec mkfs.btrfs "$@"' sh "$@"
}}
{make}
old=/run/bough-move/old new=/run/bough-move/new
mkdir -p $old $new
mount --bind / $old
mount ${{disk}}{root} $new
{mount}
cp -a --one-file-system $old/. $new/
cat > $new/etc/fstab <<'END'
{fstab}
END
{late}
umount -R $new
umount $old
sync
"""
