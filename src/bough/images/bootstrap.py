"""Run mmdebstrap and the scripts in debian/ in separate namespaces. They write to a single directory.

The build mounts nothing on the host.
"""

from __future__ import annotations

import getpass
import os
import shutil
from collections import deque
from pathlib import Path

from bough.errors import BuildFailed, HostLacks, NoSpace
from bough.guest.install import ENABLED_AS, UNIT_PATH, agent_files
from bough.images import disk
from bough.images.apt import Mirrors, render_pins, render_source, source_files, source_path
from bough.images.emulation import find_rule
from bough.images.namespace import start_inside
from bough.images.platforms import PLATFORMS
from bough.images.recipes import SCRIPTS, Recipe
from bough.progress import Progress, Report
from bough.qemu.host import has_range
from bough.qemu.subprocesses import end_subprocess
from bough.spec import PackageLock

_OUTPUT_LINES = 40
_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "sfdisk": "fdisk",
    "mformat": "mtools",
}


def check_programs() -> None:
    """Check that the host has the programs that a build needs.

    Raises:
        HostLacks: names every missing program.
    """
    # Some of the programs are in sbin. An ordinary user's PATH lacks sbin.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        packages = " ".join(sorted({_PROGRAMS[name] for name in missing}))
        raise HostLacks(
            f"this host lacks {', '.join(missing)}, needed to build images",
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
    proxies = ("http_proxy", "https_proxy", "no_proxy")
    environment |= {name: os.environ[name] for name in proxies if name in os.environ}
    watch = _Watch(recipe.label, report)
    rule = "" if native else await find_rule(recipe.arch, work)
    process = await start_inside(work, ("sh", "./build.sh"), environment, binfmt=rule)
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            watch.line(line.decode(errors="replace").rstrip())
        status = await process.wait()
    except BaseException:
        await end_subprocess(process)
        raise
    if status != 0:
        raise watch.failure(status, work)


def _with_version(name: str, lock: PackageLock | None) -> str:
    version = lock.boot_loader.get(name) if lock else None
    return f"{name}={version}" if version else name


class _Watch:
    """Reader of the build's output. Reports each step, and keeps the last lines for an error."""

    def __init__(self, label: str, report: Report) -> None:
        self._label = label
        self._report = report
        self._step = "preparing"
        self._last: deque[str] = deque(maxlen=_OUTPUT_LINES)
        self._unavailable: list[str] = []

    def line(self, text: str) -> None:
        if text.startswith("@step "):
            self._step = text.removeprefix("@step ")
            self._report(Progress(f"building {self._label}: {self._step}"))
            return
        if text.startswith("@unavailable "):
            self._unavailable.append(text.removeprefix("@unavailable ")[:200])
            return
        self._last.append(text[:500])
        if text.startswith("I: "):
            self._report(Progress(f"building {self._label}: {self._step}", detail=text[3:].rstrip(".")))

    def failure(self, status: int, work: Path) -> BuildFailed | NoSpace:
        output = "\n".join(self._last)
        if "No space left on device" in output:
            return NoSpace(
                f"no space left for the build of {self._label} below {work.parent}",
                hint="a build needs about 2.5 GiB",
                output=output[-2000:],
            )
        if self._unavailable:
            gone = self._unavailable
            more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
            return BuildFailed(
                f"the image {self._label} could not be built: the archive no longer has "
                f"these locked versions: {', '.join(gone[:5])}{more}",
                hint="use an archive of that day (--mirror, --security-mirror), "
                "or write a new lock: bough image lock",
                image=self._label,
                step=self._step,
                unavailable=gone[:500],
            )
        return BuildFailed(
            f"the image {self._label} could not be built: {self._step} failed (status {status})",
            hint=_hint(output),
            image=self._label,
            step=self._step,
            output=output[-4000:],
        )


def _hint(output: str) -> str:
    if any(word in output for word in ("Could not resolve", "Could not connect", "Temporary failure")):
        return "no mirror could be reached: check the network, or name another mirror with --mirror"
    if "is expired" in output:
        return "the mirror's lists have expired, or this host's clock is wrong; --mirror names another mirror"
    return "see the end of the output above; bough doctor shows whether a program is missing"


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
        subprocess.run(argv, cwd=work, check=False, capture_output=True, timeout=120)
        shutil.rmtree(work)
