#!/bin/sh
# Inside mmdebstrap, all packages installed, /proc and /dev mounted: configure, and make the boot loader.
set -eu
root=$1
if [ -n "$BOUGH_RECOMMENDING" ]; then
    echo "@step installing packages and what they recommend"
    # As mmdebstrap does it: apt of the host, dpkg of the guest.
    APT_CONFIG=$MMDEBSTRAP_APT_CONFIG DEBIAN_FRONTEND=noninteractive apt-get -q --yes \
        -o Dir::Bin::dpkg=env -o DPkg::Options::=--unset=TMPDIR -o DPkg::Options::=dpkg \
        -o "DPkg::Chroot-Directory=$root" -o Dpkg::Use-Pty=false -o APT::Install-Recommends=true \
        install $BOUGH_RECOMMENDING
fi
echo "@step configuring"
cp -R /mnt/files/. "$root/"
cp -R /mnt/agent/. "$root/"
rm -f "$root/etc/resolv.conf"
ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
echo debian > "$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"
echo "LANG=C.UTF-8" > "$root/etc/default/locale"
printf 'UUID=%s / ext4 errors=remount-ro 0 1\n' "$BOUGH_ROOT_UUID" > "$root/etc/fstab"
sed -i "s/@ROOT_UUID@/$BOUGH_ROOT_UUID/; s/@CONSOLE@/$BOUGH_CONSOLE/" "$root/boot/grub/grub.cfg"
chroot "$root" usermod -p '*' root
chroot "$root" systemctl -q disable ssh.service
chroot "$root" systemctl -q enable systemd-networkd.service ssh.socket ssh-host-keys.service
if [ -e "$root/lib/systemd/system/systemd-resolved.service" ]; then
    chroot "$root" systemctl -q enable systemd-resolved.service
fi
chroot "$root" systemctl -q disable $BOUGH_DISABLED_UNITS
mkdir -p "$root/etc/systemd/system-generators"
for generator in $BOUGH_MASKED_GENERATORS; do ln -sf /dev/null "$root/etc/systemd/system-generators/$generator"; done
chroot "$root" systemctl -q mask $BOUGH_MASKED_UNITS
case $BOUGH_INITRAMFS in
    tiny-initramfs) chroot "$root" update-tirfs ;;
    initramfs-tools) chroot "$root" update-initramfs -u -k all ;;
esac

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
make_image() { # platform, output, configuration, prefix, modules
    image_platform=$1 image_output=$2 image_config=$3 image_prefix=$4
    shift 4
    chroot "$root" env "LD_LIBRARY_PATH=$libraries" /tmp/grub/usr/bin/grub-mkimage \
        -d "/tmp/grub/usr/lib/grub/$image_platform" -O "$image_platform" \
        -o "/tmp/grub/$image_output" -c "/tmp/grub/$image_config" -p "$image_prefix" "$@"
    cp "$grub/$image_output" /mnt/out/
}
if [ -n "$BOUGH_GRUB_BIOS" ]; then
    make_image "$BOUGH_GRUB_BIOS" core.img bios.cfg '(hd0,gpt3)/boot/grub' biosdisk linux16 $modules
    cp "$grub/usr/lib/grub/$BOUGH_GRUB_BIOS/boot.img" /mnt/out/
fi
if [ -n "$BOUGH_GRUB_EFI" ]; then
    make_image "$BOUGH_GRUB_EFI" boot.efi efi.cfg /boot/grub $modules
fi
rm -rf "$grub"

# What apt asks from now on: a mirror, and versions that were asked for, are this build's alone.
rm -rf "$root"/etc/apt/sources.list.d/* "$root/etc/apt/preferences.d/00-bough-lock"
cp /mnt/tmp/sources.list "$root/etc/apt/sources.list"
for file in /mnt/apt/root/etc/apt/sources.list.d/*.sources; do
    [ ! -e "$file" ] || sh /mnt/new_sources.sh "$file"
done
cp -R /mnt/apt/root/. "$root/"
