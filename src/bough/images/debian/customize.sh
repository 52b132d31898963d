#!/bin/sh
# Inside mmdebstrap, all packages installed, /proc and /dev mounted: configure, and make the boot loader.
set -eu
root=$1
echo "@step configuring"
cp -R /mnt/files/. "$root/"
cp -R /mnt/agent/. "$root/"
rm -f "$root/etc/resolv.conf"
ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
echo debian > "$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"
echo "LANG=C.UTF-8" > "$root/etc/default/locale"
printf 'UUID=%s / ext4 errors=remount-ro 0 1\n' "$BOUGH_ROOT_UUID" > "$root/etc/fstab"
sed -i "s/@ROOT_UUID@/$BOUGH_ROOT_UUID/" "$root/boot/grub/grub.cfg"
chroot "$root" usermod -p '*' root
chroot "$root" systemctl -q enable systemd-networkd.service ssh-host-keys.service
if [ -e "$root/lib/systemd/system/systemd-resolved.service" ]; then
    chroot "$root" systemctl -q enable systemd-resolved.service
fi
chroot "$root" systemctl -q disable $BOUGH_DISABLED_UNITS
mkdir -p "$root/etc/systemd/system-generators"
for generator in $BOUGH_MASKED_GENERATORS; do ln -sf /dev/null "$root/etc/systemd/system-generators/$generator"; done
chroot "$root" systemctl -q mask $BOUGH_MASKED_UNITS
chroot "$root" update-tirfs

echo "@step making the boot loader"
grub=$root/tmp/grub
mkdir "$grub"
# By the guest's sources, which mmdebstrap names; apt would take the host's.
(cd "$grub" && APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -q -o "Dir::Cache::archives=$grub" download $BOUGH_GRUB_PACKAGES)
for package in "$grub"/*.deb; do
    dpkg-deb -x "$package" "$grub"
    dpkg-deb -W --showformat='${Package} ${Version}\n' "$package" >> /mnt/out/boot-loader
done
sed "s/@ROOT_UUID@/$BOUGH_ROOT_UUID/" /mnt/boot-bios.cfg > "$grub/bios.cfg"
sed "s/@ROOT_UUID@/$BOUGH_ROOT_UUID/" /mnt/boot-efi.cfg > "$grub/efi.cfg"
libraries=$(cd "$grub" && find lib usr/lib -name '*.so*' -printf '/tmp/grub/%h:' 2>/dev/null || :)
modules="part_gpt ext2 $BOUGH_GRUB_MODULES linux normal configfile echo test search search_fs_uuid serial"
chroot "$root" env "LD_LIBRARY_PATH=$libraries" /tmp/grub/usr/bin/grub-mkimage -d /tmp/grub/usr/lib/grub/i386-pc -O i386-pc \
    -o /tmp/grub/core.img -c /tmp/grub/bios.cfg -p '(hd0,gpt3)/boot/grub' biosdisk linux16 $modules
chroot "$root" env "LD_LIBRARY_PATH=$libraries" /tmp/grub/usr/bin/grub-mkimage -d /tmp/grub/usr/lib/grub/x86_64-efi -O x86_64-efi \
    -o /tmp/grub/boot.efi -c /tmp/grub/efi.cfg -p /boot/grub $modules
cp "$grub/core.img" "$grub/boot.efi" "$grub/usr/lib/grub/i386-pc/boot.img" /mnt/out/
rm -rf "$grub"

# What apt asks from now on: a mirror, and versions that were asked for, are this build's alone.
rm -rf "$root"/etc/apt/sources.list.d/* "$root/etc/apt/preferences.d/00-bough-lock"
cp /mnt/apt/sources.list "$root/etc/apt/sources.list"
cp -R /mnt/apt/root/. "$root/"
