"""Capture a paused QEMU process: everything needed by another process to continue.

The guest may own QEMU, so everything said by QEMU and the kernel about the process is hostile. The capture is
data for a process in the same kind of jail. bough trusts only the numbers of the descriptors passed by bough.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bough.errors import HostLacks, MachineFailed
from bough.forks.process_image.captured import IMAGE, Area, CapturedProcess, Descriptor
from bough.forks.process_image.identifiers import Identifiers
from bough.forks.process_image.trace import Stopped, Thread, stopped
from bough.qemu.nic import is_card_socket
from bough.qemu.process_start import MEMORY
from bough.qemu.ram import PAGE_BYTES, Template, private_pages

_PROT = {"r": 1, "w": 2, "x": 4}
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x02, 0x20, 0x4000
#: Smaller holes become part of the image: each mapping costs the loader a microsecond.
_SMALLEST_HOLE_BYTES = 64 << 10
#: Room for growth of the first stack: Linux's limit (RLIMIT_STACK).
_STACK_BYTES = 8 << 20
#: Size of the part of struct pthread that holds the thread's number.
_PTHREAD_BYTES = 2048
_READ_BYTES = 4 << 20
_MOST_IMAGE_BYTES = 512 << 20
_MOST_THREADS = 320
_SHORTEST_FORM_BYTES = 6
#: The loader's own descriptors, up to END_SLOT: the most that a process of bough may have (waiter.sh).
FIRST_SLOT, END_SLOT = 900, 1024
#: Words of a line of /proc/PID/net/unix.
_INODE_WORD, _PATH_WORD = 6, 7
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_libc = ctypes.CDLL(None)
_libc.memmem.restype = ctypes.c_void_p
_libc.memmem.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]


@dataclass(frozen=True)
class _Line:
    """A line of /proc/PID/maps (proc(5))."""

    start: int
    end: int
    permissions: str
    offset: int
    is_file: bool
    path: str

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def protection(self) -> int:
        return sum(_PROT.get(letter, 0) for letter in self.permissions)


def capture(
    pid: int,
    identifiers: Identifiers,
    fit: tuple[str, ...],
    given: Mapping[str, int],
    more: Mapping[str, tuple[int, ...]],
) -> CapturedProcess:
    """Capture a process without a client, with paused vCPUs, and with guest memory equal to the template.

    Kill the process afterwards. Blocks. The calling thread traces the process and must end soon: after an
    error, its end releases the process.

    Args:
        given: name -> number of the descriptors passed by bough.
        more: form of an identifier -> further addresses, in the guest's memory.

    Raises:
        MachineFailed: the process is gone, is busy, or cannot be captured in full.
        HostLacks: the host forbids tracing.
    """
    if any(len(form) < _SHORTEST_FORM_BYTES for form in identifiers.forms().values()):
        raise MachineFailed("its ids are too short to be told from what else QEMU has in its memory")
    with stopped(pid) as process:
        threads = process.threads()
        if len(threads) > _MOST_THREADS:
            raise MachineFailed(f"QEMU has {len(threads)} threads")
        descriptors = tuple(_read_descriptors(pid, {number: name for name, number in given.items()}))
        lines = _read_lines(pid)
        image, areas = _read_image(process, lines)
        return CapturedProcess(
            identifiers=identifiers,
            fit=fit,
            image=image,
            areas=areas,
            files=_look_at_files(areas),
            kernel_areas=tuple((line.start, line.length, line.path) for line in lines if _is_kernels(line)),
            descriptors=descriptors,
            threads=tuple(threads),
            tid_offset=_find_tid_offset(process, threads),
            signal_actions=tuple(process.signal_actions()),
            places=_find(image, areas, identifiers, more),
        )


def look_at_file(path: str) -> tuple[int, int, int]:
    """Return the identity of a file. A replacement by a distribution changes the identity.

    Raises MachineFailed: the file is gone.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise MachineFailed(f"QEMU's {path} cannot be looked at: {error}") from error
    return status.st_ino, status.st_size, status.st_mtime_ns


def _look_at_files(areas: tuple[Area, ...]) -> dict[str, tuple[int, int, int]]:
    sources = {area.source for area in areas if area.source not in (None, IMAGE, MEMORY)}
    return {source: look_at_file(source) for source in sources if source is not None}


def _read_lines(pid: int) -> list[_Line]:
    lines = []
    for text in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
        addresses, permissions, offset, _, inode, *path = text.split(None, 5)
        start, end = (int(part, 16) for part in addresses.split("-"))
        name = path[0] if path else ""
        lines.append(_Line(start, end, permissions, int(offset, 16), inode != "0", name))
    return lines


def _is_kernels(line: _Line) -> bool:
    return line.path.startswith("[v") and line.path != "[vsyscall]"


def _read_image(process: Stopped, lines: list[_Line]) -> tuple[Template, tuple[Area, ...]]:
    descriptor = os.memfd_create("bough-process", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        areas: list[Area] = []
        position = 0
        for line in lines:
            if line.path.startswith("[v"):
                continue
            if line.permissions[3] != "p":
                raise MachineFailed(f"QEMU shares memory: {line.path[:100]!r}")
            for area in _areas_of(process, line, position):
                areas.append(area)
                if area.source == IMAGE:
                    _copy(process, area, descriptor)
                    position += area.length
            if position > _MOST_IMAGE_BYTES:
                raise MachineFailed("QEMU's own memory is too large to be kept")
        os.ftruncate(descriptor, position)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return Template(descriptor, position), tuple(areas)


def _areas_of(process: Stopped, line: _Line, position: int) -> Iterator[Area]:
    """Return the areas of a mapping; `position` is the start of its bytes in the image."""
    if "memfd:bough-memory" in line.path:
        flags = _MAP_PRIVATE | _MAP_NORESERVE
        yield Area(line.start, line.length, line.protection, flags, MEMORY, line.offset)
        return
    own = [] if line.permissions.startswith("---") else private_pages(process.pid, line.start, line.length)
    if line.is_file:
        is_clean = not own and not line.path.endswith(" (deleted)")
        source, offset = (line.path, line.offset) if is_clean else (IMAGE, position)
        yield Area(line.start, line.length, line.protection, _MAP_PRIVATE, source, offset)
        return
    below = _STACK_BYTES if line.path == "[stack]" else 0
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
    yield Area(line.start - below, line.length + below, line.protection, flags)
    for start, length in _joined(own):
        yield Area(line.start + start, length, line.protection, _MAP_PRIVATE, IMAGE, position)
        position += length


def _joined(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, length in extents:
        if joined and start - sum(joined[-1]) < _SMALLEST_HOLE_BYTES:
            joined[-1] = (joined[-1][0], start + length - joined[-1][0])
        else:
            joined.append((start, length))
    return joined


def _copy(process: Stopped, area: Area, descriptor: int) -> None:
    done = 0
    while done < area.length:
        data = process.read(area.start + done, min(_READ_BYTES, area.length - done))
        done += os.pwrite(descriptor, data, area.offset + done)


def _read_descriptors(pid: int, names: dict[int, str]) -> Iterator[Descriptor]:
    folder = Path(f"/proc/{pid}/fd")
    numbers = sorted(int(path.name) for path in folder.iterdir())
    bound = _read_card_sockets(pid)
    if numbers[-1] >= FIRST_SLOT:
        raise MachineFailed(f"QEMU has an open file of the number {numbers[-1]}")
    for number in numbers:
        if number <= 2:  # the waiter of the fork chooses the output
            continue
        link = str((folder / str(number)).readlink())
        told = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
        flags = int(_told(told, r"^flags:\s*([0-7]+)$"), 8)
        if number in names and names[number] != MEMORY:
            yield Descriptor(number, "given", flags, names[number])
        elif link in bound:
            yield Descriptor(number, "bound", flags, bound[link])
        elif link.startswith("/memfd:bough-memory"):
            yield Descriptor(number, MEMORY, flags)
        elif link == "anon_inode:[eventfd]":
            if int(_told(told, r"^eventfd-count:\s*([0-9a-f]+)$"), 16):
                raise MachineFailed("QEMU is just being woken")
            yield Descriptor(number, "eventfd", flags)
        elif link == "anon_inode:[signalfd]":
            yield Descriptor(number, "signalfd", flags, _told(told, r"^sigmask:\s*([0-9a-f]+)$"))
        elif link == "anon_inode:[eventpoll]":
            watched = re.findall(
                r"^tfd:\s*(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)", told, re.MULTILINE
            )
            yield Descriptor(
                number, "epoll", flags, watched=tuple((int(n), int(e, 16), int(d, 16)) for n, e, d in watched)
            )
        elif link.startswith("/") and not link.startswith("/memfd:") and not link.endswith(" (deleted)"):
            yield Descriptor(number, "file", flags, link, locks=tuple(_locks(told)))
        else:
            raise MachineFailed(f"QEMU has open what cannot be kept: {link[:100]!r}")


def _read_card_sockets(pid: int) -> dict[str, str]:
    """Return link in /proc/PID/fd -> path in the jail, of the sockets that QEMU has bound at switches."""
    found = {}
    for line in Path(f"/proc/{pid}/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
        # Num: RefCount Protocol Flags Type St Inode Path; most sockets have no path.
        words = line.split(None, _PATH_WORD)
        if len(words) > _PATH_WORD and is_card_socket(words[_PATH_WORD]):
            found[f"socket:[{words[_INODE_WORD]}]"] = words[_PATH_WORD]
    return found


def _locks(told: str) -> Iterator[tuple[bool, int, int]]:
    pattern = r"^lock:\s*\S+ OFDLCK\s+\S+\s+(READ|WRITE)\s+\S+\s+\S+\s+(\d+)\s+(\d+)$"
    for kind, first, last in re.findall(pattern, told, re.MULTILINE):
        yield kind == "WRITE", int(first), int(last) - int(first) + 1


def _told(text: str, pattern: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise HostLacks("this host's /proc does not tell what is open")
    return found[1]


def _find_tid_offset(process: Stopped, threads: list[Thread]) -> int:
    """Return the single offset with each thread's number."""
    found: set[int] | None = None
    for thread in threads:
        block = process.read(thread.registers["fs_base"], _PTHREAD_BYTES)
        here = {at for at, (value,) in enumerate(struct.iter_unpack("=i", block)) if value == thread.inner_id}
        found = here if found is None else found & here
    if found is None or len(found) != 1:
        raise MachineFailed("this C library's threads are not as they are known here")
    return found.pop() * 4


def _find(
    image: Template, areas: tuple[Area, ...], identifiers: Identifiers, more: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Find the identifiers, outside of translated code, which is half of all memory and contains the guest's
    numbers.

    Raises MachineFailed: an identifier is missing.
    """
    kept = [area for area in areas if area.source == IMAGE and not area.protection & _PROT["x"]]
    forms = identifiers.forms()
    found = {name: list(more.get(name, ())) for name in forms}
    with mmap.mmap(image.fileno(), image.size_bytes, mmap.MAP_PRIVATE) as content:
        anchor = ctypes.c_char.from_buffer(content)
        for area in kept:
            begin = ctypes.addressof(anchor) + area.offset
            for name, form in forms.items():
                found[name] += (area.start + at for at in _search(begin, area.length, form))
        del anchor
    places = {name: tuple(addresses) for name, addresses in found.items()}
    for name in identifiers.needed:
        if not places[name]:
            raise MachineFailed(f"QEMU's {name} is nowhere in its memory")
    return places


def _search(begin: int, length: int, form: bytes) -> Iterator[int]:
    """Search with the C library, without the GIL."""
    at = begin
    while at := _libc.memmem(at, begin + length - at, form, len(form)) or 0:
        yield at - begin
        at += 1


assert PAGE_BYTES == 4096  # the loader relies on it
