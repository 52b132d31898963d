# In the capture machine: lay out the second disk and mount its root at $new, unless an earlier attempt did.
# bough sets: disk_serial, root_uuid, own_uuid, table, head_sectors, first_sector, root_number, features.
set -eu
new=/run/bough-capture/new
disk=
for block in /sys/block/vd*; do
    [ "$(cat "$block/serial" 2> /dev/null)" != "$disk_serial" ] || disk=/dev/${block##*/}
done
[ -b "$disk" ] || { echo "there is no second disk"; exit 1; }
root=$disk$root_number
mkdir -p "$new"
if mountpoint -q "$new"; then exit 0; fi
if [ "$(blkid -o value -s TYPE "$root" 2> /dev/null)" != ext4 ]; then
    own=/dev/$(lsblk -no pkname "$(findmnt -no SOURCE /)")
    [ -b "$own" ] || { echo "the root is on no disk: $own"; exit 1; }
    printf '%s\n' "$table" | sfdisk -q "$disk"
    # The boot loader's parts: code of the first sector, core.img, the EFI system partition.
    dd if="$own" of="$disk" bs=440 count=1 conv=notrunc status=none
    dd if="$own" of="$disk" bs=512 skip="$first_sector" seek="$first_sector" \
        count=$((head_sectors - first_sector)) conv=notrunc status=none
    udevadm settle
    # The loader for UEFI finds its root by the UUID in its configuration. The copy has a UUID of its own: the
    # machine that makes it could otherwise boot from it.
    python3 -c '
import sys
path, own, new = sys.argv[1], sys.argv[2].encode(), sys.argv[3].encode()
with open(path, "r+b") as disk:
    content = disk.read()
    if own in content:
        disk.seek(0)
        disk.write(content.replace(own, new))
' "${disk}2" "$own_uuid" "$root_uuid"
    mkfs.ext4 -q -F -m 1 -O "$features" -U "$root_uuid" -L root "$root"
fi
# A copy that was cut off may have left a log to replay.
e2fsck -p "$root" > /dev/null || [ $? -lt 4 ] || { echo "the copy's file system is damaged"; exit 1; }
mount -o noatime "$root" "$new"
