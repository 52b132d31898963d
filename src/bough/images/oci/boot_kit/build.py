"""Build a boot kit: the first part of a disk, up to the root partition."""

from __future__ import annotations

import os
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from bough.errors import BuildFailed
from bough.guest.install import starter_file
from bough.images import disk
from bough.images.apt import Mirrors
from bough.images.linux_disk.cpio import DIRECTORY, FILE, LINK, PROGRAM, render_archive
from bough.images.linux_disk.guest_parts import order_modules
from bough.images.linux_disk.initrd import module_name
from bough.images.oci.boot_kit.recipe import INSIDE, BootKitRecipe
from bough.images.packages.unpacking import PackageBuild, build_from_packages, read_versions
from bough.images.platforms import PLATFORMS
from bough.progress import Report
from bough.units import MIB

#: The packages, unpacked, for two processors, and the kit.
_NEEDED_BYTES = 512 * MIB
#: Offset of the boot partition: right after the EFI system partition.
BOOT_OFFSET = disk.ROOT_OFFSET
#: Applets of busybox that the initrd's scripts use.
_APPLETS = (
    *("sh", "mount", "umount", "modprobe", "cat", "tr", "dd", "head", "readlink", "findfs", "mkdir", "rm"),
    *("mknod", "usleep", "switch_root", "ls", "dmesg", "poweroff", "reboot"),
)


@dataclass(frozen=True)
class BuiltKit:
    """A boot kit.

    Attributes:
        path: the file.
        packages: name -> version of the packages it was made from.
    """

    path: Path
    packages: dict[str, str]


async def build_boot_kit(
    recipe: BootKitRecipe, target: Path, incoming: Path, report: Report, mirrors: Mirrors
) -> BuiltKit:
    """Build the boot kit of a recipe as the file `target`, in stable storage.

    The same packages and the same mksquashfs give the same bytes. Nothing else is left below `incoming`.
    Cancelling kills all processes of the build.

    Raises:
        HostLacks: a program is missing.
        BuildFailed, NoSpace
    """
    platform = PLATFORMS[recipe.arch]
    build = PackageBuild(
        made="the boot kit",
        scripts=INSIDE,
        debian=recipe.debian,
        suite=recipe.suite,
        packages=(*recipe.packages, *(recipe.tools if recipe.arch == os.uname().machine else ())),
        metapackages=(recipe.kernel,),
        tools=recipe.tools,
        needed_bytes=_NEEDED_BYTES,
        environment={"BOUGH_GRUB_BIOS": platform.grub_bios, "BOUGH_GRUB_EFI": platform.grub_efi},
        programs={"mformat": "mtools"},
    )

    def fill(work: Path) -> None:
        text = (INSIDE / "grub.cfg").read_text().replace("@CONSOLE@", platform.console)
        (work / "grub.cfg").write_text(text)

    def take(work: Path) -> BuiltKit:
        try:
            _assemble(work, recipe, target)
        except subprocess.CalledProcessError as error:
            raise BuildFailed(
                f"the boot kit could not be built: {Path(error.cmd[0]).name} failed",
                image="the boot kit",
                step="writing the kit",
                output=str(error.stderr)[-2000:],
            ) from error
        return BuiltKit(target, read_versions(work))

    return await build_from_packages(build, incoming, report, mirrors, fill=fill, take=take)


def _assemble(work: Path, recipe: BootKitRecipe, target: Path) -> None:
    """Write the kit from boot/ and out/ of the build."""
    partition = work / "boot.squashfs"
    initrd = work / "initrd"
    initrd.write_bytes(_render_initrd(work, recipe))
    boot = work / "boot"
    _make_squashfs([boot / "vmlinuz", initrd, boot / "grub", boot / "lib"], partition)
    content = partition.read_bytes()
    with target.open("wb") as stream:
        stream.truncate(BOOT_OFFSET + len(content) + -len(content) % MIB)
        stream.seek(BOOT_OFFSET)
        stream.write(content)
    platform, out = PLATFORMS[recipe.arch], work / "out"
    if platform.grub_efi:
        loader = work / "loader.efi"
        loader.write_bytes((out / "boot.efi").read_bytes())
        serial = uuid.uuid5(uuid.NAMESPACE_OID, recipe.key()).int & 0xFFFFFFFF
        disk.write_esp(target, loader, platform.efi_loader, serial, 0)
    with target.open("r+b") as stream:
        if platform.grub_bios:
            stream.write((out / "boot.img").read_bytes())
            stream.seek(disk.BIOS_BOOT_LBA * disk.SECTOR)
            stream.write(disk.patch_core_image((out / "core.img").read_bytes()))
        stream.flush()
        os.fsync(stream.fileno())


def _make_squashfs(sources: list[Path], target: Path) -> None:
    """Make the boot partition. GRUB and the guest's kernel both read gzip.

    Kernel and initrd are stored plain: GRUB decompresses slowly in an emulated machine.
    """
    words = ["mksquashfs", *map(str, sources), str(target), "-noappend", "-no-progress", "-quiet"]
    words += ["-all-root", "-no-xattrs", "-comp", "gzip", "-Xcompression-level", "6", "-processors", "1"]
    words += ["-action", "uncompressed@name(vmlinuz)||name(initrd)"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "0"}
    subprocess.run(words, env=environment, check=True, capture_output=True, text=True, timeout=600)


def _render_initrd(work: Path, recipe: BootKitRecipe) -> bytes:
    version = (work / "out/version").read_text().strip()
    tree = work / "boot/lib/modules" / version
    dependencies = (tree / "modules.dep").read_text()
    paths = order_modules(dependencies, (*recipe.first, *recipe.more))
    present = {module_name(path) for path in paths}
    place = f"lib/modules/{version}"
    names = ("bin", "dev", "lib", "lib/modules", place, "modules", "proc", "root", "sys")

    def wanted(modules: tuple[str, ...]) -> bytes:
        # A driver may be part of the kernel.
        return " ".join(name for name in modules if name in present).encode() + b"\n"

    entries = [
        *((name, DIRECTORY, b"") for name in names),
        ("bin/busybox", PROGRAM, (work / "out/busybox").read_bytes()),
        *((f"bin/{name}", LINK, b"busybox") for name in _APPLETS),
        ("init", PROGRAM, (INSIDE / "init").read_bytes()),
        ("starter", FILE, starter_file().content),
        ("modules/first", FILE, wanted(recipe.first)),
        ("modules/more", FILE, wanted(recipe.more)),
        (f"{place}/modules.dep", FILE, render_dependencies(dependencies, paths)),
        *((f"{place}/{module_name(path)}.ko", FILE, (tree / path).read_bytes()) for path in paths),
    ]
    return render_archive(entries)


def render_dependencies(dependencies: str, paths: list[str]) -> bytes:
    """Return the modules.dep(5) of these modules, all in one directory.

    Args:
        dependencies: the modules.dep of all modules.
    """
    needed = dict(line.split(":", 1) for line in dependencies.splitlines())
    lines = (
        f"{module_name(path)}.ko:" + "".join(f" {module_name(other)}.ko" for other in needed[path].split())
        for path in paths
    )
    return "".join(line + "\n" for line in lines).encode()
