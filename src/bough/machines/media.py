"""Parts of a machine beside the disks: CD, floppy, screen. Chosen once, when the machine is created."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bough.errors import InvalidSpec
from bough.images.store import ImageManifest
from bough.paths import Home
from bough.qemu.plan import MediumPlan
from bough.spec import DiskSpec, MachineSpec

_BOOT_ORDER = {
    "auto": ("disk", "cdrom", "floppy"),
    "disk": ("disk", "cdrom", "floppy"),
    "cdrom": ("cdrom", "disk", "floppy"),
    "floppy": ("floppy", "disk", "cdrom"),
}


class Media(BaseModel):
    """The media of one machine.

    Attributes:
        root: content of the first disk: an overlay on the image, or empty. "none": no first disk, because the
            image is a CD or a floppy and no disk was requested.
        cdrom, floppy: digests of images.
        display: the machine has a screen.
        seed: the machine has a seed disk, from which cloud-init reads its settings.
        instance: the machine's id for cloud-init. A fork keeps its parent's id, so that cloud-init does not
            configure the guest again.
        lived: the image is the disk of another machine, and contains that machine's identity.
        disks: digests of images below the first further disks.
    """

    model_config = ConfigDict(extra="allow")
    root: Literal["image", "blank", "none"] = "image"
    cdrom: str | None = None
    floppy: str | None = None
    display: bool = False
    seed: bool = False
    instance: str | None = None
    lived: bool = False
    disks: list[str] = Field(default_factory=list)

    @property
    def digests(self) -> list[str]:
        return [*(digest for digest in (self.cdrom, self.floppy) if digest is not None), *self.disks]


def resolve_media(spec: MachineSpec, image: ImageManifest, find: Callable[[str], ImageManifest]) -> Media:
    """Choose the media of a new machine.

    Args:
        find: returns an image by its name.

    Raises:
        InvalidSpec: an image does not fit the drive, or cannot read user data.
        NotFound: no such image.
    """
    inserted: dict[str, str] = {} if image.media == "disk" else {image.media: image.digest}
    for kind in ("cdrom", "floppy"):
        reference = getattr(spec, kind)
        if reference is None:
            continue
        medium = find(reference)
        if medium.media != kind:
            message = f"{reference} is a {medium.media}, not a {kind}"
            problem = {
                "place": kind,
                "message": message,
                "hint": "to import an ISO as a cdrom: bough image import",
            }
            raise InvalidSpec(f"{kind}: {message}", problems=[problem])
        inserted[kind] = medium.digest
    if spec.user_data is not None and not image.cloud_init:
        message = f"{spec.image} is not known to run cloud-init, which reads it"
        hint = "if it does, import it with --cloud-init; otherwise use files, users, commands"
        problem = {"place": "user_data", "message": message, "hint": hint}
        raise InvalidSpec(f"user_data: {message}", hint=hint, problems=[problem])
    root: Literal["image", "blank", "none"] = "image"
    if image.media != "disk":
        root = "blank" if spec.disk else "none"
    display = not (image.agent or image.cloud_init) if spec.display is None else spec.display
    return Media(
        root=root,
        display=display,
        seed=image.cloud_init,
        lived=image.lived,
        disks=list(image.disks),
        cdrom=inserted.get("cdrom"),
        floppy=inserted.get("floppy"),
    )


def with_image_disks(
    spec: MachineSpec, image: ImageManifest, find: Callable[[str], ImageManifest]
) -> MachineSpec:
    """Return the spec with the further disks of the image before the spec's own disks."""
    if not image.disks:
        return spec
    own = [DiskSpec(size=find(digest).size_bytes, serial=None) for digest in image.disks]
    return spec.model_copy(update={"disks": (*own, *spec.disks)})


def boot_index(spec: MachineSpec, kind: str) -> int:
    """Return QEMU's bootindex of the first disk, the CD or the floppy. Further disks come between."""
    return 1 + 100 * _BOOT_ORDER[spec.boot].index(kind)


def plan_media(media: Media, spec: MachineSpec, home: Home, *, disk_bus: str) -> tuple[MediumPlan, ...]:
    """Return the media of the next start. The CD is beside the disks if they are on IDE."""
    kinds: tuple[Literal["cdrom", "floppy"], ...] = ("cdrom", "floppy")
    return tuple(
        MediumPlan(
            kind,
            str(home.image(digest).disk),
            boot_index(spec, kind),
            on_ide=kind == "cdrom" and disk_bus == "ide",
        )
        for kind in kinds
        if (digest := getattr(media, kind)) is not None
    )
