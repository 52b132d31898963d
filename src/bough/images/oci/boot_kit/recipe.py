"""What a boot kit is made from, as data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bough.errors import HostLacks
from bough.guest.install import starter_file
from bough.images.packages.scripts import SCRIPTS, read_scripts
from bough.images.platforms import PLATFORMS

INSIDE = Path(__file__).parent / "inside"
#: The form of the kit's disk part. Increase after a change in build.py.
_FORM = 1
#: Modules that the initrd always loads: for the disks, and for what the agent uses at once.
_FIRST = (
    *("virtio_pci", "virtio_blk", "ext4", "squashfs", "virtio_console", "virtio_net", "virtio_rng"),
    *("evdev", "button"),
)
#: Drivers of other buses. The initrd loads them if it finds no root.
_MORE = ("virtio_mmio", "virtio_scsi", "nvme", "ahci", "ata_piix", "ata_generic", "sd_mod", "sr_mod")
#: Programs of this host's processor: kmod, and GRUB's grub-mkimage, with their libraries.
_TOOLS = (
    *("kmod", "libkmod2", "libssl3", "libzstd1", "grub-common", "libdevmapper1.02.1", "libselinux1"),
    *("libpcre2-8-0", "libudev1", "liblzma5", "libc6"),
)
_SUITE = "bookworm"


@dataclass(frozen=True)
class BootKitRecipe:
    """The ingredients of the boot kit of one architecture.

    Attributes:
        arch: as `uname -m` says.
        kernel: Debian's metapackage of the kernel.
        packages: further packages of the architecture.
        first, more: modules of the initrd: always loaded, or loaded if no root is found.
    """

    arch: str
    debian: str
    suite: str
    kernel: str
    packages: tuple[str, ...]
    tools: tuple[str, ...] = _TOOLS
    first: tuple[str, ...] = _FIRST
    more: tuple[str, ...] = _MORE

    def key(self) -> str:
        """Return the digest of all ingredients, except for the versions of packages."""
        digest = hashlib.sha256(json.dumps([_FORM, asdict(self)], sort_keys=True).encode())
        digest.update(read_scripts(SCRIPTS, INSIDE) + starter_file().content)
        return digest.hexdigest()


def boot_kit_recipe(arch: str) -> BootKitRecipe:
    """Return the recipe for an architecture.

    Raises:
        HostLacks: bough has no boot kit for it.
    """
    if arch not in _ARCHITECTURES:
        raise HostLacks(
            f"a container image for {arch[:40]!r} cannot become a machine: bough has no kernel for it",
            hint=f"bough has kernels for {', '.join(_ARCHITECTURES)}",
        )
    platform = PLATFORMS[arch]
    grub = tuple(name for name in platform.grub_packages if name.endswith("-bin"))
    return BootKitRecipe(arch, platform.debian, _SUITE, platform.kernel, ("busybox-static", *grub))


_ARCHITECTURES = ("x86_64", "aarch64")
