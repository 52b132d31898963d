# Tell what is on this host. Runs there as root, from standard input of `sh`; reads and writes nothing else.
# Each line is a key, a tab and a value. The programs are those that any Linux has; a missing one leaves out its
# lines.
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
tell() { printf '%s\t%s\n' "$1" "$2"; }
has() { command -v "$1" > /dev/null 2>&1; }
tell uid "$(id -u)"
tell machine "$(uname -m)"
tell kernel "$(uname -r)"
tell hostname "$(uname -n)"
tell cmdline "$(cat /proc/cmdline)"
if [ -d /sys/firmware/efi ]; then tell firmware uefi; else tell firmware bios; fi
tell init "$(readlink -f /proc/1/exe 2> /dev/null || cat /proc/1/comm 2> /dev/null)"
for key in ID VERSION_ID PRETTY_NAME; do
    value=$(. /etc/os-release 2> /dev/null; eval "printf %s \"\${$key:-}\"")
    tell "os.$key" "$value"
done
if has systemd-detect-virt; then tell container "$(systemd-detect-virt --container 2> /dev/null)"; fi
for program in rsync tar sudo update-initramfs dracut mkinitcpio mkinitfs grub-install grub2-install lvcreate btrfs; do
    if has "$program"; then tell program "$program"; fi
done
if has rsync; then
    tell rsync "$(rsync --version 2> /dev/null | head -n 1)"
    for ability in ACLs xattrs; do
        if rsync --version 2> /dev/null | grep -q "no $ability"; then tell lacks "$ability"; fi
    done
fi
# A mount point may contain anything but a NUL: mountinfo escapes space, tab, newline and backslash.
while read -r _ _ numbers root point _ rest; do
    rest=${rest#*- }
    tell mount "$numbers $root $point ${rest%% *} $(printf '%s' "${rest#* }" | cut -d' ' -f1)"
done < /proc/self/mountinfo
# Bytes and files in use, by mount point; -P: one line each.
df -P -k 2> /dev/null | while read -r device _ used _ _ point; do
    case $used in [0-9]*) tell used "$used $device $point" ;; esac
done
df -P -i 2> /dev/null | while read -r device _ used _ _ point; do
    case $used in [0-9]*) tell files "$used $point" ;; esac
done
if has lsblk; then
    lsblk -nrpo NAME,TYPE,FSTYPE,MOUNTPOINT 2> /dev/null | while read -r line; do tell block "$line"; done
fi
while read -r device kind size _; do
    case $size in [0-9]*) tell swap "$size $kind $device" ;; esac
done < /proc/swaps
for kernel in /boot/vmlinuz* /boot/vmlinux* /boot/kernel* /boot/Image* /vmlinuz; do
    if [ -f "$kernel" ]; then tell image "$kernel"; fi
done
# A driver is a module, or part of the kernel.
modules=/lib/modules/$(uname -r)
for driver in virtio_blk virtio_net virtio_pci ahci e1000 ext4; do
    if grep -qs "/$driver\.ko" "$modules/modules.builtin"; then
        tell driver "$driver builtin"
    elif grep -qs "/$driver\.ko" "$modules/modules.dep"; then
        tell driver "$driver module"
    fi
done
tell done yes
