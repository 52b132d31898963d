"""Facts about the Linux on an image's disk. Found at the import, and not trusted."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Note(BaseModel):
    """A sentence for the user about an imported disk.

    Attributes:
        hint: what to type; "" if there is nothing to do.
    """

    model_config = ConfigDict(frozen=True)
    text: str = Field(max_length=800)
    hint: str = Field(default="", max_length=400)

    def __str__(self) -> str:
        return f"{self.text}; {self.hint}" if self.hint else self.text


class LinuxFacts(BaseModel):
    """The Linux on a disk, as found at the import.

    Attributes:
        root: the volume with the root: a partition's number, "group/volume" of LVM, or "disk".
        file_system: of the root: ext4, xfs...
        init: systemd, openrc, sysvinit, busybox, runit, s6 or unknown.
        libc: glibc, musl, uclibc, static or unknown.
        kernel: the version; "" if unknown.
        buses: buses of a disk from which the kernel can mount its root; None if unknown.
        nics: models of network cards that the kernel drives; None if unknown.
        virtio_serial: the kernel has a driver for the agent's port; None if unknown.
    """

    model_config = ConfigDict(frozen=True)
    root: str
    file_system: str
    title: str
    init: str
    libc: str
    arch: str | None = None
    kernel: str = ""
    boot_loader: str | None = None
    buses: tuple[str, ...] | None = None
    nics: tuple[str, ...] | None = None
    virtio_serial: bool | None = None
