"""The boot kit: how a disk made from a container image boots.

A container image has no kernel. The boot kit of an architecture is the first part of such a disk, the same
for each image, made from Debian's packages:

    sector 0     GRUB's boot.img (BIOS)
    LBA 34       GRUB's core.img (BIOS)
    1 MiB        EFI system partition with GRUB
    17 MiB       boot partition, a squashfs: GRUB's configuration, kernel, initrd, modules

GRUB passes the UUID of the root file system, which is in the partition after the boot partition. The initrd
mounts the root, the agent disk at /.bough and the boot partition at /.bough/boot, and runs /.bough/init.

recipe.py says what goes in, build.py makes a kit, store.py keeps kits, inside/ runs in the namespaces of the
build or in the guest.
"""
