"""Prepare an imported disk: find its Linux, install the agent's starter, tell what a machine will lack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bough.errors import HostLacks
from bough.images.confined import Confinement
from bough.images.linux_disk.ext import read_ext_state
from bough.images.linux_disk.facts import LinuxFacts, Note
from bough.images.linux_disk.installation import AgentOrigin, Outcome, install_agent
from bough.images.linux_disk.look import Look, look_into
from bough.images.linux_disk.magic import Kind
from bough.images.linux_disk.sentences import NO_AGENT
from bough.images.linux_disk.starter import starter_changes
from bough.progress import Progress, Report


@dataclass(frozen=True)
class Preparation:
    """How to prepare a disk.

    Attributes:
        installs: install the agent's starter, unless the disk has the agent.
        root: the volume with the root, if the user chose one.
        work: a directory for temporary files that the jail's user may enter, on the disk's file system.
    """

    installs: bool
    root: str | None
    confinement: Confinement
    work: Path


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
        if how.installs:
            outcome = await install_agent(disk, look, starter_changes, how.confinement, how.work)
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
