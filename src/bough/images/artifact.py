"""An image as an artifact of a registry: the parts to push, and the checks of what was pulled.

The artifact has the disk of the image and the disks of its further images. The digest of each image covers
its disk, so a registry cannot exchange a disk. The registry chooses all other words, which are checked here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bough.artifacts.content import read_data
from bough.artifacts.document import ArtifactManifest, Description
from bough.artifacts.reading import read_pieces
from bough.artifacts.writing import WholePart
from bough.errors import BadImage, BoughError
from bough.images.confined import Confinement
from bough.images.contents import inspect_contents
from bough.images.convert import check_space
from bough.images.disk import digest_image
from bough.images.linux_disk.facts import LinuxFacts, Note
from bough.images.store import ImageManifest, ImageStore
from bough.progress import Progress, Report
from bough.qemu.arch import ARCHITECTURES
from bough.spec.container import Container
from bough.spec.disk import Bus
from bough.spec.lock import PackageLock
from bough.spec.nic import Model
from bough.storage import no_space_is_told, sync_file
from bough.tasks import finish, run_stoppable
from bough.units import MIB

_BLOCK = 64 * 1024
_READ_BYTES = 1 << 20
_MOST_FURTHER = 16
_DIGITS = r"^[0-9a-f]{64}$"
#: Fields that only this home can state.
_OWN = {"recipe", "origin", "efi_loader"}


def _printable(value: Any) -> Any:
    """Check that a value has no character that a terminal would obey."""
    if isinstance(value, BaseModel):
        _printable(value.model_dump(mode="json"))
    elif isinstance(value, dict):
        _printable([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for one in value:
            _printable(one)
    elif isinstance(value, str) and not value.isprintable():
        raise ValueError("it has an unprintable character")
    return value


def _versions(value: Any) -> dict[str, str]:
    return PackageLock.model_validate({"lock": 1, "arch": "x86_64", "packages": value}).packages


_Word = Annotated[str, Field(max_length=256), AfterValidator(_printable)]
_Packages = Annotated[dict[str, str], BeforeValidator(_versions)]


class _Arrived(BaseModel):
    """The manifest of an image that a registry sent. Unknown fields are dropped."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    digest: str = Field(pattern=_DIGITS)
    os: _Word
    version: _Word
    arch: str
    firmware: tuple[Literal["bios", "uefi"], ...] = Field(max_length=2)
    size_bytes: int = Field(gt=0)
    root_partition: int | None = Field(default=None, ge=1, le=128)
    agent: Literal["installed", "disk"] | None = None
    packages: _Packages = {}
    boot_loader: _Packages = {}
    media: Literal["disk", "cdrom", "floppy"] = "disk"
    cloud_init: bool = False
    disks: tuple[Annotated[str, Field(pattern=_DIGITS)], ...] = Field(default=(), max_length=_MOST_FURTHER)
    lived: bool = False
    disk_bus: Bus = "virtio"
    nic_model: Model = "virtio"
    agent_port: Literal["virtio", "serial"] = "virtio"
    linux: Annotated[LinuxFacts, AfterValidator(_printable)] | None = None
    notes: Annotated[tuple[Note, ...], Field(max_length=8), AfterValidator(_printable)] = ()
    container: Container | None = None


def related_images(store: ImageStore, image: ImageManifest) -> list[ImageManifest]:
    """Return the image and its further images. Raises NotFound."""
    return [image, *(store.resolve(digest) for digest in image.disks)]


def describe_images(images: Sequence[ImageManifest]) -> dict[str, Any]:
    """Return the description's content. It names no file and no address of this host."""
    return {"images": [image.model_dump(mode="json", exclude=_OWN) for image in images]}


def parts_of(store: ImageStore, images: Sequence[ImageManifest]) -> list[WholePart]:
    return [
        WholePart(f"disk{number}", image.size_bytes, read_data(store.path(image.digest), _READ_BYTES))
        for number, image in enumerate(images)
    ]


def parse_images(description: Description) -> list[ImageManifest]:
    """Return the manifests of the images in an artifact: first the image itself, then its further images.

    Raises:
        BadImage: a value is not valid, or the parts do not match.
    """
    found = description.content.get("images")
    if not isinstance(found, list) or not 1 <= len(found) <= 1 + _MOST_FURTHER:
        raise BadImage("the artifact was altered: its list of images is not valid")
    try:
        arrived = [_Arrived.model_validate(one) for one in found]
    except (ValidationError, BoughError) as error:
        place = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ("packages",)
        where = ".".join(str(part) for part in place)[:100]
        raise BadImage(f"the artifact was altered: its image is not valid at {where!r}") from error
    names = [(f"disk{number}", one.size_bytes) for number, one in enumerate(arrived)]
    if (
        [(part.name, part.size_bytes) for part in description.parts] != names
        or list(arrived[0].disks) != [one.digest for one in arrived[1:]]
        or any(one.disks or one.agent for one in arrived[1:])
        or any(one.size_bytes % 512 or one.arch not in ARCHITECTURES for one in arrived)
    ):
        raise BadImage("the artifact was altered: its disks do not match its image")
    return [_manifest(one) for one in arrived]


def _manifest(arrived: _Arrived) -> ImageManifest:
    """Return the manifest for the store. An image of a registry never stands for a recipe's."""
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    values = arrived.model_dump(mode="json") | {"created": created, "label": "", "recipe": ""}
    return ImageManifest.model_validate(values)


async def add_images(
    store: ImageStore,
    images: Sequence[ImageManifest],
    blobs: Path,
    manifest: ArtifactManifest,
    description: Description,
    work: Path,
    confinement: Confinement,
    report: Report,
) -> None:
    """Make the disks of the images from chunks, check each against its image's digest, and store them.

    The first image gets the label in its manifest.

    Args:
        blobs: the directory of all blobs. work: a directory below incoming/, which the caller removes.

    Raises:
        BadImage: a chunk or a disk was altered. NoSpace
    """
    made = [work / f"made{number}" for number in range(len(images))]
    for directory in made:
        directory.mkdir(mode=0o711)
    disks = [directory / "disk.raw" for directory in made]
    loop = asyncio.get_running_loop()

    def tell(fraction: float) -> None:
        loop.call_soon_threadsafe(report, Progress("unpacking the disk", fraction))

    def unpack(check: Callable[[], None]) -> None:
        with no_space_is_told("the image", work):
            _write_disks(disks, blobs, manifest, description, check, tell)

    await run_stoppable(unpack)
    report(Progress("checking the digest"))
    for number in reversed(range(len(images))):  # the further images first
        checked = await _check_disk(images[number], disks[number], confinement)
        label = None if number else checked.label or None
        await finish(asyncio.to_thread(store.add, made[number], checked, label))


def _write_disks(
    disks: Sequence[Path],
    blobs: Path,
    manifest: ArtifactManifest,
    description: Description,
    check: Callable[[], None],
    tell: Callable[[float], None],
) -> None:
    streams = [disk.open("xb", buffering=0) for disk in disks]
    try:
        for stream, part in zip(streams, description.parts, strict=True):
            stream.truncate(part.size_bytes)
        done, seen, total = 0, -1, description.data_bytes or 1
        for piece in read_pieces(blobs, manifest, description):
            check()
            stream = streams[piece.part]
            for at in range(0, len(piece.data), _BLOCK):
                block = bytes(piece.data[at : at + _BLOCK])
                if block.count(0) != len(block):
                    stream.seek(piece.offset + at)
                    stream.write(block)
            done += len(piece.data)
            if done // (16 * MIB) != seen:
                seen = done // (16 * MIB)
                check_space(disks[0].parent)
                tell(done / total)
    finally:
        for stream in streams:
            stream.close()


async def _check_disk(image: ImageManifest, disk: Path, confinement: Confinement) -> ImageManifest:
    """Return the manifest with the loader that the disk has. Raises BadImage: another digest."""
    digest = await asyncio.to_thread(digest_image, disk, image.model_dump(mode="json"))
    if digest != image.digest:
        raise BadImage(
            f"the artifact was altered: its image has the digest {digest[:12]}, not {image.digest[:12]}"
        )
    await asyncio.to_thread(sync_file, disk)
    if image.media != "disk" or "uefi" not in image.firmware:
        return image
    contents = await inspect_contents(disk, confinement)
    return image.model_copy(update={"efi_loader": contents.efi_loader(image.arch)})


def check_wanted(image: ImageManifest, arch: str | None) -> None:
    """Raise BadImage if the image is for another architecture than the one that a user asked for."""
    if arch is not None and image.arch != arch:
        raise BadImage(
            f"the image is for {image.arch}, and not for {arch}",
            hint=f"leave out --arch, or use --arch {image.arch}",
        )
