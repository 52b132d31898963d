#!/bin/sh
# After mmdebstrap: leave nothing that depends on when, where or how often it was built.
set -eu
root=$1
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap \
    "$root"/etc/ssh/ssh_host_* "$root"/var/lib/systemd/random-seed "$root"/var/lib/dpkg/*-old \
    "$root"/var/cache/debconf/*-old "$root"/etc/*- "$root"/var/cache/apt/*.bin \
    "$root"/var/cache/ldconfig/aux-cache "$root"/var/lib/dbus/machine-id
: > "$root/etc/machine-id"
find "$root/var/log" -type f -delete
find "$root/tmp" "$root/var/tmp" "$root/run" "$root/var/cache/apt/archives" "$root/var/lib/apt/lists" \
    -mindepth 1 ! -name partial -delete 2>/dev/null || :
# Days since 1970 of the last change of a password: today, otherwise.
sed -i -E 's/^([^:]*:[^:]*):[0-9]+:/\1:19000:/' "$root/etc/shadow"
# By hash, not by time: it is the same whenever it is made, and python need not look at the sources.
[ ! -e "$root/usr/lib/bough" ] || {
rm -rf "$root"/usr/lib/bough/bough/__pycache__ "$root"/usr/lib/bough/bough/guest/__pycache__
PYTHONHASHSEED=0 chroot "$root" python3 -I -S -m compileall -q --invalidation-mode unchecked-hash /usr/lib/bough
}
# systemd need not look for what is new in /usr at the first boot.
: > "$root/etc/.updated"
: > "$root/var/.updated"
# Whatever this build wrote is as old as the newest package. Last: it changes directories' times too.
epoch=$(find "$root/usr/share/doc" -maxdepth 2 -name 'changelog*' -printf '%T@\n' | cut -d. -f1 | sort -n | tail -1)
find "$root" -newermt "@$epoch" -exec touch -h -d "@$epoch" {} +
echo "$epoch" > /mnt/out/epoch
chroot "$root" dpkg-query -W -f '${Package} ${Version}\n' > /mnt/out/packages
