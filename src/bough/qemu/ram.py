"""Guest memory: read from a running QEMU, and held in sealed memory files.

A running guest's RAM is private to its process. /proc/PID/pagemap
(Documentation/admin-guide/mm/pagemap.rst) shows the pages with content. Such a page is present or swapped.
After a start from a template, such a page is also no longer the template's ("file-page" clear).
process_vm_readv(2) copies the pages.

A `Template` is a sealed memory file (memfd). The seal matters because QEMU 7.2 opens its memory for writing
even for a private mapping, and QEMU is hostile.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bough.errors import HostLacks, MachineFailed

PAGE_BYTES = 4096

#: (offset, length) in bytes of guest RAM, ascending and disjoint.
Extent = tuple[int, int]

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
#: Top byte of a pagemap entry: bit 63 present, bit 62 swapped, bit 61 file-backed or shared.
_IS_PRIVATE = bytes(1 if flags & 0xC0 and not flags & 0x20 else 0 for flags in range(256))
_PAGEMAP_CHUNK_BYTES = 8 << 20
#: IOV_MAX; small enough for other threads to run in between.
_VECTORS_PER_CALL = 1024
_BYTES_PER_CALL = 64 << 20
#: Share of one thread in a parallel copy.
_BYTES_PER_TURN = 8 << 20
_MOST_COPIERS = 4
#: Size of a piece on its way to a file.
_BYTES_PER_READ = 4 << 20
_NAME = "bough-memory"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
]
_libc.process_vm_writev.restype = ctypes.c_ssize_t
_libc.process_vm_writev.argtypes = _libc.process_vm_readv.argtypes
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class Template:
    """Sealed guest memory, by descriptor. Freed after the last user's `close`."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self.size_bytes = size_bytes

    def fileno(self) -> int:
        return self._descriptor

    def extents(self) -> list[Extent]:
        """The parts with content; the rest is zero."""
        return list(_data_extents(self._descriptor, self.size_bytes))

    def used_bytes(self) -> int:
        return os.fstat(self._descriptor).st_blocks * 512

    def close(self) -> None:
        """Close the descriptor. Guests that map the memory keep it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


class MemoryFile:
    """Guest memory in the making: written, then sealed into a Template. A context manager."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._descriptor, size_bytes)
        self._mapping: mmap.mmap | None = mmap.mmap(self._descriptor, size_bytes)

    def __enter__(self) -> MemoryFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._unmap()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def buffer(self) -> mmap.mmap:
        assert self._mapping is not None, "sealed already"
        return self._mapping

    def copy_from(self, template: Template, skip: list[Extent]) -> None:
        """Copy the template's content, except for `skip`: the caller writes these parts later.

        Raises:
            MachineFailed: the template is not bough's: a hostile guest's process can have files of that name.
        """
        try:
            for start, length in subtract(template.extents(), skip):
                self.copy_in(template.fileno(), start, start, length)
        except ValueError as error:
            raise MachineFailed("a memory file is shorter than its guest's memory") from error

    def copy_in(self, descriptor: int, source: int, start: int, length: int) -> None:
        """Copy the content of a file, from `source` on, to `start`.

        The kernel copies: a mapping would clear each page first, which doubles the time.

        Raises:
            ValueError: the file ends too early.
        """
        os.lseek(self._descriptor, start, os.SEEK_SET)
        while length:
            got = os.sendfile(self._descriptor, descriptor, source, length)
            if not got:
                raise ValueError("its memory ends too early")
            source, length = source + got, length - got

    def read_process(self, pid: int, address: int, extents: list[Extent], *, hurry: bool = False) -> None:
        """Copy parts of the guest RAM that starts at `address` in the process.

        Args:
            hurry: use several processors, while the guest is paused.

        Raises:
            MachineFailed: the process is gone, or its memory lies elsewhere.
            HostLacks: the host forbids reading the process.
        """
        anchor = ctypes.c_char.from_buffer(self.buffer)
        try:
            here = ctypes.addressof(anchor)

            def copy(batch: list[Extent]) -> None:
                local = struct.pack(
                    f"={2 * len(batch)}Q", *(n for o, size in batch for n in (here + o, size))
                )
                remote = struct.pack(
                    f"={2 * len(batch)}Q", *(n for o, size in batch for n in (address + o, size))
                )
                wanted = sum(size for _, size in batch)
                got = _libc.process_vm_readv(pid, local, len(batch), remote, len(batch), 0)
                if got != wanted:
                    raise _unreadable(ctypes.get_errno() if got < 0 else 0)

            if hurry and size_of(extents) > 2 * _BYTES_PER_TURN:
                with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_COPIERS)) as copiers:
                    for _ in copiers.map(copy, _batches(extents, _BYTES_PER_TURN)):
                        pass
            else:
                for batch in _batches(extents, _BYTES_PER_CALL):
                    copy(batch)
        finally:
            del anchor

    def promise(self) -> Template:
        """Return the future template, for callers that need only a descriptor until the file is sealed."""
        return Template(os.dup(self._descriptor), self.size_bytes)

    def seal(self) -> Template:
        """Seal the file: no process can change the content afterwards, including the sealing process."""
        self._unmap()
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
        template = Template(self._descriptor, self.size_bytes)
        self._descriptor = -1
        return template

    def _unmap(self) -> None:
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None


@dataclass(frozen=True)
class GuestRam:
    """The place of a guest's RAM in its QEMU process."""

    pid: int
    address: int
    size_bytes: int

    def private_extents(self) -> list[Extent]:
        """Return the parts written by the guest, since the start from a template if any.

        Raises:
            MachineFailed: the process is gone.
            HostLacks: the host forbids the look.
        """
        return private_pages(self.pid, self.address, self.size_bytes)

    def read(self, extents: Iterable[Extent]) -> Iterator[memoryview]:
        """Yield the parts in order, in pieces. A piece is valid until the next is requested.

        Raises:
            MachineFailed, HostLacks: as `MemoryFile.read_process`.
        """
        buffer = bytearray(_BYTES_PER_READ)
        anchor = ctypes.c_char.from_buffer(buffer)
        for batch in _batches(extents, _BYTES_PER_READ):
            wanted = sum(size for _, size in batch)
            local = struct.pack("=2Q", ctypes.addressof(anchor), wanted)
            remote = struct.pack(
                f"={2 * len(batch)}Q", *(n for o, size in batch for n in (self.address + o, size))
            )
            got = _libc.process_vm_readv(self.pid, local, 1, remote, len(batch), 0)
            if got != wanted:
                raise _unreadable(ctypes.get_errno() if got < 0 else 0)
            yield memoryview(buffer)[:wanted]

    def write(self, extents: Iterable[Extent], content: bytes) -> None:
        """Write pieces of `read` back to the same parts. The vCPUs must be paused.

        Raises:
            MachineFailed, HostLacks: as `MemoryFile.read_process`.
        """
        buffer = ctypes.create_string_buffer(content, len(content))
        position = ctypes.addressof(buffer)
        for batch in _batches(extents, _BYTES_PER_CALL):
            wanted = sum(size for _, size in batch)
            local = struct.pack("=2Q", position, wanted)
            remote = struct.pack(
                f"={2 * len(batch)}Q", *(n for o, size in batch for n in (self.address + o, size))
            )
            got = _libc.process_vm_writev(self.pid, local, 1, remote, len(batch), 0)
            if got != wanted:
                raise _unreadable(ctypes.get_errno() if got < 0 else 0)
            position += wanted

    def open_template(self) -> Template | None:
        """Return the template of a process, or None.

        bough looks among the descriptors of the process, so a later service finds the template, too.
        """
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                if str(link.readlink()).startswith(f"/memfd:{_NAME}"):
                    descriptor = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
                    return Template(descriptor, self.size_bytes)
            except FileNotFoundError:
                continue
        return None


def private_pages(pid: int, address: int, length: int) -> list[Extent]:
    """Return the private pages in memory of a process, from `address` on.

    Raises: as `GuestRam.private_extents`.
    """
    extents: list[Extent] = []
    position, end = address // PAGE_BYTES * 8, (address + length) // PAGE_BYTES * 8
    start = position
    try:
        with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
            while position < end:
                data = os.pread(pagemap.fileno(), min(_PAGEMAP_CHUNK_BYTES, end - position), position)
                if not data:
                    raise _unreadable(0)
                first = (position - start) // 8
                for run in re.finditer(b"\1+", data[7::8].translate(_IS_PRIVATE)):
                    begin, stop = first + run.start(), first + run.end()
                    _append(extents, begin * PAGE_BYTES, (stop - begin) * PAGE_BYTES)
                position += len(data)
    except FileNotFoundError:
        raise _unreadable(3) from None
    except PermissionError as error:
        raise _unreadable(error.errno or 1) from error
    return extents


@contextlib.contextmanager
def open_memory(content: bytes) -> Iterator[int]:
    """Return a descriptor of a new memory file with that content, at the start of the file."""
    descriptor = os.memfd_create("bough-state", os.MFD_CLOEXEC)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def different_extents(
    new: Template, old: Template, within: Iterable[Extent], *, piece_bytes: int = PAGE_BYTES
) -> list[Extent]:
    """Return the different parts of two templates inside `within`, in pieces of the given size (a page or
    less).
    """
    found: list[Extent] = []
    block = 16 * piece_bytes
    with (
        mmap.mmap(new.fileno(), new.size_bytes, mmap.MAP_PRIVATE) as ours,
        mmap.mmap(old.fileno(), old.size_bytes, mmap.MAP_PRIVATE) as theirs,
    ):
        a, b = ctypes.c_char.from_buffer(ours), ctypes.c_char.from_buffer(theirs)
        here, there = ctypes.addressof(a), ctypes.addressof(b)
        for start, length in within:
            for offset in range(start, start + length, block):
                size = min(block, start + length - offset)
                if not _libc.memcmp(here + offset, there + offset, size):
                    continue
                for piece in range(offset, offset + size, piece_bytes):
                    if _libc.memcmp(here + piece, there + piece, piece_bytes):
                        _append(found, piece, piece_bytes)
        del a, b
    return found


def subtract(extents: Iterable[Extent], holes: Iterable[Extent]) -> Iterator[Extent]:
    """Return `extents` without `holes`; both ascending."""
    rest = iter(holes)
    hole = next(rest, None)
    for begin, length in extents:
        start, end = begin, begin + length
        while hole is not None and hole[0] + hole[1] <= start:
            hole = next(rest, None)
        while hole is not None and hole[0] < end:
            if hole[0] > start:
                yield start, hole[0] - start
            start = hole[0] + hole[1]
            if start >= end:
                break
            hole = next(rest, None)
        if start < end:
            yield start, end - start


def intersect(a: list[Extent], b: list[Extent]) -> Iterator[Extent]:
    """Return the parts in both."""
    return subtract(a, list(subtract(a, b)))


def union(a: list[Extent], b: list[Extent]) -> list[Extent]:
    """Return the parts in either list; the two must be disjoint."""
    joined: list[Extent] = []
    for start, length in sorted([*a, *b]):
        _append(joined, start, length)
    return joined


def size_of(extents: Iterable[Extent]) -> int:
    return sum(length for _, length in extents)


def _append(extents: list[Extent], start: int, length: int) -> None:
    if extents and sum(extents[-1]) == start:
        extents[-1] = (extents[-1][0], extents[-1][1] + length)
    else:
        extents.append((start, length))


def _batches(extents: Iterable[Extent], most_bytes: int) -> Iterator[list[Extent]]:
    batch: list[Extent] = []
    held = 0
    for begin, length in extents:
        start, end = begin, begin + length
        while start < end:
            part = min(end - start, most_bytes - held)
            batch.append((start, part))
            start, held = start + part, held + part
            if held == most_bytes or len(batch) == _VECTORS_PER_CALL:
                yield batch
                batch, held = [], 0
    if batch:
        yield batch


def _data_extents(descriptor: int, size_bytes: int) -> Iterator[Extent]:
    position = 0
    while position < size_bytes:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole follows
            return
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position - start


def _unreadable(errno: int) -> MachineFailed | HostLacks:
    if errno in (1, 13):
        return HostLacks(
            "this host does not let bough read the memory of its own QEMU process",
            hint="kernel.yama.ptrace_scope is 3 or a security module forbids it; set it to 1",
        )
    why = os.strerror(errno) if errno else "it is not at the reported address"
    return MachineFailed(f"the memory of QEMU's process could not be read: {why}")
