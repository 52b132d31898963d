"""What stands in a machine beside its disks: a CD, a floppy, a screen. Decided once, when it is created."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from bough.errors import InvalidSpec
from bough.images.store import ImageManifest
from bough.paths import Home
from bough.qemu.plan import DiskPlan, MediumPlan
from bough.spec import DiskSpec, MachineSpec

if TYPE_CHECKING:
    from bough.machines.record import MachineRecord

SEED = "seed.iso"
_BOOT_ORDER = {
    "auto": ("disk", "cdrom", "floppy"),
    "disk": ("disk", "cdrom", "floppy"),
    "cdrom": ("cdrom", "disk", "floppy"),
    "floppy": ("floppy", "disk", "cdrom"),
}


class Media(BaseModel):
    """Attributes:
    root: what the first disk is: an overlay on the image, empty, or not there, where the image is a CD
        or a floppy and no disk was asked for.
    cdrom, floppy: digests of images.
    seed: it tells cloud-init who the machine is.
    instance: what cloud-init knows the machine by. A fork keeps its parent's: cloud-init has configured it
        once, and does not do so again.
    lived: its image is the disk of another machine, whose identity is on it.
    disks: digests of images that the first further disks are overlays on.
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
    """Args:
        find: an image by its name.

    Raises:
        InvalidSpec: an image that is no CD is to be in the drive; NotFound.
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
                "hint": "bough image import takes an ISO as a cdrom",
            }
            raise InvalidSpec(f"{kind}: {message}", problems=[problem])
        inserted[kind] = medium.digest
    if spec.user_data is not None and not image.cloud_init:
        message = f"{spec.image} is not known to run cloud-init, which would read it"
        hint = "if it does, import it with --cloud-init; if not: files, users, commands"
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
    """The spec of a machine that has the further disks of its image before those that it asks for."""
    if not image.disks:
        return spec
    own = [DiskSpec(size=find(digest).size_bytes, serial=None) for digest in image.disks]
    return spec.model_copy(update={"disks": (*own, *spec.disks)})


def create_seed(directory: Path, record: MachineRecord) -> None:
    """The NoCloud seed of a machine whose image runs cloud-init. Blocking."""
    from bough.images.seed import (
        NO_USER_DATA,
        render_agent_hook,
        render_meta_data,
        render_network,
        write_seed,
    )

    spec = record.spec
    texts = {
        "meta-data": render_meta_data(record.media.instance or record.id, record.hostname, spec.ssh_keys),
        "user-data": spec.user_data or NO_USER_DATA,
        "vendor-data": render_agent_hook(),
        "network-config": render_network(record.hardware.mac),
    }
    write_seed(directory / SEED, texts)


def renew_seed(directory: Path, record: MachineRecord) -> None:
    """Put the name and the network card of a fork into the copy of its parent's seed. Blocking.

    The fork's memory knows the device with its size: a seed that would have another size stays as it is. So
    does the seed of a machine of an earlier bough, whose instance is not known.
    """
    seed = directory / SEED
    if record.media.instance is None or not seed.is_file():
        return
    fresh = directory / "fresh"
    fresh.mkdir(mode=0o700)
    try:
        create_seed(fresh, record)
        if (fresh / SEED).stat().st_size == seed.stat().st_size:
            (fresh / SEED).replace(seed)
    finally:
        shutil.rmtree(fresh)


def plan_seed(media: Media, disks: Path) -> tuple[DiskPlan, ...]:
    if not media.seed:
        return ()
    return (DiskPlan("seed", str(disks / SEED), "cidata", format="raw", read_only=True),)


def boot_index(spec: MachineSpec, kind: str) -> int:
    """Of the first disk, the CD, the floppy: where QEMU's bootindex begins; further disks come between."""
    return 1 + 100 * _BOOT_ORDER[spec.boot].index(kind)


def plan_media(media: Media, spec: MachineSpec, home: Home) -> tuple[MediumPlan, ...]:
    kinds: tuple[Literal["cdrom", "floppy"], ...] = ("cdrom", "floppy")
    return tuple(
        MediumPlan(kind, str(home.image(digest).disk), boot_index(spec, kind))
        for kind in kinds
        if (digest := getattr(media, kind)) is not None
    )
