"""Prepare an imported disk: find its Linux, install the agent's starter, tell what a machine will lack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bough.errors import BoughError, HostLacks
from bough.images.confined import Confinement
from bough.images.linux_disk.ext import read_ext_state
from bough.images.linux_disk.facts import LinuxFacts, Note
from bough.images.linux_disk.guest_look import GuestLook, mountable
from bough.images.linux_disk.guest_parts import PartsOf, write_boot
from bough.images.linux_disk.installation import AgentOrigin, Outcome, install_agent
from bough.images.linux_disk.look import Look, look_into
from bough.images.linux_disk.magic import Kind
from bough.images.linux_disk.sentences import NO_AGENT
from bough.images.linux_disk.starter import starter_changes
from bough.images.linux_disk.tree import TreeUnreadable
from bough.progress import Progress, Report


@dataclass(frozen=True)
class Preparation:
    """How to prepare a disk.

    Attributes:
        installs: install the agent's starter, unless the disk has the agent.
        root: the volume with the root, if the user chose one.
        work: a directory for temporary files that the jail's user may enter, on the disk's file system.
        parts_of: provides a throw-away guest, for file systems that only a kernel can read; None: no guest.
    """

    installs: bool
    root: str | None
    confinement: Confinement
    work: Path
    parts_of: PartsOf | None = None


@dataclass(frozen=True)
class Prepared:
    """A prepared disk.

    Attributes:
        agent: origin of the guest's agent; None: no agent, or unknown.
        os, version: of the Linux; "" if unknown.
        is_spoiled: the installation failed in the middle. The disk must be made again.
    """

    agent: AgentOrigin | None = None
    os: str = ""
    version: str = ""
    linux: LinuxFacts | None = None
    notes: tuple[Note, ...] = ()
    is_spoiled: bool = False


async def prepare_disk(disk: Path, how: Preparation, report: Report) -> Prepared:
    """Look into a raw disk that belongs to bough, and install the agent's starter if wanted.

    Raises:
        InvalidInput: the user's choice of a root is wrong.
        HostLacks: a program is missing, and the user chose a root.
    """
    report(Progress("looking for a Linux on the disk"))
    try:
        look = await look_into(disk, how.confinement, how.work, how.root)
        guests, note = await _provide_guests(disk, look, how, report)
        if guests is not None:
            look, note = await _look_by_guest(guests, look, how.root)
        if how.installs and note is not None:
            return Prepared(notes=(note,))
        if how.installs:
            outcome = await install_agent(disk, look, starter_changes, how.confinement, how.work, guests)
        else:
            outcome = Outcome(look.chosen.root.agent if look.chosen else None)
    except HostLacks as error:
        if how.root is not None:
            raise
        text = f"bough cannot look into the disk: {error.message}. The agent is not installed: {NO_AGENT}"
        return Prepared(notes=(Note(text=text, hint=error.hint or ""),) if how.installs else ())
    facts = _describe(disk, look)
    root = look.chosen.root if look.chosen else None
    return Prepared(
        agent=outcome.agent,
        os=root.os if root else "",
        version=root.version if root else "",
        linux=facts,
        notes=outcome.notes,
        is_spoiled=outcome.is_spoiled,
    )


async def _provide_guests(
    disk: Path, look: Look, how: Preparation, report: Report
) -> tuple[GuestLook | None, Note | None]:
    """Return a way to start throw-away guests if the disk needs one, or a sentence why there is none."""
    if how.parts_of is None or not how.installs or look.chosen is not None or not mountable(look):
        return None, None
    if look.roots and how.root is None:
        return None, None  # two Linuxes in other file systems: the user must choose
    volume = mountable(look)[0]
    report(Progress(f"starting a throw-away guest that reads {volume} ({volume.kind.value})"))
    try:
        parts = await how.parts_of(report)
        boot = await write_boot(parts, how.confinement, how.work)
    except (BoughError, TreeUnreadable) as error:
        why = error.message if isinstance(error, BoughError) else str(error)
        what = f"{volume} ({volume.kind.value})"
        text = f"only a throw-away guest can read {what}, and none can be started: {why}"
        return None, Note(text=f"{text}. The agent is not installed: {NO_AGENT}")
    return GuestLook(disk, parts, boot, how.confinement, how.work), None


async def _look_by_guest(guests: GuestLook, look: Look, wanted: str | None) -> tuple[Look, Note | None]:
    try:
        return await guests.look_into(look, wanted), None
    except TreeUnreadable as error:
        volume = mountable(look)[0]
        return look, Note(text=f"{volume} ({volume.kind.value}) cannot be read: {error}. {NO_AGENT}")


def _describe(disk: Path, look: Look) -> LinuxFacts | None:
    if look.chosen is None:
        return None
    volume, root, kernel = look.chosen.volume, look.chosen.root, look.kernel
    with disk.open("rb") as stream:
        state = read_ext_state(stream, volume.offset_bytes) if volume.kind == Kind.EXT else None
    return LinuxFacts(
        root=volume.name,
        file_system=state.name if state else volume.kind.value,
        title=root.title,
        init=root.init,
        libc=root.libc,
        arch=root.arch,
        kernel=kernel.version if kernel else "",
        boot_loader=root.boot_loader,
        buses=kernel.buses if kernel else None,
        nics=kernel.nics if kernel else None,
        virtio_serial=kernel.has("virtio_console") if kernel else None,
    )
