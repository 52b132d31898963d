"""Build an agent disk in namespaces of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bough.errors import BuildFailed
from bough.guest.agent import AGENT_VERSION
from bough.guest.install import agent_modules
from bough.images.agent_disk.recipe import INSIDE, MOST_BYTES, AgentDiskRecipe
from bough.images.apt import Mirrors
from bough.images.packages.unpacking import PackageBuild, build_from_packages, read_versions
from bough.progress import Report
from bough.units import MIB, format_size

#: The packages, unpacked, for two processors.
_NEEDED_BYTES = 256 * MIB


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
    build = PackageBuild(
        made="the agent disk",
        scripts=INSIDE,
        debian=recipe.debian,
        suite=recipe.suite,
        packages=recipe.packages,
        tools=recipe.python_packages,
        needed_bytes=_NEEDED_BYTES,
        environment={
            "BOUGH_PYTHON": recipe.python,
            "BOUGH_VERSION": f"agent {AGENT_VERSION} {recipe.key()}",
        },
    )

    def fill(work: Path) -> None:
        _fill(work, recipe)

    return await build_from_packages(build, incoming, report, mirrors, fill=fill, take=_take)


def _fill(work: Path, recipe: AgentDiskRecipe) -> None:
    """Add the agent's modules, and lists of words for assemble.py."""
    for name, content in agent_modules().items():
        path = work / "agent" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (work / "agent/modules").write_text("\n".join(recipe.modules))
    (work / "agent/tools").write_text("\n".join(recipe.tools))


def _take(work: Path) -> BuiltDisk:
    content = (work / "out/agent.squashfs").read_bytes()
    if len(content) > MOST_BYTES:
        raise BuildFailed(
            f"the agent disk has {format_size(len(content))}, more than {format_size(MOST_BYTES)}",
            image="the agent disk",
            step="writing the disk",
        )
    return BuiltDisk(content, read_versions(work))
