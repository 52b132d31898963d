"""Look for a Linux in file systems that only a kernel reads (XFS, btrfs, F2FS), by a throw-away guest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bough.errors import InvalidInput
from bough.images.confined import Confinement
from bough.images.linux_disk.changes import Change, write_in_guest
from bough.images.linux_disk.disk_guest import MOUNTABLE, DiskGuest, GuestTree, Mount, start_disk_guest
from bough.images.linux_disk.guest_parts import Boot, GuestParts
from bough.images.linux_disk.look import FoundRoot, Look, find_kernel
from bough.images.linux_disk.magic import Kind
from bough.images.linux_disk.roots import Root, read_root
from bough.images.linux_disk.tree import TreeUnreadable
from bough.images.linux_disk.volumes import Volume

_MOST_VOLUMES = 8
_MOST_SUBVOLUMES = 16


def mountable(look: Look) -> list[Volume]:
    """Return the volumes that the guest can mount."""
    return look.of_kind(*MOUNTABLE)[:_MOST_VOLUMES]


@dataclass(frozen=True)
class GuestLook:
    """Looks into a raw disk that belongs to bough, and writes to it, by throw-away guests.

    Attributes:
        work: a directory for temporary files.
    """

    disk: Path
    parts: GuestParts
    boot: Boot
    confinement: Confinement
    work: Path

    async def look_into(self, look: Look, wanted: str | None) -> Look:
        """Add the Linuxes in the mountable volumes.

        Raises:
            InvalidInput: the volume `wanted` has no Linux.
            TreeUnreadable: the guest does not start.
        """
        volumes = mountable(look)
        async with self._guest(volumes, writes=False) as guest:
            found = list(look.roots)
            unreadable = list(look.unreadable)
            for number, volume in enumerate(volumes):
                try:
                    found += await _find_roots(guest, number, volume)
                except TreeUnreadable as error:
                    unreadable.append((volume, str(error)))
            looked = replace(look, roots=tuple(found), unreadable=tuple(unreadable))
            chosen = _choose(found, wanted)
            if chosen is not None and chosen.volume.kind in MOUNTABLE:
                chosen = await self._with_kernel(guest, volumes, looked, chosen)
            return replace(looked, chosen=chosen)

    async def _with_kernel(
        self, guest: DiskGuest, volumes: list[Volume], look: Look, found: FoundRoot
    ) -> FoundRoot:
        mount = mount_of(volumes, found.volume)
        try:
            await guest.mount(mount.number, mount.kind, writes=False, subvolume=mount.subvolume)
        except TreeUnreadable:
            return found
        tree = GuestTree(guest, mount.number)
        kernel = await find_kernel(self.disk, look.volumes, found.volume, tree, self.confinement, self.work)
        return replace(found, kernel=kernel)

    async def write(self, volume: Volume, changes: list[Change], *, time_s: int) -> None:
        """Write files to a volume.

        Raises:
            ChangeFailed, TreeUnreadable: the disk must not be used.
        """
        async with self._guest([volume], writes=True) as guest:
            await write_in_guest(guest, mount_of([volume], volume), changes, time_s=time_s)

    @asynccontextmanager
    async def _guest(self, volumes: list[Volume], *, writes: bool) -> AsyncIterator[DiskGuest]:
        async with start_disk_guest(
            self.disk, volumes, self.parts, self.confinement, self.boot, writes=writes
        ) as guest:
            yield guest


def mount_of(volumes: list[Volume], volume: Volume) -> Mount:
    """Return how to mount a volume or its subvolume."""
    offsets = [each.offset_bytes for each in volumes]
    return Mount(offsets.index(volume.offset_bytes), volume.kind, volume.subvolume)


async def _find_roots(guest: DiskGuest, number: int, volume: Volume) -> list[FoundRoot]:
    """Return the Linux of a volume, or those in the subvolumes at the top of a btrfs."""
    root = await _read_root(guest, Mount(number, volume.kind))
    if root is not None:
        return [FoundRoot(volume, root)]
    if volume.kind != Kind.BTRFS:
        return []
    names = await guest.mount(number, volume.kind, writes=False, subvolume="")
    await guest.unmount(number)
    found = []
    for name in names[:_MOST_SUBVOLUMES]:
        root = await _read_root(guest, Mount(number, volume.kind, name))
        if root is not None:
            named = replace(volume, name=f"{volume.name}:{name}", subvolume=name)
            found.append(FoundRoot(named, root))
    return found


async def _read_root(guest: DiskGuest, mount: Mount) -> Root | None:
    await guest.mount(mount.number, mount.kind, writes=False, subvolume=mount.subvolume)
    try:
        return await read_root(GuestTree(guest, mount.number))
    finally:
        await guest.unmount(mount.number)


def _choose(roots: list[FoundRoot], wanted: str | None) -> FoundRoot | None:
    if wanted is None:
        return roots[0] if len(roots) == 1 else None
    fitting = [found for found in roots if wanted in (found.volume.name, found.volume.name.partition(":")[0])]
    if not fitting:
        names = ", ".join(found.volume.name for found in roots)
        raise InvalidInput(
            f"--root {wanted[:80]}: there is no Linux",
            hint=f"a Linux was found in: {names}" if names else "leave --root out",
        )
    return fitting[0] if len(fitting) == 1 else None
