#!/bin/sh
# Start bough's guest agent from the agent disk. Without the disk, end at once with status 0, in silence.
#
#   /usr/lib/bough/start          becomes the agent
#   /usr/lib/bough/start stay     the same; without the disk, sleeps: for an init that starts ended programs again
#
# Plain POSIX shell. Programs: mount, mkdir, tr; modprobe, mknod, sleep if needed.
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
SERIAL=bough-agent

# An init without scripts of its own has mounted nothing.
mount_missing() {
    [ -e /proc/self ] || mount -t proc proc /proc
    [ -d /sys/block ] || mount -t sysfs sysfs /sys
    [ -e /dev/null ] || mount -t devtmpfs devtmpfs /dev
    # Terminals.
    [ -e /dev/pts/ptmx ] || { mkdir -p /dev/pts && mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts; }
} 2>/dev/null

# Print the kernel's name of the disk. virtio tells the serial number in "serial", NVMe in "device/serial",
# SCSI, SATA and CDs in the page 0x80 of the device's own description.
find_disk() {
    for block in /sys/block/*; do
        for file in serial device/serial device/vpd_pg80; do
            [ -r "$block/$file" ] || continue
            case $(tr -d '\0' <"$block/$file") in
                *"$SERIAL"*) echo "${block##*/}"; return 0 ;;
            esac
        done
    done
    for link in /dev/disk/by-id/*"$SERIAL"; do
        [ -b "$link" ] || continue
        link=$(readlink -f "$link") && echo "${link##*/}" && return 0
    done
    find_by_content
} 2>/dev/null

# Old IDE and CD drivers tell no serial number: look for a squashfs with the agent.
find_by_content() {
    for block in /sys/block/*; do
        name=${block##*/}
        case $name in loop* | ram* | zram* | dm-* | md* | fd*) continue ;; esac
        [ "$(cat "$block/ro")" = 1 ] || case $name in sr*) ;; *) continue ;; esac
        make_node "$name"
        [ "$(dd if="/dev/$name" bs=4 count=1)" = hsqs ] || continue
        mkdir -p /run/bough/probe && mount -t squashfs -o ro "/dev/$name" /run/bough/probe || continue
        is_agent=$(head -c 6 /run/bough/probe/version)
        umount /run/bough/probe
        [ "$is_agent" = "agent " ] && echo "$name" && return 0
    done
    return 1
} 2>/dev/null

make_node() {
    [ -b "/dev/$1" ] && return
    IFS=: read -r major minor <"/sys/block/$1/dev" && mknod "/dev/$1" b "$major" "$minor"
}

# Print a directory for the disk. The installer has made the first one; a root may be read-only.
find_place() {
    for place in /.bough /run/bough/disk /dev/.bough; do
        mkdir -p "$place" && echo "$place" && return 0
    done
    mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p /run/bough/disk && echo /run/bough/disk
} 2>/dev/null

mount_disk() {
    modprobe -q squashfs
    options=ro,nosuid,nodev
    # SELinux: the files of the disk have no labels of their own.
    [ -e /sys/fs/selinux/enforce ] &&
        mount -t squashfs -o "$options,context=system_u:object_r:bin_t:s0" "/dev/$1" "$2" && return
    mount -t squashfs -o "$options" "/dev/$1" "$2"
} 2>/dev/null

refuse() {
    echo "bough: $1" >&2
    [ ! -w /dev/kmsg ] || echo "bough: $1" >/dev/kmsg
    leave 1
}

leave() {
    [ "$stay" = stay ] || exit "$1"
    while :; do sleep 86400 || exit "$1"; done
}

# The initrd of the boot kit uses the functions only.
[ "${BOUGH_STARTER:-}" != functions ] || return 0

stay=${1:-}
for place in /.bough /run/bough/disk /dev/.bough; do
    [ -x "$place/bin/busybox" ] && exec "$place/bin/busybox" sh "$place/start" "$place"
done
mount_missing
disk=$(find_disk) || leave 0
make_node "$disk" 2>/dev/null
place=$(find_place) || refuse "no directory for the agent disk: the guest has no agent"
mount_disk "$disk" "$place" || refuse "the kernel cannot mount /dev/$disk (squashfs): the guest has no agent"
exec "$place/bin/busybox" sh "$place/start" "$place"
