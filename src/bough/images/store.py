"""The image store: images by digest, with labels on top.

images/<digest>/image.json   the manifest; written last, so an image with a manifest is complete
images/<digest>/disk.raw     read-only, sparse
labels.json                  label -> digest; label@architecture if another architecture has the plain label

Each architecture has its own labels: debian:12 for x86_64 and debian:12 for aarch64 can both exist.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from bough.errors import Conflict, InvalidInput, NotFound
from bough.images.esp import EfiLoader
from bough.images.linux_disk.facts import LinuxFacts, Note
from bough.paths import Home
from bough.spec.container import Container
from bough.spec.container_name import normalise_image
from bough.spec.disk import Bus
from bough.spec.nic import Model
from bough.spec.values import parse_architecture
from bough.storage import sync_directory, write_json

_LEAST_PREFIX = 6


class ImageManifest(BaseModel):
    """The manifest of an image.

    Attributes:
        digest: sha256 of the disk and of the lasting part of this manifest, as hexadecimal digits.
        size_bytes: size of the disk in a guest.
        firmware: firmware types that boot the image, the preferred one first.
        root_partition: number of the partition that grows with the disk.
        agent: how a guest of this image gets bough's agent. "installed": the agent is part of the image, and
            runs with the guest's own Python. "disk": the image starts the agent from the agent disk
            (images/agent_disk). None: not at all.
        packages: name -> version of the installed packages.
        boot_loader: name -> version of the packages that the boot loader is made of.
        media: the image's use in a machine: a disk that it starts from, or a CD or floppy to boot.
        cloud_init: the image runs cloud-init, which installs bough's agent at the first boot.
        efi_loader: the loader for UEFI, if UEFI finds none by itself.
        origin: origin of an imported image: source, sha256, format. Of an image made by a machine: base.
        disks: digests of the images for the further disks of each machine.
        lived: the disk comes from a machine. Its guest has an identity, which a new machine must not keep.
        linux: the Linux on an imported disk, if bough found one.
        notes: what the import said about an imported disk without the agent.
        container: the container image that the disk was made from.
        disk_bus, nic_model, agent_port: the hardware that the guest has drivers for, if a user chooses none.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    digest: str
    os: str
    version: str
    arch: str
    firmware: tuple[str, ...]
    size_bytes: int
    root_partition: int | None = None
    agent: Literal["installed", "disk"] | None = None
    created: str
    label: str
    recipe: str
    packages: dict[str, str] = {}
    boot_loader: dict[str, str] = {}
    media: Literal["disk", "cdrom", "floppy"] = "disk"
    cloud_init: bool = False
    efi_loader: EfiLoader | None = None
    origin: dict[str, Any] | None = None
    disks: tuple[str, ...] = ()
    lived: bool = False
    disk_bus: Bus = "virtio"
    nic_model: Model = "virtio"
    agent_port: Literal["virtio", "serial"] = "virtio"
    linux: LinuxFacts | None = None
    notes: tuple[Note, ...] = ()
    container: Container | None = None

    @field_validator("agent", mode="before")
    @classmethod
    def _from_yes_or_no(cls, value: Any) -> Any:
        """Read a manifest of earlier versions, which knew installed agents only."""
        return {True: "installed", False: None}[value] if isinstance(value, bool) else value


@dataclass(frozen=True)
class ImageEntry:
    manifest: ImageManifest
    labels: tuple[str, ...]
    bytes_on_disk: int


class ImageStore:
    def __init__(self, home: Home) -> None:
        self.home = home

    def entries(self) -> list[ImageEntry]:
        """Return all images, newest first."""
        names: dict[str, set[str]] = {}
        for key, digest in self._labels().items():
            names.setdefault(digest, set()).add(split_label(key)[0])
        entries = [
            ImageEntry(
                manifest,
                tuple(sorted(names.get(manifest.digest, ()))),
                self.path(manifest.digest).stat().st_blocks * 512,
            )
            for manifest in self._manifests()
        ]
        return sorted(entries, key=lambda entry: entry.manifest.created, reverse=True)

    def resolve(self, reference: str, arch: str | None = None) -> ImageManifest:
        """Find an image by its label, digest, or a unique prefix of its digest (6 digits or more).

        Args:
            arch: the required architecture, as in `LABEL@ARCH`. None: for a label, prefer this host's
                architecture.
                If the host's is missing, only one image may match.

        Raises:
            NotFound: the hint has the nearest label, or the architectures of the image.
            Conflict: several images match.
        """
        name, own = split_label(reference)
        arch = arch or own
        found, by_label = self._find(reference)
        fitting = [manifest for manifest in found if arch in (None, manifest.arch)]
        if len(fitting) > 1 and by_label:
            fitting = [manifest for manifest in fitting if manifest.arch == platform.machine()] or fitting
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise _ambiguous(reference, fitting, by_label)
        if found:
            there = ", ".join(sorted({manifest.arch for manifest in found}))
            raise NotFound(
                f"image {name!r} is for {there}, and not for {arch}",
                hint=f"leave out --arch, or use --arch {found[0].arch}",
                kind="image",
            )
        names = {split_label(key)[0] for key in self._labels()}
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "list the images: bough image list"
        raise NotFound(f"no image is called {reference[:80]!r}", hint=hint, kind="image")

    def _find(self, reference: str) -> tuple[list[ImageManifest], bool]:
        """Return matching images of any architecture, and whether a label matched. Labels go first."""
        name, _ = split_label(reference)
        labelled = {digest for key, digest in self._labels().items() if split_label(key)[0] == name}
        manifests = self._manifests()
        found = [manifest for manifest in manifests if manifest.digest in labelled]
        if found:
            return found, True
        exact = [manifest for manifest in manifests if manifest.digest == name]
        long_enough = len(name) >= _LEAST_PREFIX
        return exact or [m for m in manifests if long_enough and m.digest.startswith(name)], False

    def knows(self, reference: str) -> bool:
        """Return whether an image of any architecture matches."""
        return bool(self._find(reference)[0])

    def find_recipe(
        self, key: str, fits: Callable[[ImageManifest], bool] = lambda _: True
    ) -> ImageManifest | None:
        """Return the newest image from the recipe with this digest that `fits` accepts."""
        found = [image for image in self._manifests() if key and image.recipe == key and fits(image)]
        return max(found, key=lambda manifest: manifest.created, default=None)

    def label(self, digest: str, label: str) -> None:
        """Move a label to an image. Another image of the same architecture loses the label."""
        label, _ = split_label(label)
        arch = {manifest.digest: manifest.arch for manifest in self._manifests()}
        # A label of a deleted image counts as a label of this architecture, and is removed.
        taken = {
            key: of
            for key, of in self._labels().items()
            if split_label(key)[0] != label or arch.get(of, arch[digest]) != arch[digest]
        }
        key = f"{label}@{arch[digest]}" if label in taken else label
        self._write_labels({**taken, key: digest})

    def path(self, digest: str) -> Path:
        return self.home.image(digest).disk

    def add(self, made: Path, manifest: ImageManifest, label: str | None) -> None:
        """Add an image: move `made`, a directory below incoming/ with a disk.raw, and move `label` to it."""
        target = self.home.image(manifest.digest)
        if target.manifest.exists():
            shutil.rmtree(made)
        else:
            (made / target.disk.name).chmod(0o444)
            made.chmod(0o711)
            write_json(made / target.manifest.name, manifest.model_dump(mode="json"), mode=0o444)
            made.rename(target.root)
            sync_directory(self.home.images)
        if label is not None:
            self.label(manifest.digest, label)

    def delete(self, reference: str) -> None:
        """Delete an image and all its labels."""
        digest = self.resolve(reference).digest
        self._write_labels({label: of for label, of in self._labels().items() if of != digest})
        self._remove(digest)

    def prune(self, used: set[str]) -> tuple[list[str], int]:
        """Delete all images without a label that are not `used`. Return their digests and the freed bytes."""
        entries = self.entries()
        kept = [e.manifest for e in entries if e.labels or e.manifest.digest in used]
        used = used | {digest for manifest in kept for digest in manifest.disks}
        doomed = [e for e in entries if not e.labels and e.manifest.digest not in used]
        for entry in doomed:
            self._remove(entry.manifest.digest)
        return [entry.manifest.digest for entry in doomed], sum(entry.bytes_on_disk for entry in doomed)

    def _remove(self, digest: str) -> None:
        grave = self.home.incoming / f"{digest}.deleted"
        self.home.image(digest).root.rename(grave)
        sync_directory(self.home.images)
        shutil.rmtree(grave)

    def _manifests(self) -> list[ImageManifest]:
        found = []
        for root in self.home.images.iterdir() if self.home.images.is_dir() else ():
            path = self.home.image(root.name).manifest
            # A damaged manifest must not make the other images unusable. bough doctor --store reports it.
            with contextlib.suppress(OSError, ValueError):
                found.append(ImageManifest.model_validate_json(path.read_bytes()))
        return found

    def rewrite_labels(self, old: Path) -> None:
        """Restore the labels from `old`. If `old` is unreadable, use the original labels of the images."""
        here = {manifest.digest for manifest in self._manifests()}
        try:
            labels = {label: of for label, of in json.loads(old.read_bytes()).items() if of in here}
        except (OSError, ValueError, AttributeError):
            labels = self._original_labels()
        self._write_labels(labels)

    def _original_labels(self) -> dict[str, str]:
        """Return labels from the manifests: the newest image of each label and architecture has the label."""
        manifests = sorted(self._manifests(), key=lambda manifest: manifest.created)
        newest = {(manifest.label, manifest.arch): manifest.digest for manifest in manifests}
        labels: dict[str, str] = {}
        for (label, arch), digest in newest.items():
            labels[f"{label}@{arch}" if label in labels else label] = digest
        return labels

    def _labels(self) -> dict[str, str]:
        try:
            return dict(json.loads(self.home.labels.read_bytes()))
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError):
            return self._original_labels()

    def _write_labels(self, labels: dict[str, str]) -> None:
        write_json(self.home.labels, labels)


def split_label(reference: str) -> tuple[str, str | None]:
    """Split a label: "debian:12@arm64" gives ("debian:12", "aarch64").

    An "@" without an architecture after it is part of the label. The label of a container image is its full
    name: "oci:nginx" gives "docker://docker.io/library/nginx:latest".
    """
    label, at, arch = reference.rpartition("@")
    if at and label:
        with contextlib.suppress(InvalidInput):
            return _full(label), parse_architecture(arch)
    return _full(reference), None


def _full(label: str) -> str:
    with contextlib.suppress(InvalidInput):
        return normalise_image(label)
    return label


def _ambiguous(reference: str, found: Sequence[ImageManifest], by_label: bool) -> Conflict:
    if by_label:
        there = sorted(manifest.arch for manifest in found)
        return Conflict(
            f"image {reference!r} exists for {', '.join(there)}", hint=f"choose one: --arch {there[0]}"
        )
    return Conflict(f"{reference!r} is ambiguous: {len(found)} digests match", hint="use more characters")
