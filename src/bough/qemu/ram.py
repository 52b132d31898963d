"""The memory of a guest: read out of its QEMU while it runs, and held in sealed memory files.

A running guest's RAM is private to its process. Which of its pages hold something is told by
/proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): present or swapped, and, for a guest that
started from a template, no longer the template's ("file-page" clear). process_vm_readv(2) copies them.

A `Template` is a memory file (memfd) that no one can write any more, so that any number of hostile
processes may map it: QEMU 7.2 has to open its memory for writing, even where it maps it privately.
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

#: (offset, length) in bytes of guest RAM, ascending and apart.
Extent = tuple[int, int]

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
#: The top byte of a pagemap entry: bit 63 present, bit 62 swapped, bit 61 of a file or shared.
_IS_PRIVATE = bytes(1 if flags & 0xC0 and not flags & 0x20 else 0 for flags in range(256))
_PAGEMAP_CHUNK_BYTES = 8 << 20
#: IOV_MAX, and little enough at once that other threads have their turn.
_VECTORS_PER_CALL = 1024
_BYTES_PER_CALL = 64 << 20
#: Of one of several that copy side by side.
_BYTES_PER_TURN = 8 << 20
_MOST_COPIERS = 4
#: Of a piece on its way to a file.
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
    """Sealed guest memory, by descriptor. Closed when the last user lets go (`close`)."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self.size_bytes = size_bytes

    def fileno(self) -> int:
        return self._descriptor

    def extents(self) -> list[Extent]:
        """Where it holds something; the rest is zero."""
        return list(_data_extents(self._descriptor, self.size_bytes))

    def used_bytes(self) -> int:
        return os.fstat(self._descriptor).st_blocks * 512

    def close(self) -> None:
        """Guests that map it keep it."""
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
        """The template's content, but for what `skip` will overwrite anyway.

        Raises:
            MachineFailed: it is none of ours: a process of a hostile guest has others of that name.
        """
        try:
            for start, length in subtract(template.extents(), skip):
                self.copy_in(template.fileno(), start, start, length)
        except ValueError as error:
            raise MachineFailed("a memory file is shorter than its guest's memory") from error

    def copy_in(self, descriptor: int, source: int, start: int, length: int) -> None:
        """Of a file, what is there from `source` on, to `start`.

        By the kernel: through a mapping each page would be cleared first, which takes as long again.

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
        """Copy those parts of the guest RAM that begins at `address` in the process.

        Args:
            hurry: on several processors, which the guest does not need meanwhile.

        Raises:
            MachineFailed: the process is gone, or does not hold its memory there.
            HostLacks: this host does not let us read it.
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
        """What it will be once it is sealed: for who needs no more than its descriptor until then."""
        return Template(os.dup(self._descriptor), self.size_bytes)

    def seal(self) -> Template:
        """Nobody can change it from here on, this process included."""
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
    """Where a QEMU process holds its guest's RAM."""

    pid: int
    address: int
    size_bytes: int

    def private_extents(self) -> list[Extent]:
        """What the guest has written (since its template, where it has one).

        Raises:
            MachineFailed: the process is gone.
            HostLacks: this host does not let us look.
        """
        return private_pages(self.pid, self.address, self.size_bytes)

    def read(self, extents: Iterable[Extent]) -> Iterator[memoryview]:
        """Those parts, one after the other, in pieces that are good until the next one is asked for.

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
        """What `read` gave of those parts, one after the other. The vCPUs stand still.

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
        """The template that this process was started from; None when it had none.

        Found among its descriptors, so that a service that did not start it finds it as well.
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
    """What of a process's memory from `address` on is its own, and in memory.

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
    """A descriptor of a memory file that holds `content`, at its beginning."""
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
    """What of `within` differs between two templates of the same size, in pieces of that size, which is a
    page's or a part of one."""
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
    """`extents` without `holes`; both ascending."""
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
    """What is in both."""
    return subtract(a, list(subtract(a, b)))


def union(a: list[Extent], b: list[Extent]) -> list[Extent]:
    """What is in either; the two are apart from each other."""
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
        except OSError:  # ENXIO: only a hole is left
            return
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position - start


def _unreadable(errno: int) -> MachineFailed | HostLacks:
    if errno in (1, 13):
        return HostLacks(
            "this host does not let bough read the memory of its own QEMU process",
            hint="kernel.yama.ptrace_scope is 3 or a security module forbids it; set it to 1",
        )
    why = os.strerror(errno) if errno else "its memory is not where it said"
    return MachineFailed(f"the memory of QEMU's process could not be read: {why}")
