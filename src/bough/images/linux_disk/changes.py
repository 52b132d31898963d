"""New files in a file system on a disk: written by debugfs without a mount, or by a throw-away guest.

debugfs writes the same bytes each time: all times are the time of the disk's last change.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bough.guest.install import GuestFile, GuestLink
from bough.images.linux_disk.debugfs import Debugfs
from bough.images.linux_disk.disk_guest import DiskGuest, GuestTree, Mount
from bough.images.linux_disk.tree import Entry, Tree, resolve
from bough.tasks import finish

#: The kernel and debugfs keep shorter links inside of the inode.
_MOST_TARGET = 59
#: The context of programs, for a guest with SELinux. Other files get the context of their directory.
_PROGRAMS = "/usr/bin/."


class ChangeFailed(Exception):
    """The files are not, or not all, in the file system. The text says why. The disk must not be used."""


@dataclass(frozen=True)
class NewDirectory:
    """A directory of mode 0755, owned by root, that may exist already."""

    path: str


#: An existing file or link at the place of a file or link is replaced.
Change = GuestFile | GuestLink | NewDirectory
Opener = Callable[[Path | None], AbstractAsyncContextManager[Debugfs]]


async def write_changes(opened: Opener, changes: Sequence[Change], *, time_s: int, work: Path) -> None:
    """Write the files and their missing directories, and read them back.

    Args:
        opened: opens the file system by debugfs, with a directory of new files or without.
        time_s: time of the new files, in seconds since 1970.
        work: a directory that the jail's user may enter, for the content of the files.

    Raises:
        ChangeFailed, TreeUnreadable
    """
    sources = work / f"files-{secrets.token_hex(4)}"
    try:
        await finish(asyncio.to_thread(_write_sources, sources, changes))
        async with opened(sources) as tree:
            plan = await _plan(tree, changes)
            labels = await _read_labels(tree, changes, plan)
            commands = plan.render(changes, sources, labels)
            await tree.change([f"set_current_time @{max(1, time_s)}", *commands])
    finally:
        await finish(asyncio.to_thread(shutil.rmtree, sources, ignore_errors=True))
    async with opened(None) as tree:
        await _verify(tree, changes, plan)


async def write_in_guest(guest: DiskGuest, mount: Mount, changes: Sequence[Change], *, time_s: int) -> None:
    """Write the files and their missing directories by a throw-away guest, and read them back.

    Raises:
        ChangeFailed, TreeUnreadable
    """
    await guest.mount(mount.number, mount.kind, writes=True, subvolume=mount.subvolume)
    tree = GuestTree(guest, mount.number)
    plan = await _plan(tree, changes)
    labels = await _read_labels(tree, changes, plan)
    for place in plan.made:
        await tree.write({"path": place}, labels.get(place), time_s)
    for change in changes:
        place = plan.place(change.path)
        await tree.write({**_render_change(change), "path": place}, labels.get(place), time_s)
    await guest.unmount(mount.number)
    await guest.mount(mount.number, mount.kind, writes=False, subvolume=mount.subvolume)
    await _verify(tree, changes, plan)
    await guest.unmount(mount.number)


def _render_change(change: Change) -> dict[str, Any]:
    if isinstance(change, GuestFile):
        return {"content": base64.b64encode(change.content).decode(), "mode": change.mode}
    return {"target": change.target} if isinstance(change, GuestLink) else {}


@dataclass
class _Plan:
    """The places of the changes.

    Attributes:
        places: path of a directory -> its place without a link at the end.
        made: places of the directories to make, in this order.
        removed: places of the files to remove.
    """

    places: dict[str, str] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def place(self, path: str) -> str:
        parent, _, name = path.rpartition("/")
        return f"{self.places[parent]}/{name}"

    def render(self, changes: Sequence[Change], sources: Path, labels: dict[str, str]) -> Iterator[str]:
        """Yield debugfs's commands. `write` takes no directory, so `cd` goes before."""
        yield from (f"rm {place}" for place in self.removed)
        yield from (f"mkdir {place}" for place in self.made)
        for number, change in enumerate(changes):
            directory, _, name = self.place(change.path).rpartition("/")
            if isinstance(change, GuestFile):
                yield f"cd {directory}/."
                yield f'write "{sources / str(number)}" {name}'
                yield f"sif {name} mode 0100{change.mode:03o}"
                yield from (f"sif {name} {owner} 0" for owner in ("uid", "gid"))
            elif isinstance(change, GuestLink):
                yield f"symlink {directory}/{name} {change.target}"
        yield from (f"ea_set {place} security.selinux {label}" for place, label in labels.items())


async def _plan(tree: Tree, changes: Sequence[Change]) -> _Plan:
    parents = {path for change in changes for path in _directories_of(change)}
    found = await resolve(tree, sorted(parents - {""}))
    plan = _Plan(places={"": ""})
    for path in sorted(parents - {""}):  # a directory comes before its content
        place, entry = found.get(path, (plan.place(path), None))
        if entry is None:
            plan.made.append(place)
        elif entry.kind != "directory":
            raise ChangeFailed(f"{path} is not a directory")
        plan.places[path] = place
    files = [change for change in changes if not isinstance(change, NewDirectory)]
    existing = await tree.look([plan.place(change.path) for change in files])
    for change in files:
        entry = existing.get(plan.place(change.path))
        if entry is not None and entry.kind not in ("regular", "symlink"):
            raise ChangeFailed(f"{change.path} is in the way: it is neither a file nor a link")
        if entry is not None:
            plan.removed.append(plan.place(change.path))
        if isinstance(change, GuestLink) and len(change.target) > _MOST_TARGET:
            raise ValueError(f"the link {change.path} is too long")
    return plan


def _directories_of(change: Change) -> Iterator[str]:
    path = change.path if isinstance(change, NewDirectory) else change.path.rpartition("/")[0]
    while path:
        yield path
        path = path.rpartition("/")[0]


async def _read_labels(tree: Tree, changes: Sequence[Change], plan: _Plan) -> dict[str, str]:
    """Return the SELinux context for each new file by its place; nothing for a guest without SELinux.

    A file without a context could not be used by the guest's systemd.
    """
    places = {plan.place(change.path): change for change in changes}
    directories = [place.rpartition("/")[0] for place in (*places, *plan.made)]
    above = {place: _existing(place, plan) for place in directories}
    known = await tree.read_security_labels([_PROGRAMS, *(f"{place}/." for place in set(above.values()))])
    if _PROGRAMS not in known:
        return {}
    labels = {}
    for place in (*plan.made, *places):
        change = places.get(place)
        is_program = isinstance(change, GuestFile) and change.mode & 0o111
        of = _PROGRAMS if is_program else f"{above[place.rpartition('/')[0]]}/."
        if of in known:
            labels[place] = known[of]
    return labels


def _existing(place: str, plan: _Plan) -> str:
    """Return the nearest directory above that exists already."""
    while place in plan.made:
        place = place.rpartition("/")[0]
    return place


def _write_sources(sources: Path, changes: Sequence[Change]) -> None:
    sources.mkdir(mode=0o711)
    for number, change in enumerate(changes):
        if isinstance(change, GuestFile):
            path = sources / str(number)
            path.write_bytes(change.content)
            path.chmod(0o444)


async def _verify(tree: Tree, changes: Sequence[Change], plan: _Plan) -> None:
    """Read everything back.

    Raises:
        ChangeFailed
    """
    places = {change.path: plan.place(change.path) for change in changes}
    entries = await tree.look(list(places.values()))
    files = [change for change in changes if isinstance(change, GuestFile)]
    content = await tree.read([places[file.path] for file in files], sum(len(file.content) for file in files))
    for change in changes:
        entry = entries.get(places[change.path])
        if entry is None or not _is_as_wanted(change, entry, content.get(places[change.path], b"")):
            raise ChangeFailed(f"{change.path} could not be written")


def _is_as_wanted(change: Change, entry: Entry, content: bytes) -> bool:
    if isinstance(change, GuestFile):
        return entry.kind == "regular" and entry.mode == change.mode and content == change.content
    if isinstance(change, GuestLink):
        return entry.kind == "symlink" and entry.target == change.target
    return entry.kind == "directory"
