"""Images by digest, with labels on top.

images/<digest>/image.json   the manifest; written last, so that an image that has one is whole
images/<digest>/disk.raw     read-only, sparse
labels.json                  label -> digest; label@architecture where the label is another's already

A label is one per architecture: debian:12 for x86_64 stands beside debian:12 for aarch64.
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

from pydantic import BaseModel, ConfigDict

from bough.errors import Conflict, InvalidInput, NotFound
from bough.images.esp import EfiLoader
from bough.paths import Home
from bough.spec.fields import parse_architecture
from bough.storage import sync_directory, write_json

_LEAST_PREFIX = 6


class ImageManifest(BaseModel):
    """What an image is. Attributes:

    digest: sha256 over the disk's bytes and this manifest's lasting part, as hexadecimal digits.
    size_bytes: of the disk as a guest sees it.
    firmware: what it boots by, the preferred one first.
    root_partition: number of the partition that grows with the disk.
    packages: name -> version of what was installed.
    boot_loader: the same, of what the boot loader was made of.
    media: what it is to a machine: a disk that it starts from, or a CD or floppy to boot.
    cloud_init: it runs cloud-init, which gives it our agent at its first boot.
    efi_loader: what UEFI is to boot, where it finds nothing by itself.
    origin: where an imported image came from: source, sha256, format.
    disks: digests of images that are the further disks of each machine made from this one.
    lived: it is the disk of a machine: its guest has an identity, which a new machine must not keep.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    digest: str
    os: str
    version: str
    arch: str
    firmware: tuple[str, ...]
    size_bytes: int
    root_partition: int | None = None
    agent: bool = False
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


@dataclass(frozen=True)
class ImageEntry:
    manifest: ImageManifest
    labels: tuple[str, ...]
    bytes_on_disk: int


class ImageStore:
    def __init__(self, home: Home) -> None:
        self.home = home

    def entries(self) -> list[ImageEntry]:
        """Newest first."""
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
        """By label, digest, or a beginning of a digest that only one has (6 digits or more).

        Args:
            arch: of which it must be, as `LABEL@ARCH` says too. None: of a label, this host's where there
                is one, else the only one that there is.

        Raises:
            NotFound: with the nearest label, or the architectures that there are.
            Conflict: more than one it could be.
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
                hint=f"leave out --arch, or say --arch {found[0].arch}",
                kind="image",
            )
        names = {split_label(key)[0] for key in self._labels()}
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "bough image list shows them all"
        raise NotFound(f"no image is called {reference[:80]!r}", hint=hint, kind="image")

    def _find(self, reference: str) -> tuple[list[ImageManifest], bool]:
        """What is called so, of any architecture, and whether by a label, which goes before a digest."""
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
        """Of any architecture."""
        return bool(self._find(reference)[0])

    def find_recipe(
        self, key: str, fits: Callable[[ImageManifest], bool] = lambda _: True
    ) -> ImageManifest | None:
        """The newest image that was made by the recipe of this digest, and `fits`."""
        found = [image for image in self._manifests() if key and image.recipe == key and fits(image)]
        return max(found, key=lambda manifest: manifest.created, default=None)

    def label(self, digest: str, label: str) -> None:
        """Move a label to it, from whichever image of its architecture had it."""
        label, _ = split_label(label)
        arch = {manifest.digest: manifest.arch for manifest in self._manifests()}
        # A label of what is not there is nobody's.
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
        """Take over `made`, a directory below incoming/ with a disk.raw in it; `label` is moved to it."""
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
        """The image and every label of it."""
        digest = self.resolve(reference).digest
        self._write_labels({label: of for label, of in self._labels().items() if of != digest})
        self._remove(digest)

    def prune(self, used: set[str]) -> tuple[list[str], int]:
        """Delete what is neither labelled nor `used`: the digests, and the bytes that are free now."""
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
            # One that is damaged must not keep the others from being used: bough doctor --store tells.
            with contextlib.suppress(OSError, ValueError):
                found.append(ImageManifest.model_validate_json(path.read_bytes()))
        return found

    def rewrite_labels(self, old: Path) -> None:
        """From `old`, as far as it can be read, and from what the images were called when they were made."""
        here = {manifest.digest for manifest in self._manifests()}
        try:
            labels = {label: of for label, of in json.loads(old.read_bytes()).items() if of in here}
        except (OSError, ValueError, AttributeError):
            labels = self._original_labels()
        self._write_labels(labels)

    def _original_labels(self) -> dict[str, str]:
        """Of the newest of each label and architecture."""
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
    """Of "debian:12@arm64" ("debian:12", "aarch64"); what follows another "@" is part of the label."""
    label, at, arch = reference.rpartition("@")
    if at and label:
        with contextlib.suppress(InvalidInput):
            return label, parse_architecture(arch)
    return reference, None


def _ambiguous(reference: str, found: Sequence[ImageManifest], by_label: bool) -> Conflict:
    if by_label:
        there = sorted(manifest.arch for manifest in found)
        return Conflict(f"image {reference!r} is there for {', '.join(there)}", hint=f"--arch {there[0]}")
    return Conflict(f"{reference!r} is the beginning of {len(found)} images' digests", hint="give more")
