"""Find where QEMU keeps the values loaded as marks, and write to these places."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bough.errors import HostLacks, MachineFailed
from bough.forks.process_image.device_state import REQUEST_BITS, CpuWords
from bough.qemu.ram import private_pages

_READ_BYTES = 4 << 20
_WORD = struct.Struct("=I")
#: Greatest distance of the second word from the first word.
_NEAR_BYTES = 2048


def find_words(pid: int, marks: Iterable[CpuWords]) -> tuple[CpuWords, ...]:
    """Return the addresses of the marked values. Blocks.

    Raises:
        MachineFailed: the process is gone, or a mark is missing or ambiguous.
        HostLacks: the host forbids reading the process.
    """
    marks = tuple(marks)
    places = {mark.halted: set[int]() for mark in marks}
    pattern = re.compile(b"|".join(re.escape(_WORD.pack(halted)) for halted in places))
    with _memory(pid, os.O_RDONLY) as memory:
        for start, length in _own_areas(pid):
            for at in range(start, start + length, _READ_BYTES):
                data = os.pread(memory, min(_READ_BYTES, start + length - at), at)
                for found in pattern.finditer(data):
                    if found.start() % _WORD.size == 0:
                        places[_WORD.unpack(found[0])[0]].add(at + found.start())
        if any(len(found) != 1 for found in places.values()):
            raise MachineFailed(f"what QEMU keeps of its vCPUs is in {[*map(len, places.values())]} places")
        return tuple(_find_request(memory, places[mark.halted].pop(), mark) for mark in marks)


def put_words(pid: int, places: Iterable[CpuWords], words: Iterable[CpuWords]) -> None:
    """Write the words. Interrupt requests that QEMU has made meanwhile stay. The vCPUs must be paused. Raises
    as `find_words`.
    """
    with _memory(pid, os.O_RDWR) as memory:
        for place, word in zip(places, words, strict=True):
            (asked,) = _WORD.unpack(os.pread(memory, _WORD.size, place.interrupt_request))
            request = asked & REQUEST_BITS | word.interrupt_request
            os.pwrite(memory, _WORD.pack(request), place.interrupt_request)
            os.pwrite(memory, _WORD.pack(word.halted), place.halted)


def _find_request(memory: int, halted: int, mark: CpuWords) -> CpuWords:
    """Find the second word near the first one, in the same struct."""
    first = halted - _NEAR_BYTES
    data = os.pread(memory, 2 * _NEAR_BYTES, first)
    found = [
        first + at * _WORD.size
        for at, (word,) in enumerate(_WORD.iter_unpack(data))
        if word & ~REQUEST_BITS == mark.interrupt_request
    ]
    if len(found) != 1:
        raise MachineFailed(f"what QEMU asks of a vCPU is in {len(found)} places")
    return CpuWords(halted, found[0])


@contextmanager
def _memory(pid: int, flags: int) -> Iterator[int]:
    try:
        descriptor = os.open(f"/proc/{pid}/mem", flags | os.O_CLOEXEC)
    except PermissionError as error:
        raise HostLacks(f"this host does not let bough look into its own QEMU: {error}") from error
    except OSError as error:
        raise MachineFailed("QEMU is gone") from error
    try:
        yield descriptor
    except OSError as error:
        raise MachineFailed(f"QEMU's memory cannot be looked at: {error}") from error
    finally:
        os.close(descriptor)


def _own_areas(pid: int) -> Iterator[tuple[int, int]]:
    """Return QEMU's own allocations: writable memory without a file."""
    for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
        addresses, permissions, _, _, inode, *_ = line.split(None, 5)
        if permissions == "rw-p" and inode == "0":
            start, end = (int(part, 16) for part in addresses.split("-"))
            for offset, length in private_pages(pid, start, end - start):
                yield start + offset, length
