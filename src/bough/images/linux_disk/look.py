"""Look into a raw disk for a Linux. The disk is untrusted: reads are bounded, programs are jailed.

Nothing here raises an error for bad content. What cannot be read is told in a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bough.errors import InvalidInput
from bough.images.confined import Confinement
from bough.images.linux_disk.debugfs import open_debugfs
from bough.images.linux_disk.kernels import Kernel, read_kernel
from bough.images.linux_disk.magic import Kind
from bough.images.linux_disk.roots import Root, read_root
from bough.images.linux_disk.tree import Tree, TreeUnreadable
from bough.images.linux_disk.volumes import Volume, read_volumes

#: Volumes whose files are read. A hostile disk may have a hundred.
_MOST_TREES = 24


@dataclass(frozen=True)
class FoundRoot:
    """A Linux, its place, and its kernel; None: unknown."""

    volume: Volume
    root: Root
    kernel: Kernel | None = None


@dataclass(frozen=True)
class Look:
    """The content of a disk.

    Attributes:
        roots: the Linuxes in file systems that bough can read.
        chosen: the only Linux, or the requested one.
        unreadable: volume -> why its file system could not be read.
    """

    volumes: tuple[Volume, ...] = ()
    roots: tuple[FoundRoot, ...] = ()
    chosen: FoundRoot | None = None
    unreadable: tuple[tuple[Volume, str], ...] = ()

    @property
    def kernel(self) -> Kernel | None:
        """The kernel of the chosen Linux; None if unknown."""
        return self.chosen.kernel if self.chosen else None

    def of_kind(self, *kinds: Kind) -> list[Volume]:
        return [volume for volume in self.volumes if volume.kind in kinds]


async def look_into(disk: Path, confinement: Confinement, work: Path, wanted: str | None = None) -> Look:
    """Look into a raw disk that belongs to bough.

    Args:
        work: a directory for temporary files.
        wanted: name of the volume with the root, if the user chose one.

    Raises:
        InvalidInput: there is no volume `wanted`, or the volume has no Linux.
        HostLacks: debugfs is not installed.
    """
    with disk.open("rb") as stream:
        volumes = read_volumes(stream)
    if wanted is not None:
        _check_wanted(wanted, volumes)
    roots: list[FoundRoot] = []
    unreadable: list[tuple[Volume, str]] = []
    for volume in readable(volumes):
        try:
            async with open_debugfs(disk, volume.offset_bytes, confinement) as tree:
                root = await read_root(tree)
                if root is None:
                    continue
                kernel = await find_kernel(disk, volumes, volume, tree, confinement, work)
        except TreeUnreadable as error:
            unreadable.append((volume, str(error)))
            continue
        roots.append(FoundRoot(volume, root, kernel))
    chosen = _choose(roots, volumes, wanted)
    return Look(tuple(volumes), tuple(roots), chosen, tuple(unreadable))


def readable(volumes: Sequence[Volume]) -> list[Volume]:
    """Return the volumes that debugfs reads."""
    return [volume for volume in volumes if volume.kind == Kind.EXT][:_MOST_TREES]


def _check_wanted(wanted: str, volumes: Sequence[Volume]) -> None:
    if any(volume.name == wanted.partition(":")[0] for volume in volumes):
        return
    raise InvalidInput(
        f"the disk has no partition {wanted[:80]!r} with a file system",
        hint=f"--root takes one of: {_list(volumes)}" if volumes else "leave --root out",
    )


def _list(volumes: Sequence[Volume]) -> str:
    return ", ".join(f"{volume.name} ({volume.kind.value})" for volume in volumes[:20])


def _choose(roots: list[FoundRoot], volumes: list[Volume], wanted: str | None) -> FoundRoot | None:
    if wanted is None:
        return roots[0] if len(roots) == 1 else None
    chosen = next((found for found in roots if found.volume.name == wanted), None)
    volume = next(volume for volume in volumes if volume.name == wanted.partition(":")[0])
    if chosen is None and volume.kind == Kind.EXT:
        names = ", ".join(found.volume.name for found in roots)
        raise InvalidInput(
            f"{volume} of the disk has no Linux",
            hint=f"a Linux was found in: {names}" if names else "leave --root out",
        )
    return chosen


async def find_kernel(
    disk: Path, volumes: Sequence[Volume], own: Volume, root: Tree, confinement: Confinement, work: Path
) -> Kernel | None:
    """Read the kernel from the root in `own`, or from an ext file system of its own for /boot.

    Return None if they are unreadable.
    """
    try:
        kernel = await read_kernel(root, None, work, confinement)
        for volume in readable(volumes) if kernel.image is None else ():
            if volume != own:
                async with open_debugfs(disk, volume.offset_bytes, confinement) as boot:
                    found = await read_kernel(root, boot, work, confinement)
                if found.image is not None:
                    return found
    except TreeUnreadable:
        return None
    return kernel
