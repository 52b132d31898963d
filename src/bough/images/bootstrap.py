"""Run mmdebstrap and the scripts in debian/ in separate namespaces. They write to a single directory.

The build mounts nothing on the host.
"""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from bough.errors import HostLacks
from bough.guest.install import ENABLED_AS, UNIT_PATH, agent_files
from bough.images import disk
from bough.images.apt import Mirrors, render_pins, render_source, source_files, source_path
from bough.images.build_watch import BuildWatch
from bough.images.emulation import find_rule
from bough.images.namespace import start_inside
from bough.images.platforms import PLATFORMS
from bough.images.recipes import SCRIPTS, Recipe
from bough.progress import Report
from bough.qemu.host import has_range
from bough.spec import PackageLock

_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "sfdisk": "fdisk",
    "mformat": "mtools",
}


def check_programs(programs: Mapping[str, str] = _PROGRAMS, made: str = "images") -> None:
    """Check that the host has the programs that a build needs.

    Args:
        programs: program -> Debian's package.
        made: what the build makes.

    Raises:
        HostLacks: names every missing program.
    """
    # Some of the programs are in sbin. An ordinary user's PATH lacks sbin.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [name for name in programs if shutil.which(name, path=path) is None]
    if missing:
        packages = " ".join(sorted({programs[name] for name in missing}))
        raise HostLacks(
            f"this host lacks {', '.join(missing)}, needed to build {made}",
            hint=f"sudo apt install {packages} (on other distributions: bough doctor)",
        )


def check_subordinate_ids() -> None:
    """Check that an ordinary user has subordinate ids. The build uses these ids as users.

    Raises:
        HostLacks: the user has no range of ids, or newuidmap is missing.
    """
    if os.geteuid() == 0:
        return
    user = getpass.getuser()
    lacking = [file for file in ("/etc/subuid", "/etc/subgid") if not has_range(Path(file), user)]
    if lacking:
        raise HostLacks(
            f"{user} has no subordinate ids in {' and '.join(lacking)}, needed to build images",
            hint=f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
        )
    if shutil.which("newuidmap") is None:
        raise HostLacks("this host lacks newuidmap, needed to build images", hint="sudo apt install uidmap")


def prepare(work: Path, recipe: Recipe, lock: PackageLock | None = None) -> None:
    """Fill `work`: scripts, agent, apt configuration, and places that the build may write to."""
    shutil.copytree(SCRIPTS, work, dirs_exist_ok=True)
    agent = work / "agent"
    agent.mkdir()
    _write_apt(work / "apt", recipe, lock)
    with_agent = recipe.agent
    for file in agent_files() if with_agent else ():
        path = agent / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(file.mode)
    if with_agent:
        link = agent / ENABLED_AS.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(UNIT_PATH)
    (work / "out").mkdir()
    with (work / "disk.raw").open("wb") as stream:
        stream.truncate(disk.DISK_BYTES)
    for path in work.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    # For our files, subordinate ids are "others". No other user can enter incoming/<random name>.
    for path in (work, work / "out"):
        path.chmod(0o777)
    (work / "disk.raw").chmod(0o666)


def _write_apt(place: Path, recipe: Recipe, lock: PackageLock | None) -> None:
    """Write the apt configuration. setup.sh and customize.sh name the reader of each file."""
    building, root = place / "building", place / "root"
    building.mkdir(parents=True)
    root.mkdir()
    for source in recipe.sources:
        (building / Path(source_path(source)).name).write_text(render_source(source, key_inside=True))
    for name, text in source_files(recipe.sources).items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if lock is not None:
        (place / "pins").write_text(render_pins(lock.packages))
        versions = {**lock.packages, **lock.boot_loader}
        (place / "locked").write_text("".join(f"{name}={version}\n" for name, version in versions.items()))


async def bootstrap(
    work: Path,
    recipe: Recipe,
    identity: disk.DiskIdentity,
    report: Report,
    mirrors: Mirrors,
    lock: PackageLock | None = None,
) -> None:
    """Fill `work`: the root file system in disk.raw, boot loaders and lists in out/.

    Cancelling kills all processes of the build.

    Raises:
        BuildFailed: carries the step and the end of the output.
        HostLacks: programs of the image's architecture do not run on this host.
        NoSpace
    """
    platform = PLATFORMS[recipe.arch]
    native = recipe.arch == os.uname().machine
    environment = {
        "SOURCE_DATE_EPOCH": "0",
        "BOUGH_ARCH": platform.debian,
        "BOUGH_SUITE": recipe.suite,
        "BOUGH_MIRROR": mirrors.main or "",
        "BOUGH_SECURITY_MIRROR": mirrors.security or "",
        "BOUGH_PACKAGES": ",".join(recipe.plain_packages),
        "BOUGH_RECOMMENDING": " ".join(recipe.recommending),
        "BOUGH_INITRAMFS": platform.initramfs,
        "BOUGH_MODULES": " ".join(name for name in recipe.file_systems if name != "ext4"),
        "BOUGH_GRUB_MODULES": " ".join(name for name in recipe.file_systems if name != "ext4"),
        "BOUGH_DISABLED_UNITS": " ".join(recipe.disabled_units),
        "BOUGH_MASKED_UNITS": " ".join(recipe.masked_units),
        "BOUGH_MASKED_GENERATORS": " ".join(recipe.masked_generators),
        "BOUGH_CONSOLE": platform.console,
        "BOUGH_GRUB_BIOS": platform.grub_bios,
        "BOUGH_GRUB_EFI": platform.grub_efi,
        "BOUGH_GRUB_PACKAGES": " ".join(_with_version(name, lock) for name in recipe.grub_packages),
        "BOUGH_ROOT_UUID": str(identity.root_filesystem),
        "BOUGH_ROOT_OFFSET": str(disk.ROOT_OFFSET),
        "BOUGH_ROOT_SIZE": str(disk.ROOT_BYTES),
    }
    environment |= find_proxies()
    watch = BuildWatch(recipe.label, report)
    rule = "" if native else await find_rule(recipe.arch, work)
    process = await start_inside(work, ("sh", "./build.sh"), environment, binfmt=rule)
    await watch.follow(process, work)


def find_proxies() -> dict[str, str]:
    """Return the variables by which apt finds its proxies."""
    proxies = ("http_proxy", "https_proxy", "no_proxy")
    return {name: os.environ[name] for name in proxies if name in os.environ}


def _with_version(name: str, lock: PackageLock | None) -> str:
    version = lock.boot_loader.get(name) if lock else None
    return f"{name}={version}" if version else name


def remove_build(work: Path) -> None:
    """Remove a build directory, with the files of subordinate ids.

    Only the root of a user namespace with these ids may remove those files.
    """
    if not work.exists():
        return
    try:
        shutil.rmtree(work)
    except PermissionError:
        import subprocess

        # `cwd` instead of a path: subordinate ids may have no access to the directories above.
        argv = ["mmdebstrap", "--unshare-helper", "find", ".", "-mindepth", "1", "-delete"]
        subprocess.run(argv, cwd=work, check=False, capture_output=True)  # a tree may have a million files
        shutil.rmtree(work)
