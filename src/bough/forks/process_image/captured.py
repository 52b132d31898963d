"""A captured QEMU process as data: memory, mappings, open files and threads."""

from __future__ import annotations

from dataclasses import dataclass, field

from bough.forks.process_image.identifiers import Identifiers
from bough.forks.process_image.trace import Thread
from bough.qemu.ram import Template

#: The host architecture of the loader and of trace.py's registers.
HOST = "x86_64"

#: Source of a mapping's bytes: None (zeros), the process image, the memory of the guest's snapshot, or a
#: file.
IMAGE = "image"


@dataclass(frozen=True)
class Area:
    """A mapping for mmap(2); `source` is None, IMAGE, MEMORY or a path."""

    start: int
    length: int
    protection: int
    flags: int
    source: str | None = None
    offset: int = 0


@dataclass(frozen=True)
class Descriptor:
    """Attributes:
    kind: "given" (passed by bough, by its name), "memory", "eventfd", "signalfd", "epoll", "file" or "bound"
        (a card's datagram socket, bound in the directory of the card's port).
    flags: flags of fcntl(2), with O_CLOEXEC.
    detail: the name, the signal mask, or the path in the jail.
    locks: (exclusive, start, length) of the open file (fcntl(2), F_OFD_SETLK).
    watched: for an epoll: (descriptor, events, data).
    """

    number: int
    kind: str
    flags: int
    detail: str = ""
    locks: tuple[tuple[bool, int, int], ...] = ()
    watched: tuple[tuple[int, int, int], ...] = ()


@dataclass(eq=False)
class CapturedProcess:
    """Attributes:
    identifiers: of the machine that the process belonged to.
    fit: see `fit_of`.
    image: sealed; all private memory except the guest's.
    files: path -> (inode, size, mtime in ns) of each mapped file.
    kernel_areas: start, length and name of the kernel's mappings (vdso(7)).
    tid_offset: offset of the thread's number in the C library's thread struct.
    places: form of an identifier -> its addresses.
    """

    identifiers: Identifiers
    fit: tuple[str, ...]
    image: Template
    areas: tuple[Area, ...]
    files: dict[str, tuple[int, int, int]]
    kernel_areas: tuple[tuple[int, int, str], ...]
    descriptors: tuple[Descriptor, ...]
    threads: tuple[Thread, ...]
    tid_offset: int
    signal_actions: tuple[tuple[int, bytes], ...]
    places: dict[str, tuple[int, ...]] = field(default_factory=dict)
