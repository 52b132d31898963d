"""Guest memory on disk, and as templates.

    memory     pages, one after the other
    extents    their places in the guest's RAM: pairs of offset and length, 64 bits each, little-endian
    devices    the state of the devices, and the content of the screen (see machines/video.py)

A snapshot with a `base` (another snapshot) stores the pages that differ from the base. Any other snapshot
stores all pages with content. A reader applies the base's pages first, then the snapshot's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from bough.errors import BoughError, SnapshotDamaged
from bough.paths import SnapshotPaths
from bough.qemu.ram import Extent, MemoryFile, Template, size_of
from bough.snapshots.store import SnapshotManifest, SnapshotMemory, SnapshotStore
from bough.storage import no_space_is_told

#: A longer chain of files takes longer to read than one file with all pages.
MAX_CHAIN = 8
_PAIR = struct.Struct("<QQ")
_CHUNK_BYTES = 4 << 20


def write_memory(
    paths: SnapshotPaths, template: Template, extents: list[Extent], devices: bytes, **told: str | None
) -> SnapshotMemory:
    """Write the memory of a template, as `write_pages` does, and return the description.

    Args:
        told: further fields of SnapshotMemory.
    """
    digest = write_pages(paths, extents, read_template(template, extents), devices)
    return SnapshotMemory(
        size_bytes=template.size_bytes, stored_bytes=size_of(extents), sha256=digest, **told
    )


def write_pages(
    paths: SnapshotPaths, extents: list[Extent], pages: Iterable[bytes | memoryview], devices: bytes
) -> str:
    """Write the three files, synced and read-only. Return their sha256.

    Args:
        pages: content of the extents, in order.

    Raises:
        NoSpace: partial files are left; the caller removes the directory.
    """
    digest = hashlib.sha256()
    table = b"".join(_PAIR.pack(*extent) for extent in extents)

    def counted(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        for chunk in chunks:
            digest.update(chunk)
            yield chunk

    with no_space_is_told("the memory of a machine", paths.root):
        _write(paths.extents, counted([table]))
        _write(paths.memory, counted(pages))
        _write(paths.devices, counted([devices]))
    return digest.hexdigest()


def remove_memory(paths: SnapshotPaths) -> None:
    for path in (paths.memory, paths.extents, paths.devices):
        path.unlink(missing_ok=True)


def read_template(template: Template, extents: Iterable[Extent]) -> Iterator[bytes]:
    # Read, do not map: access to a hole in a mapped memory file allocates the page.
    for start, length in extents:
        for offset in range(start, start + length, _CHUNK_BYTES):
            yield os.pread(template.fileno(), min(_CHUNK_BYTES, start + length - offset), offset)


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb", buffering=_CHUNK_BYTES, closefd=False) as file:
            for chunk in chunks:
                file.write(chunk)
        os.fchmod(descriptor, 0o400)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify_memory(store: SnapshotStore, manifest: SnapshotManifest) -> None:
    """Compare the files with the checksum. Raises SnapshotDamaged."""
    assert manifest.memory is not None
    paths, digest = store.paths(manifest.id), hashlib.sha256()
    try:
        for path in (paths.extents, paths.memory, paths.devices):
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
    except OSError as error:
        raise _damaged(manifest, f"{error.filename}: {error.strerror}") from error
    if digest.hexdigest() != manifest.memory.sha256:
        raise _damaged(manifest, "its memory does not match its checksum")


def load_template(store: SnapshotStore, manifest: SnapshotManifest) -> Template:
    """Return the memory of a snapshot, ready to be mapped. Raises SnapshotDamaged."""
    chain = memory_chain(store, manifest)
    assert manifest.memory is not None
    with MemoryFile(manifest.memory.size_bytes) as file:
        for part in reversed(chain):
            _lay_over(store.paths(part.id), part, file)
        return file.seal()


def memory_chain(store: SnapshotStore, manifest: SnapshotManifest) -> list[SnapshotManifest]:
    """Return the snapshot, its base, the base's base, ... Raises SnapshotDamaged."""
    chain = [manifest]
    while (memory := chain[-1].memory) is not None and memory.base is not None:
        if not store.has(memory.base):
            raise _damaged(manifest, f"its memory needs the snapshot {memory.base}, which is missing")
        chain.append(store.get(memory.base))
    return chain


def read_devices(store: SnapshotStore, manifest: SnapshotManifest) -> bytes:
    try:
        return store.paths(manifest.id).devices.read_bytes()
    except OSError as error:
        raise _damaged(manifest, f"{error.filename}: {error.strerror}") from error


def _lay_over(paths: SnapshotPaths, manifest: SnapshotManifest, file: MemoryFile) -> None:
    try:
        lay_over(paths, file)
    except (OSError, ValueError) as error:
        raise _damaged(manifest, str(error)) from error


def lay_over(paths: SnapshotPaths, file: MemoryFile) -> None:
    """Read the pages written by `write_pages` into `file`.

    Raises:
        OSError
        ValueError: the files are incomplete.
    """
    table = paths.extents.read_bytes()
    if len(table) % _PAIR.size:
        raise ValueError("the table of extents is truncated")
    with paths.memory.open("rb", buffering=0) as pages:
        position = 0
        for start, length in _PAIR.iter_unpack(table):
            if start + length > file.size_bytes:
                raise ValueError("an extent lies beyond the end of the memory")
            file.copy_in(pages.fileno(), position, start, length)
            position += length


def _damaged(manifest: SnapshotManifest, why: str) -> SnapshotDamaged:
    return SnapshotDamaged(
        f"snapshot {manifest.label or manifest.id} is damaged: {why}",
        hint="its disks may be intact: fork only the disks with --cold",
        snapshot=manifest.id,
    )


class Templates:
    """Templates of snapshots, kept for the next fork.

    Beyond the size limit, the least recently used template is dropped first.
    """

    def __init__(self, store: SnapshotStore, limit_bytes: int) -> None:
        self._store = store
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[str, Template] = OrderedDict()
        self._loading: dict[str, asyncio.Future[Template]] = {}

    async def get(self, manifest: SnapshotManifest) -> Template:
        """Return the template of a snapshot with memory; load it if necessary. Raises SnapshotDamaged."""
        kept = self._kept.get(manifest.id)
        if kept is not None:
            self._kept.move_to_end(manifest.id)
            return kept
        loading = self._loading.get(manifest.id)
        if loading is None:
            work = asyncio.to_thread(load_template, self._store, manifest)
            loading = self._loading[manifest.id] = asyncio.ensure_future(work)
            loading.add_done_callback(lambda _: self._loading.pop(manifest.id, None))
        template = await asyncio.shield(loading)
        self.put(manifest.id, template)
        return template

    def peek(self, snapshot_id: str) -> Template | None:
        return self._kept.get(snapshot_id)

    def put(self, snapshot_id: str, template: Template) -> None:
        self._kept[snapshot_id] = template
        self._kept.move_to_end(snapshot_id)
        while len(self._kept) > 1 and self.used_bytes() > self._limit_bytes:
            self._kept.popitem(last=False)  # closed when the last user releases it

    def drop(self, snapshot_id: str) -> None:
        self._kept.pop(snapshot_id, None)

    def used_bytes(self) -> int:
        return sum(template.used_bytes() for template in self._kept.values())

    async def close(self) -> None:
        for loading in list(self._loading.values()):
            with contextlib.suppress(BoughError):
                await loading
        self._kept.clear()
