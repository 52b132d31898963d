"""Sentences of an import about the Linux on a disk: one for each shortcoming, with a hint."""

from __future__ import annotations

from bough.images.linux_disk.facts import Note
from bough.images.linux_disk.look import Look
from bough.images.linux_disk.magic import Kind

#: The consequence, the same in each sentence.
NO_AGENT = "a machine from this image has console, screen and network, but no exec, cp and shell"
_BY_HAND = "see docs/images.md, 'Guests without the agent'"


def without_linux(look: Look) -> Note:
    """Tell why no root was found."""
    encrypted = look.of_kind(Kind.LUKS, Kind.BITLOCKER)
    if encrypted:
        names = " and ".join(f"{volume} ({volume.kind.value})" for volume in encrypted[:4])
        return Note(
            text=f"the disk is encrypted: {names}. The guest asks for the passphrase at each boot. "
            f"{_capital(NO_AGENT)}",
            hint="type the passphrase: bough console NAME",
        )
    if look.unreadable:
        volume, why = look.unreadable[0]
        return Note(text=f"{volume} cannot be read: {why}. {_capital(NO_AGENT)}", hint=_BY_HAND)
    locked = look.of_kind(Kind.SQUASHFS, Kind.EROFS)
    if locked:
        return Note(
            text=f"{locked[0]} is a read-only file system ({locked[0].kind.value}), "
            f"into which bough cannot install the agent: {NO_AGENT}",
            hint=_BY_HAND,
        )
    closed = look.of_kind(Kind.XFS, Kind.BTRFS, Kind.F2FS, Kind.SPREAD, Kind.RAID, Kind.BCACHE, Kind.ZFS)
    if closed:
        names = " and ".join(f"{volume} ({volume.kind.value})" for volume in closed[:4])
        return Note(text=f"bough cannot look into {names}: {NO_AGENT}", hint=_BY_HAND)
    return Note(
        text=f"no Linux was found on the disk: {NO_AGENT}",
        hint="if the guest has bough's agent, import the disk again with --agent",
    )


def several_linuxes(look: Look) -> Note:
    names = "; ".join(f"{found.root.title} in {found.volume}" for found in look.roots[:6])
    return Note(
        text=f"the disk has {len(look.roots)} Linuxes, and bough installed the agent in none: {names}",
        hint=f"choose one, and import the disk again: --root {look.roots[0].volume.name}",
    )


def not_installed(title: str, why: str, hint: str = _BY_HAND) -> Note:
    """Tell why the agent is not in a Linux that was found."""
    return Note(text=f"{title}: {why}. The agent is not installed: {NO_AGENT}", hint=hint)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
