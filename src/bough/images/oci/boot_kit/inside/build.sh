#!/bin/sh
# Make the parts of a boot kit from packages. Runs below enter.sh of a build; build.py sets the environment.
set -eu
. ./unpack.sh
echo "@step preparing the kernel"
target=/mnt/root/$BOUGH_ARCH
version=$(ls "$target/lib/modules")
mkdir -p boot/grub boot/lib/modules
mv "$target/lib/modules/$version" boot/lib/modules/
cp "$target/boot/vmlinuz-$version" boot/vmlinuz
cp grub.cfg boot/grub/grub.cfg
# A copy: the package has depmod as a link with an absolute target.
cp "$native/bin/kmod" tmp/depmod
run_native 'libc.so.6 libcrypto.so.3 liblzma.so.5 libzstd.so.1' /mnt/tmp/depmod -b /mnt/boot "$version"
cp "$target/bin/busybox" out/busybox
printf '%s\n' "$version" > out/version
echo "@step making the boot loader"
# The boot partition is the third one of the disk that GRUB was loaded from.
make_image() { # platform, output, modules
    platform=$1 output=$2
    shift 2
    run_native 'libc.so.6 libdevmapper.so.1.02.1 libselinux.so.1 libudev.so.1 liblzma.so.5' \
        "$native/usr/bin/grub-mkimage" -d "$target/usr/lib/grub/$platform" -O "$platform" \
        -o "/mnt/out/$output" -c /mnt/early.cfg -p '(,gpt3)/grub' "$@"
}
modules="part_gpt squash4 ext2 linux normal configfile echo test regexp probe serial"
if [ -n "$BOUGH_GRUB_BIOS" ]; then
    # shellcheck disable=SC2086  # a list of words
    make_image "$BOUGH_GRUB_BIOS" core.img biosdisk linux16 $modules
    cp "$target/usr/lib/grub/$BOUGH_GRUB_BIOS/boot.img" out/
fi
if [ -n "$BOUGH_GRUB_EFI" ]; then
    # shellcheck disable=SC2086
    make_image "$BOUGH_GRUB_EFI" boot.efi $modules
fi
chmod -R a+rX boot out
