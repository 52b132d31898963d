"""Import a foreign disk image from a file or an address, in any usual format.

    file or http(s)  ->  sha256  ->  unpacked (gz, xz, zst, bz2)  ->  out of its OVA  ->  header checked
        ->  sparse raw file, by qemu-img in a jail  ->  the agent in its Linux (linux_disk)
        ->  firmware and architecture  ->  the store

All steps work in one directory below incoming/. The directory is removed in every case.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bough.errors import BadImage, Conflict, InvalidInput, NotFound
from bough.images import ova
from bough.images.confined import Confinement
from bough.images.contents import inspect_contents
from bough.images.convert import check_space, convert, sync_image, unpack
from bough.images.disk import digest_image
from bough.images.download import STALL_S, download
from bough.images.formats import (
    COMPRESSIONS,
    Header,
    check_most,
    detect,
    read_header,
)
from bough.images.import_description import describe, describe_origin, media_of
from bough.images.import_request import CHECKSUM, ImportRequest, check_request, is_url
from bough.images.linux_disk.guest_parts import PartsOf
from bough.images.linux_disk.preparation import Preparation, Prepared, prepare_disk
from bough.images.note import ExportNote, read_note
from bough.images.store import ImageManifest, ImageStore
from bough.progress import Progress, Report, notice
from bough.storage import no_space_is_told
from bough.tasks import finish, run_stoppable
from bough.units import MIB, format_size

log = logging.getLogger("bough.images")

#: Nested archives. No real disk image has more.
_MOST_LAYERS = 4
#: Smaller files are hashed even if they have holes.
_SPARSE_BYTES = 256 * MIB
_REMOVED_AGAIN_AFTER_S = (0.02, 0.1, 0.5, 0.5)


async def import_image(
    store: ImageStore,
    request: ImportRequest,
    confinement: Confinement,
    report: Report,
    parts_of: PartsOf | None = None,
) -> ImageManifest:
    """Import an image into the store and label it.

    Args:
        parts_of: provides a throw-away guest for disks whose file systems only a kernel can write.

    After an error or a cancelled import, only the resumable part of a download is left.

    Raises:
        BadImage, DownloadFailed, NotFound, InvalidInput, NoSpace, HostLacks
    """
    label = check_request(request)
    most_bytes = check_most(request.most_bytes)
    check_space(store.home.incoming)
    work = store.home.incoming / f"import-{secrets.token_hex(6)}"
    work.mkdir(mode=0o711)
    try:
        with no_space_is_told(f"the image {label}", store.home.root):
            making = _Making(store, request, label, work, confinement, most_bytes, report, parts_of)
            async with _fetched(request, store.home.downloads, most_bytes, report) as fetched:
                checksum = await _check_sum(fetched, request, report)
                disks, note = await making.uncover(fetched)
                further = [await making.add(disk, None, None, (), is_further=True) for disk in disks[1:]]
                return await making.add(disks[0], checksum, note, further)
    finally:
        await finish(asyncio.to_thread(_remove, work))


def _remove(work: Path) -> None:
    """Remove the import's directory. A killed process may still use the directory for a moment."""
    for pause_s in _REMOVED_AGAIN_AFTER_S:
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            return
        time.sleep(pause_s)
    log.warning("%s cannot be removed: the next service removes it", work)


@contextlib.asynccontextmanager
async def _fetched(
    request: ImportRequest, downloads: Path, most_bytes: int, report: Report
) -> AsyncIterator[Path]:
    if is_url(request.source):
        async with download(
            request.source, downloads, most_bytes=most_bytes, report=report, stall_s=STALL_S
        ) as path:
            yield path
        return
    path = Path(request.source)
    if not path.is_absolute():
        raise InvalidInput(
            f"{request.source[:200]!r} is not an absolute path",
            hint="use an absolute path or an http(s) address",
        )
    path = Path(os.path.realpath(path))
    if not path.exists():
        raise NotFound(f"there is no file {path}", kind="file")
    if is_in_directory(path):
        if request.checksum is not None:
            raise InvalidInput("a checksum is for one file, and an OVF has several")
        yield path
        return
    if not path.is_file():
        raise InvalidInput(
            f"{path} is not a file", hint="copy a disk to a file first: dd if=/dev/sdX of=disk.raw"
        )
    if not os.access(path, os.R_OK):
        raise InvalidInput(f"{path} cannot be read by this user")
    before = path.stat()
    yield path
    after = path.stat()
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise Conflict(
            f"{path} was changed while it was being imported",
            hint="stop the program that writes to it, and try again",
        )


async def _check_sum(path: Path, request: ImportRequest, report: Report) -> str | None:
    """Check the requested checksum, and return the sha256 of the file.

    Return None for a sparse local file without a requested checksum: hashing 64 GiB of zeros takes minutes.
    """
    wanted = request.checksum
    if is_in_directory(path):
        return None  # a manifest beside the description has the digests
    if wanted is None and not is_url(request.source) and _is_sparse(path):
        return None
    match = CHECKSUM.fullmatch((wanted or "").lower())
    digits = match[2] if match else None
    names = {"sha256", "sha512" if digits and len(digits) == 128 else "sha256"}
    found = await asyncio.to_thread(_digest, path, names, _teller("checking", report))
    if digits is not None and digits not in found.values():
        name = "sha512" if len(digits) == 128 else "sha256"
        raise BadImage(
            f"this is not the requested file: its {name} is {found[name]}, not {digits}",
            hint="the file may be damaged, or its publisher has replaced it",
        )
    return found["sha256"]


def is_in_directory(path: Path) -> bool:
    """Return whether the source is an OVF in a directory: the directory, or the description in it."""
    return path.is_dir() or path.suffix.lower() == ".ovf"


def _is_sparse(path: Path) -> bool:
    info = path.stat()
    return info.st_size > _SPARSE_BYTES and info.st_blocks * 512 < info.st_size // 2


def _digest(path: Path, names: set[str], tell: Callable[[float], None]) -> dict[str, str]:
    digests = {name: hashlib.new(name) for name in names}
    with path.open("rb") as stream:
        size, done = os.fstat(stream.fileno()).st_size, 0
        while data := stream.read(4 * MIB):
            for digest in digests.values():
                digest.update(data)
            done += len(data)
            tell(done / size if size else 1.0)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _teller(step: str, report: Report) -> Callable[[float], None]:
    """Return a progress function that another thread may call."""
    loop = asyncio.get_running_loop()

    def tell(fraction: float) -> None:
        loop.call_soon_threadsafe(report, Progress(step, fraction))

    return tell


@dataclass(frozen=True)
class _Making:
    """The steps of an import, from the file to the store."""

    store: ImageStore
    request: ImportRequest
    label: str
    work: Path
    confinement: Confinement
    most_bytes: int
    report: Report
    parts_of: PartsOf | None

    async def uncover(self, path: Path) -> tuple[list[Path], ExportNote | None]:
        """Return the disks as files that the jail may read, and the note of a bough export, if any."""
        wanted = self.request.format
        if is_in_directory(path):
            beside = await asyncio.to_thread(ova.find_disks_beside, path, self.request.disk)
            return [await self._take_out(path, member) for member in beside.disks], beside.note
        for layer in range(_MOST_LAYERS):
            with path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                found = _detect(stream, size, wanted)
                inside = ova.find_disks(stream, size, self.request.disk) if found == "ova" else None
                note = read_note(stream) if found == "qcow2" else None
            if inside is not None:
                return [await self._take_out(path, member) for member in inside.disks], inside.note
            if found not in COMPRESSIONS:
                return [await _private(path, self.work, self.confinement, self.report)], note
            path = await self._unpack(path, found, f"layer{layer}")
        raise BadImage(f"the disk is inside more than {_MOST_LAYERS} nested archives")

    async def _take_out(self, path: Path, member: ova.Member) -> Path:
        """Extract a disk from an OVA. The disk may be compressed."""
        name = secrets.token_hex(4)
        target = self.work / f"disk-{name}"
        await _take_member(path, member, target, self.most_bytes, self.report)
        for layer in range(_MOST_LAYERS):
            with target.open("rb") as stream:
                found = _detect(stream, os.fstat(stream.fileno()).st_size, "auto")
            if found == "ova":
                raise BadImage(f"{member.name[:60]!r} in the OVA is another OVA")
            if found not in COMPRESSIONS:
                return await _private(target, self.work, self.confinement, self.report)
            packed, target = target, await self._unpack(target, found, f"disk-{name}-{layer}")
            packed.unlink()
        raise BadImage(f"the disk is inside more than {_MOST_LAYERS} nested archives")

    async def _unpack(self, path: Path, kind: str, name: str) -> Path:
        target = self.work / name
        await unpack(path, kind, target, self.confinement, self.report, most_bytes=self.most_bytes)
        return target

    async def add(
        self,
        disk: Path,
        checksum: str | None,
        note: ExportNote | None,
        further: Sequence[ImageManifest],
        *,
        is_further: bool = False,
    ) -> ImageManifest:
        """Add a disk to the store as an image.

        A further disk has no label. The image is kept as long as the image of the first disk.
        """
        with disk.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            wanted = "raw" if self.request.format == "raw" else "auto"
            header = read_header(stream, size, _detect(stream, size, wanted), most_bytes=self.most_bytes)
        made = self.work / f"made-{secrets.token_hex(4)}"
        made.mkdir(mode=0o711)
        await convert(disk, header, made / "disk.raw", self.confinement, self.report)
        prepared = Prepared()
        if media_of(header) == "disk" and not is_further:
            prepared = await self._prepare(disk, header, made / "disk.raw")
        contents = await inspect_contents(made / "disk.raw", self.confinement)
        self.report(Progress("computing the digest"))
        lasting = describe(header, contents, self.request, note, prepared)
        if is_further:
            lasting |= {"os": "unknown", "version": "", "agent": None, "cloud_init": False}
        lasting["disks"] = [one.digest for one in further]
        by_uefi = lasting["media"] == "disk" and "uefi" in lasting["firmware"]
        loader = contents.efi_loader(lasting["arch"]) if by_uefi else None
        digest = await asyncio.to_thread(digest_image, made / "disk.raw", lasting)
        manifest = ImageManifest.model_validate(
            lasting
            | {
                "digest": digest,
                "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "label": self.label,
                "recipe": "",
                "efi_loader": loader,
                "linux": prepared.linux,
                "notes": () if lasting["agent"] else prepared.notes,
                "origin": describe_origin(self.request, header, checksum),
            }
        )
        for told in manifest.notes:
            self.report(notice(str(told)))
        label = None if is_further else self.label
        await finish(asyncio.to_thread(self.store.add, made, manifest, label))
        return self.store.resolve(manifest.digest)

    async def _prepare(self, source: Path, header: Header, disk: Path) -> Prepared:
        """Find the Linux on the disk and install the agent's starter. A failure leaves the disk as it was."""
        request = self.request
        installs = request.agent is None and not request.cloud_init
        how = Preparation(installs, request.root, self.confinement, self.work, self.parts_of)
        prepared = await prepare_disk(disk, how, self.report)
        if prepared.is_spoiled:
            disk.unlink()
            await convert(source, header, disk, self.confinement, self.report)
        elif prepared.agent == "disk":
            await asyncio.to_thread(sync_image, disk, header.size_bytes)
        return prepared


async def _take_member(path: Path, member: ova.Member, target: Path, most_bytes: int, report: Report) -> None:
    tell = _teller(f"extracting {member.name[:60]} from the OVA", report)

    def extract(check: Callable[[], None]) -> None:
        def tell_on(fraction: float) -> None:
            check()
            tell(fraction)

        ova.extract(path, member, target, most_bytes, tell_on)

    await run_stoppable(extract)


def _detect(stream: object, size: int, wanted: str) -> str:
    """Return the format of a file. bough trusts `wanted` only for "raw": a wrong value does no harm."""
    from typing import BinaryIO, cast

    file = cast(BinaryIO, stream)
    if wanted == "raw":
        return "raw" if size else detect(file, size)
    found = detect(file, size)
    if wanted not in ("auto", found) and found not in COMPRESSIONS:
        raise BadImage(
            f"the file is a {found}, not a {wanted}", hint=f"use --format {found}, or leave --format out"
        )
    return found


async def _private(path: Path, work: Path, confinement: Confinement, report: Report) -> Path:
    """Return `path`, or a copy if the jail's user cannot read a file whose mode bough must not change."""
    ours = path.parent == work or (path.suffix == ".part" and path.parent == work.parents[1] / "downloads")
    if ours or not confinement.can_read(path):
        if not ours:
            report(Progress(f"copying {format_size(path.stat().st_size)}"))
            target = work / "copy"
            await run_stoppable(functools.partial(copy_sparse, path, target))
            path = target
        confinement.give(path)
    return path


def copy_sparse(source: Path, target: Path, check: Callable[[], None] = lambda: None) -> None:
    """Copy a file and keep the holes. Blocking.

    Args:
        check: called regularly; an exception from `check` ends the copy.
    """
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(reading).st_size
        os.ftruncate(writing, size)
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(reading, offset, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole follows
                break
            end = os.lseek(reading, offset, os.SEEK_HOLE)
            while offset < end:
                check()
                data = os.pread(reading, min(4 * MIB, end - offset), offset)
                if not data:
                    return
                offset += os.pwrite(writing, data, offset)
    finally:
        os.close(reading)
        os.close(writing)
