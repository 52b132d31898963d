"""The kernel that a disk boots, and the drivers that this kernel has before and after its root is mounted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bough.images.confined import Confinement
from bough.images.linux_disk.initrd import module_name, read_initrd_modules
from bough.images.linux_disk.tree import Tree, resolve
from bough.units import MIB

MODULES = ("/lib/modules", "/usr/lib/modules")
_KERNEL = re.compile(r"(?:vmlinu[xz]|bzImage|Image|kernel|linux)(?:[-_.].*)?")
_INITRD = re.compile(r"(?:initrd|initramfs)(?:[-_.].*)?|core\.gz")
#: Kernels and initrds for other purposes than the usual boot.
_OTHERS = re.compile(r"rescue|fallback|kdump|\.old$|\.bak$|-dbg$")
_MOST_LIST = 16 * MIB
_MOST_VERSIONS = 64
#: bus of a disk -> drivers that an initrd or the kernel needs for a root on that bus.
_BUSES = {
    "virtio": ("virtio_pci", "virtio_blk"),
    "scsi": ("virtio_pci", "virtio_scsi", "sd_mod"),
    "sata": ("ahci", "sd_mod"),
    "ide": ("ata_piix", "sd_mod"),
    "nvme": ("nvme",),
}
#: model of a network card -> its driver.
_NICS = {"virtio": "virtio_net", "e1000e": "e1000e", "e1000": "e1000", "rtl8139": "8139cp"}


@dataclass(frozen=True)
class Kernel:
    """A kernel with its drivers.

    Attributes:
        version: as in /lib/modules; "" if unknown.
        image, initrd: names of the files below /boot; None if not found.
        at_boot: drivers before the root is mounted; None if the kernel was not found, or if its initrd or its
            list of modules is unreadable.
        drivers: all drivers; None if the list of modules is missing.
    """

    version: str = ""
    image: str | None = None
    initrd: str | None = None
    at_boot: frozenset[str] | None = None
    drivers: frozenset[str] | None = None

    @property
    def buses(self) -> tuple[str, ...] | None:
        """The buses from which the root can be mounted, the fastest first; None if unknown."""
        if self.at_boot is None:
            return None
        return tuple(bus for bus, needed in _BUSES.items() if self.at_boot.issuperset(needed))

    @property
    def nics(self) -> tuple[str, ...] | None:
        """The models of network cards that the kernel drives, the fastest first; None if unknown."""
        if self.drivers is None:
            return None
        return tuple(model for model, driver in _NICS.items() if driver in self.drivers)

    def has(self, driver: str) -> bool | None:
        """Return whether the kernel has a driver; None if unknown."""
        return None if self.drivers is None else driver in self.drivers


async def read_kernel(root: Tree, boot: Tree | None, work: Path, confinement: Confinement) -> Kernel:
    """Return the kernel that the disk boots by default, as far as it can be found.

    Args:
        boot: the file system for /boot, if it is another one than the root's.

    Raises:
        TreeUnreadable
    """
    tree, directory = (root, "/boot") if boot is None else (boot, "")
    listed = await root.names(MODULES)
    versions = sorted({name for names in listed.values() for name in names}, key=by_version, reverse=True)
    files = (await tree.names([directory])).get(directory, [])
    image = _choose([name for name in files if _KERNEL.fullmatch(name)], versions)
    initrd = _choose([name for name in files if _INITRD.fullmatch(name)], versions)
    version = _version_of(image, versions)
    builtin, modules = await _read_drivers(root, version) if version else (None, None)
    loaded: frozenset[str] | None = frozenset()
    if initrd is not None:
        path = f"{directory}/{initrd}"
        place, entry = (await resolve(tree, [path])).get(path, ("", None))
        loaded = None
        if entry is not None and entry.kind == "regular":
            loaded = await read_initrd_modules(tree, place, entry.size_bytes, work, confinement)
    return Kernel(
        version=version,
        image=image,
        initrd=initrd,
        at_boot=None if builtin is None or loaded is None or image is None else builtin | loaded,
        drivers=None if builtin is None or modules is None else builtin | modules,
    )


async def _read_drivers(root: Tree, version: str) -> tuple[frozenset[str] | None, frozenset[str] | None]:
    """Return the drivers inside the kernel, and those in modules; None for an unreadable list."""
    wanted = [f"{MODULES[0]}/{version}/{name}" for name in ("modules.builtin", "modules.dep")]
    found = await resolve(root, wanted)
    sizes = {found[path][0]: found[path][1].size_bytes for path in wanted if path in found}
    if sum(sizes.values()) > _MOST_LIST:
        return None, None
    content = await root.read(sorted(sizes), sum(sizes.values()))
    builtin, modules = (
        _parse_list(content[found[path][0]].decode(errors="replace")) if path in found else None
        for path in wanted
    )
    return builtin, modules


def _parse_list(text: str) -> frozenset[str]:
    """Return the names in modules.builtin or modules.dep: a path in each line, perhaps with ":" and more."""
    names = (module_name(line.partition(":")[0].strip()) for line in text.splitlines())
    return frozenset(name for name in names if name is not None)


def _choose(names: list[str], versions: list[str]) -> str | None:
    """Return the file of the newest version; without versions in the names, the last name."""
    usual = [name for name in names if not _OTHERS.search(name)] or names
    for version in versions:
        fitting = [name for name in usual if version in name]
        if fitting:
            return min(fitting, key=len)
    return max(usual, key=by_version, default=None)


def _version_of(image: str | None, versions: list[str]) -> str:
    """Return the version of a kernel file. vmlinuz-virt has a flavour only."""
    if not versions:
        return ""
    named = [version for version in versions if image and version in image]
    flavour = (image or "").rpartition("-")[2]
    flavoured = [version for version in versions if flavour and version.endswith(f"-{flavour}")]
    return (named or flavoured or versions)[0]


def by_version(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts numbers in names by their value: 6.9 before 6.12."""
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
