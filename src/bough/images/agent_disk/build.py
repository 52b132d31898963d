"""Build an agent disk in namespaces of its own."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from bough.errors import BuildFailed
from bough.guest.agent import AGENT_VERSION
from bough.guest.install import agent_modules
from bough.images.agent_disk.recipe import INSIDE, MOST_BYTES, AgentDiskRecipe
from bough.images.apt import Mirrors
from bough.images.bootstrap import check_programs, check_subordinate_ids, find_proxies, remove_build
from bough.images.build_watch import BuildWatch
from bough.images.namespace import start_inside
from bough.images.platforms import PLATFORMS
from bough.images.recipes import SCRIPTS
from bough.progress import Progress, Report
from bough.storage import check_space, no_space_is_told
from bough.tasks import finish
from bough.units import MIB, format_size

_PROGRAMS = {"mmdebstrap": "mmdebstrap", "dpkg-deb": "dpkg", "mksquashfs": "squashfs-tools"}
#: The packages, unpacked, for two processors.
_NEEDED_BYTES = 256 * MIB
#: See bough.images.apt.find_mirrors.
_MIRROR = "BOUGH_MIRROR in the service's environment, or `mirror` in settings.toml"
#: Scripts of an image's build that this build needs, too.
_SHARED = ("enter.sh", "mirrors.awk")


@dataclass(frozen=True)
class BuiltDisk:
    """An agent disk.

    Attributes:
        packages: name -> version of the packages it was made from.
    """

    content: bytes
    packages: dict[str, str]


async def build_agent_disk(
    recipe: AgentDiskRecipe, incoming: Path, report: Report, mirrors: Mirrors
) -> BuiltDisk:
    """Build the agent disk of a recipe. The same packages and the same mksquashfs give the same bytes.

    Nothing is left below `incoming`. Cancelling kills all processes of the build.

    Raises:
        HostLacks: a program is missing.
        BuildFailed, NoSpace
    """
    check_programs(_PROGRAMS, "the agent disk")
    check_subordinate_ids()
    check_space(incoming, _NEEDED_BYTES, "the agent disk")
    work = incoming / f"agent-disk-{secrets.token_hex(6)}"
    work.mkdir(mode=0o711)
    try:
        with no_space_is_told("the agent disk", incoming):
            await finish(asyncio.to_thread(_prepare, work, recipe))
            report(Progress("building the agent disk"))
            process = await start_inside(work, ("sh", "./build.sh"), _environment(recipe, mirrors))
            watch = BuildWatch(
                "the agent disk", report, noun="", needed=format_size(_NEEDED_BYTES), mirror=_MIRROR
            )
            await watch.follow(process, work)
            return _read(work / "out")
    finally:
        await finish(asyncio.to_thread(remove_build, work))


def _prepare(work: Path, recipe: AgentDiskRecipe) -> None:
    """Fill `work`: the scripts, the agent's modules, and lists of words for assemble.py."""
    for path in INSIDE.iterdir():
        if path.is_file():
            shutil.copyfile(path, work / path.name)
    for name in _SHARED:
        shutil.copyfile(SCRIPTS / name, work / name)
    for name, content in agent_modules().items():
        path = work / "agent" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (work / "agent/modules").write_text("\n".join(recipe.modules))
    (work / "agent/tools").write_text("\n".join(recipe.tools))
    (work / "out").mkdir()
    for path in work.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    # For our files, subordinate ids are "others". No other user can enter incoming/<random name>.
    for path in (work, work / "out"):
        path.chmod(0o777)


def _environment(recipe: AgentDiskRecipe, mirrors: Mirrors) -> dict[str, str]:
    native = PLATFORMS[os.uname().machine].debian
    arches = dict.fromkeys((recipe.debian, native))
    return {
        "BOUGH_ARCH": recipe.debian,
        "BOUGH_NATIVE": native,
        "BOUGH_ARCHES": " ".join(arches),
        "BOUGH_SUITE": recipe.suite,
        "BOUGH_PYTHON": recipe.python,
        "BOUGH_PACKAGES": " ".join(recipe.packages),
        "BOUGH_COMPILER": " ".join(recipe.python_packages),
        "BOUGH_VERSION": f"agent {AGENT_VERSION} {recipe.key()}",
        "BOUGH_MIRROR": mirrors.main or "",
        "BOUGH_SECURITY_MIRROR": mirrors.security or "",
        **find_proxies(),
    }


def _read(out: Path) -> BuiltDisk:
    content = (out / "agent.squashfs").read_bytes()
    if len(content) > MOST_BYTES:
        raise BuildFailed(
            f"the agent disk has {format_size(len(content))}, more than {format_size(MOST_BYTES)}",
            image="the agent disk",
            step="writing the disk",
        )
    pairs = (line.split() for line in (out / "packages").read_text().splitlines())
    return BuiltDisk(content, {line[0]: line[1] for line in pairs})
