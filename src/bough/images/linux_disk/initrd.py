"""The kernel modules in an initrd. Programs in the jail decompress it; an unreadable one gives None."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import BinaryIO

from bough.errors import HostLacks
from bough.images.confined import Confinement, find_program, run_confined
from bough.images.linux_disk.cpio import BrokenArchive, CpioNames
from bough.images.linux_disk.tree import Tree
from bough.units import GIB, MIB

_MOST_FILE_BYTES = 512 * MIB
_MOST_BYTES = 2 * GIB
_MOST_S = 180.0
_DECOMPRESSORS = (
    (b"\x1f\x8b", ("gzip", "-dc")),
    (b"\xfd7zXZ\0", ("xz", "-dc", "--memlimit=1GiB")),
    (b"\x5d\0\0", ("xz", "-dc", "--format=lzma", "--memlimit=1GiB")),
    (b"\x28\xb5\x2f\xfd", ("zstd", "-dc", "-q", "--memory=1024MB")),
    (b"BZh", ("bzip2", "-dc")),
    (b"\x02\x21\x4c\x18", ("lz4", "-dc")),
)
_MODULE = re.compile(r"(?:^|/)([A-Za-z0-9_-]{1,100})\.ko(?:\.(?:gz|xz|zst))?$")


def module_name(path: str) -> str | None:
    """Return "virtio_blk" of "kernel/drivers/block/virtio-blk.ko.xz"; None if the path is not a module's."""
    found = _MODULE.search(path)
    return found[1].replace("-", "_") if found else None


class _Enough(Exception):
    """The rest of the output is not needed."""


async def read_initrd_modules(
    tree: Tree, path: str, size_bytes: int, work: Path, confinement: Confinement
) -> frozenset[str] | None:
    """Return the names of the modules in the initrd at `path`; None if it cannot be read.

    Args:
        work: a directory for a temporary copy.

    Raises:
        TreeUnreadable
    """
    if size_bytes > _MOST_FILE_BYTES:
        return None
    with tempfile.TemporaryFile(dir=work) as stream:
        await tree.copy(path, stream, size_bytes)
        stream.flush()
        names = CpioNames(module_name)
        try:
            await asyncio.to_thread(_read_plain, stream, names)
            if names.rest_at is not None:
                names = await _read_compressed(stream, names, confinement)
        except (BrokenArchive, HostLacks, TimeoutError):
            return None
    if not names.is_complete:
        return None
    return frozenset(name for path in names.names if (name := module_name(path)) is not None)


def _read_plain(stream: BinaryIO, names: CpioNames) -> None:
    stream.seek(0)
    while (data := stream.read(MIB)) and names.feed(data):
        pass


async def _read_compressed(stream: BinaryIO, plain: CpioNames, confinement: Confinement) -> CpioNames:
    """Add the names in the compressed archive after the plain ones.

    Raises:
        BrokenArchive, HostLacks, TimeoutError
    """
    argv = next((words for magic, words in _DECOMPRESSORS if plain.rest.startswith(magic)), None)
    if argv is None or plain.rest_at is None:
        raise BrokenArchive
    names = CpioNames(module_name)
    total = 0

    async def take(data: bytes) -> None:
        nonlocal total
        total += len(data)
        if total > _MOST_BYTES:
            raise BrokenArchive
        if not names.feed(data):
            raise _Enough
        await asyncio.sleep(0)

    os.lseek(stream.fileno(), plain.rest_at, os.SEEK_SET)
    with contextlib.suppress(_Enough):
        async with asyncio.timeout(_MOST_S):
            await run_confined(
                confinement, [find_program(argv[0]), *argv[1:]], stdin=stream.fileno(), on_output=take
            )
    if not total:
        raise BrokenArchive
    names.names += plain.names
    return names
