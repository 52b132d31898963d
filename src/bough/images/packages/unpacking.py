"""Download and unpack packages in namespaces, and run a build's script on them."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bough.images.apt import Mirrors
from bough.images.bootstrap import check_programs, check_subordinate_ids, find_proxies, remove_build
from bough.images.build_watch import BuildWatch
from bough.images.namespace import start_inside
from bough.images.packages.scripts import SCRIPTS
from bough.images.platforms import PLATFORMS
from bough.images.recipes import SCRIPTS as IMAGE_SCRIPTS
from bough.progress import Progress, Report
from bough.storage import check_space, no_space_is_told
from bough.tasks import finish
from bough.units import format_size

#: Scripts of an image's build that these builds need, too.
_SHARED = ("enter.sh", "mirrors.awk")
_PROGRAMS = {"mmdebstrap": "mmdebstrap", "dpkg-deb": "dpkg", "mksquashfs": "squashfs-tools"}
#: See bough.images.apt.find_mirrors.
_MIRROR = "BOUGH_MIRROR in the service's environment, or `mirror` in settings.toml"

Result = TypeVar("Result")


@dataclass(frozen=True)
class PackageBuild:
    """A build from unpacked packages.

    Attributes:
        made: "the agent disk".
        scripts: directory with build.sh, and with files that build.sh uses.
        debian: Debian's name of the architecture.
        suite: Debian's release.
        packages: of that architecture, without their dependencies.
        metapackages: packages whose first dependency is needed.
        tools: packages of this host's architecture, if it is another one.
        needed_bytes: free space that the build needs.
        environment: further variables of build.sh.
        programs: further programs of the host: program -> Debian's package.
    """

    made: str
    scripts: Path
    debian: str
    suite: str
    packages: tuple[str, ...]
    tools: tuple[str, ...]
    needed_bytes: int
    metapackages: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, str] = field(default_factory=dict)


async def build_from_packages(
    build: PackageBuild,
    incoming: Path,
    report: Report,
    mirrors: Mirrors,
    *,
    fill: Callable[[Path], None],
    take: Callable[[Path], Result],
) -> Result:
    """Run a build. Return the result of `take`, which runs before the files are removed.

    Nothing is left below `incoming`. Cancelling kills all processes of the build.

    Args:
        fill: adds files to the build's directory before the build.
        take: reads files of the build's directory, such as out/.

    Raises:
        HostLacks: a program is missing.
        BuildFailed, NoSpace
    """
    check_programs({**_PROGRAMS, **build.programs}, build.made)
    check_subordinate_ids()
    check_space(incoming, build.needed_bytes, build.made)
    work = incoming / f"packages-{secrets.token_hex(6)}"
    work.mkdir(mode=0o711)
    try:
        with no_space_is_told(build.made, incoming):
            await finish(asyncio.to_thread(_prepare, work, build, fill))
            report(Progress(f"building {build.made}"))
            process = await start_inside(work, ("sh", "./build.sh"), _environment(build, mirrors))
            needed = format_size(build.needed_bytes)
            watch = BuildWatch(build.made, report, noun="", needed=needed, mirror=_MIRROR)
            await watch.follow(process, work)
            return await finish(asyncio.to_thread(take, work))
    finally:
        await finish(asyncio.to_thread(remove_build, work))


def _prepare(work: Path, build: PackageBuild, fill: Callable[[Path], None]) -> None:
    """Fill `work`: the scripts, the build's files, and a directory for the results."""
    for directory in (SCRIPTS, build.scripts):
        for path in directory.iterdir():
            if path.is_file():
                shutil.copyfile(path, work / path.name)
    for name in _SHARED:
        shutil.copyfile(IMAGE_SCRIPTS / name, work / name)
    fill(work)
    (work / "out").mkdir()
    for path in work.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    # For our files, subordinate ids are "others". No other user can enter incoming/<random name>.
    for path in (work, work / "out"):
        path.chmod(0o777)


def _environment(build: PackageBuild, mirrors: Mirrors) -> dict[str, str]:
    native = PLATFORMS[os.uname().machine].debian
    return {
        "BOUGH_ARCH": build.debian,
        "BOUGH_NATIVE": native,
        "BOUGH_ARCHES": " ".join(dict.fromkeys((build.debian, native))),
        "BOUGH_SUITE": build.suite,
        "BOUGH_PACKAGES": " ".join(build.packages),
        "BOUGH_METAPACKAGES": " ".join(build.metapackages),
        "BOUGH_TOOLS": " ".join(build.tools),
        "BOUGH_MIRROR": mirrors.main or "",
        "BOUGH_SECURITY_MIRROR": mirrors.security or "",
        **find_proxies(),
        **build.environment,
    }


def read_versions(work: Path) -> dict[str, str]:
    """Return name -> version of the packages of the build's architecture."""
    pairs = (line.split() for line in (work / "out/packages").read_text().splitlines())
    return {line[0]: line[1] for line in pairs}
