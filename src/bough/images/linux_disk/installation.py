"""Install the starter of the agent into the Linux on a raw disk, from outside: no guest runs for it.

The disk is bough's own copy. Each refusal leaves the disk unchanged, and says in one sentence why.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from bough.errors import HostLacks
from bough.guest.install import GuestFile
from bough.images.agent_disk.recipe import agent_disk_recipe
from bough.images.confined import Confinement
from bough.images.linux_disk.changes import Change, ChangeFailed, write_changes
from bough.images.linux_disk.debugfs import Debugfs, open_debugfs
from bough.images.linux_disk.ext import ExtState, read_ext_state
from bough.images.linux_disk.facts import Note
from bough.images.linux_disk.guest_look import GuestLook
from bough.images.linux_disk.journal import replay_journal
from bough.images.linux_disk.look import FoundRoot, Look
from bough.images.linux_disk.magic import Kind
from bough.images.linux_disk.sentences import not_installed, several_linuxes, without_linux
from bough.images.linux_disk.tree import TreeUnreadable
from bough.units import KIB, format_size

#: Space in a root that stays free, for the first boot.
_SPARE_BYTES = 256 * KIB
_SPARE_INODES = 16
#: Time of files that a guest writes, in seconds since 1970. The kernel adds the present time in any case.
_GUEST_TIME_S = 1

AgentOrigin = Literal["installed", "disk"]


class StarterOf(Protocol):
    """Returns the files that start the agent in a guest."""

    def __call__(self, init: str, inittab: bytes | None) -> Sequence[Change] | None:
        """Return the files for an init system; None for an unknown one.

        Args:
            inittab: content of the guest's /etc/inittab; None if missing.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """The result of an installation.

    Attributes:
        agent: the origin of the guest's agent; None: the guest has no agent.
        notes: sentences for the user.
        is_spoiled: the installation failed in the middle. The disk must not be used.
    """

    agent: AgentOrigin | None = None
    notes: tuple[Note, ...] = ()
    is_spoiled: bool = False


class Refused(Exception):
    """The agent cannot be installed. The disk is unchanged. The text says why."""


async def install_agent(
    disk: Path,
    look: Look,
    starter_of: StarterOf,
    confinement: Confinement,
    work: Path,
    guests: GuestLook | None = None,
) -> Outcome:
    """Install the agent's starter into the chosen Linux of a disk, unless the Linux has the agent.

    Args:
        work: a directory that the jail's user may enter, for temporary files.
        guests: writes to file systems that debugfs cannot write.
    """
    if look.chosen is None:
        note = several_linuxes(look) if len(look.roots) > 1 else without_linux(look)
        return Outcome(notes=(note,))
    if look.chosen.root.agent == "installed":
        return Outcome("installed")
    writing = _Writing(disk, look, look.chosen, confinement, work, guests)
    try:
        changes = _plan(look, look.chosen, starter_of)
        await (writing.outside(changes) if look.chosen.volume.kind == Kind.EXT else writing.by_guest(changes))
    except Refused as refusal:
        if look.chosen.root.agent is not None:  # an earlier import has installed the starter
            return Outcome(look.chosen.root.agent)
        return Outcome(notes=(not_installed(writing.place, str(refusal)),))
    except (ChangeFailed, TreeUnreadable) as error:
        return Outcome(notes=(not_installed(writing.place, str(error)),), is_spoiled=True)
    return Outcome("disk")


@dataclass(frozen=True)
class _Writing:
    """Writes the files into the chosen Linux. Raises Refused before any change; see write_changes."""

    disk: Path
    look: Look
    found: FoundRoot
    confinement: Confinement
    work: Path
    guests: GuestLook | None

    @property
    def place(self) -> str:
        return f"{self.found.root.title} in {self.found.volume}"

    async def outside(self, changes: Sequence[Change]) -> None:
        """Write to an ext file system by debugfs. Replay a journal before, as the guest's kernel would."""
        volume = self.found.volume
        state = _check_state(_read_state(self.disk, self.found), changes)
        if state.needs_replay:
            try:
                await replay_journal(self.disk, volume, state.written_s, self.confinement, self.work)
            except TreeUnreadable as error:
                raise Refused(str(error)) from None
            state = _check_state(_read_state(self.disk, self.found), changes)

        def opened(sources: Path | None) -> AbstractAsyncContextManager[Debugfs]:
            return open_debugfs(self.disk, volume.offset_bytes, self.confinement, sources)

        await write_changes(opened, changes, time_s=state.written_s, work=self.work)

    async def by_guest(self, changes: Sequence[Change]) -> None:
        if self.guests is None:
            raise Refused(f"bough cannot write to its {self.found.volume.kind.value} from outside")
        await self.guests.write(self.found.volume, list(changes), time_s=_GUEST_TIME_S)


def _plan(look: Look, found: FoundRoot, starter_of: StarterOf) -> Sequence[Change]:
    root, kernel = found.root, look.kernel
    if look.of_kind(Kind.HIBERNATED):
        raise Refused("the guest is hibernated, and would not see a change of its disk")
    if root.has_own_usr:
        raise Refused("its /usr is another file system, which bough does not change")
    changes = starter_of(root.init, root.inittab)
    if changes is None:
        named = "its init system is unknown" if root.init == "unknown" else f"its init system is {root.init}"
        raise Refused(f"{named}, and bough knows systemd, OpenRC, sysvinit, busybox and runit")
    try:
        if root.arch is not None:
            agent_disk_recipe(root.arch)
    except HostLacks as error:
        raise Refused(error.message) from None
    if kernel is not None and kernel.has("squashfs") is False:
        raise Refused("its kernel cannot read the agent disk, because it has no driver for squashfs")
    return changes


def _read_state(disk: Path, found: FoundRoot) -> ExtState:
    with disk.open("rb") as stream:
        state = read_ext_state(stream, found.volume.offset_bytes)
    if state is None:
        raise Refused("its superblock is damaged")
    if state.size_bytes > found.volume.size_bytes:
        raise Refused("its file system is larger than its partition")
    return state


def _check_state(state: ExtState, changes: Sequence[Change]) -> ExtState:
    if state.is_read_only:
        raise Refused(f"its {state.name} is marked read-only")
    if state.has_errors:
        raise Refused(f"its {state.name} has errors, which e2fsck must repair in the guest")
    if state.has_outer_journal:
        raise Refused(f"the journal of its {state.name} is on another disk")
    if not state.needs_replay:  # otherwise the superblock tells nothing about the free space
        _check_room(state, changes)
    return state


def _check_room(state: ExtState, changes: Sequence[Change]) -> None:
    files = [change for change in changes if isinstance(change, GuestFile)]
    needed = _SPARE_BYTES + sum(len(file.content) + 2 * state.block_bytes for file in files)
    if state.free_bytes < needed:
        raise Refused(f"its {state.name} is full: {format_size(state.free_bytes)} are free")
    if state.free_inodes < _SPARE_INODES + 2 * len(changes):
        raise Refused(f"its {state.name} is full: {state.free_inodes} more files are possible")
