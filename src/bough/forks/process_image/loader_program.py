"""Render the program of the loader: steps turning the loader into a captured process with other files and
ids.

A program has a header, steps, threads and their data, in words of 64 bits; see loader.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from bough.errors import MachineFailed
from bough.forks.process_image.capture import END_SLOT, FIRST_SLOT, look_at_file
from bough.forks.process_image.captured import IMAGE, Area, CapturedProcess, Descriptor
from bough.forks.process_image.identifiers import Identifiers
from bough.forks.process_image.trace import REGISTERS, Thread
from bough.qemu.process_start import MEMORY
from bough.qemu.syscalls import render_sandbox

(
    _MAP, _COPY, _CLOSE, _OPEN, _EVENTFD, _SIGNALFD, _EPOLL, _WATCH, _STATUS, _LOCK, _ACTION, _WRITE, _FILTER,
    _KERNEL_ASIDE, _KERNEL_BACK, _CLEAR, _BOUND,
) = range(1, 18)  # fmt: skip

_MAGIC = 0x3177616874
_HEADER = struct.Struct("=5Q16x")
_STEP = struct.Struct("=7Q")
_THREAD = struct.Struct(f"=8Q16s{len(REGISTERS)}Q")
#: struct sockaddr_un.
_ADDRESS = struct.Struct("=H108s")
_WORD = (1 << 64) - 1

_MAP_FIXED = 0x10
_O_CLOEXEC = 0o2000000
#: O_ACCMODE and O_NONBLOCK: flags for open(2); the other flags are set afterwards.
_OPEN_FLAGS = 0o2004003
_STATUS_FLAGS = 0o6000
_MADE_FLAGS = 0o2004000
#: Slot of the file that is being mapped.
_FILE = "file"
_LAST_DESCRIPTOR = (1 << 31) - 1


def render_program(
    captured: CapturedProcess, identifiers: Identifiers, given: Mapping[str, int], *, sandboxed: bool
) -> bytes:
    """Return the program for a machine with those identifiers.

    Args:
        given: name -> number, in the loader, of the passed descriptors, of IMAGE and of MEMORY.
        sandboxed: install the filter that QEMU would install.

    Raises:
        MachineFailed: a descriptor is missing, or a program or library was replaced.
    """
    captured.identifiers.check_fits(identifiers)
    for path, seen in captured.files.items():
        if look_at_file(path) != seen:
            raise MachineFailed(f"{path} was replaced since its process was captured")
    missing = {d.detail for d in captured.descriptors if d.kind == "given"} - given.keys()
    if missing:
        raise MachineFailed(
            f"the captured process has {', '.join(sorted(missing))}, and this machine has not"
        )
    steps = _Steps()
    # Passed descriptors and mapped files wait above QEMU's numbers until their place is free.
    free = (number for number in range(FIRST_SLOT, END_SLOT) if number not in given.values())
    slots = {name: next(free) for name in (*given, _FILE)}
    for name, number in given.items():
        steps.add(_COPY, number, slots[name], _O_CLOEXEC)
    steps.add(_CLOSE, 3, FIRST_SLOT - 1)
    _clear(steps, captured)
    _map(steps, captured.areas, slots)
    for start, length, _ in captured.kernel_areas:
        steps.add(_KERNEL_BACK, start - captured.kernel_areas[0][0], length, start)
    for descriptor in captured.descriptors:
        _open(steps, descriptor, slots, captured.identifiers.translate(descriptor.detail, identifiers))
    for descriptor in captured.descriptors:
        for watched, events, data in descriptor.watched:
            steps.add(_WATCH, descriptor.number, watched, events, data)
    steps.add(_CLOSE, FIRST_SLOT, _LAST_DESCRIPTOR)
    forms = identifiers.forms()
    for name, addresses in captured.places.items():
        for address in addresses:
            steps.add(_WRITE, address, _Data(forms[name]), len(forms[name]))
    for signal, action in captured.signal_actions:
        steps.add(_ACTION, signal, _Data(action))
    if sandboxed:
        sandbox = render_sandbox()
        steps.add(_FILTER, _Data(sandbox), len(sandbox) // 8)
    return steps.render([_render_thread(thread, captured.tid_offset) for thread in captured.threads])


class _Data(bytes):
    """Data that steps point at."""


class _Steps:
    def __init__(self) -> None:
        self._steps: list[tuple[int | _Data, ...]] = []

    def add(self, *words: int | _Data) -> None:
        self._steps.append(words)

    def render(self, threads: list[bytes]) -> bytes:
        first_thread = _HEADER.size + len(self._steps) * _STEP.size
        threads_bytes = b"".join(threads)
        first_data = first_thread + len(threads_bytes)
        steps, data = bytearray(), bytearray()
        for words in self._steps:
            plain = [0] * 7
            for at, word in enumerate(words):
                if isinstance(word, _Data):
                    plain[at] = first_data + len(data)
                    data += word.ljust(-(-len(word) // 8) * 8, b"\0")
                else:
                    plain[at] = word & _WORD
            steps += _STEP.pack(*plain)
        header = _HEADER.pack(_MAGIC, _HEADER.size, len(self._steps), first_thread, len(threads))
        return bytes(header + steps + threads_bytes + data)


def _clear(steps: _Steps, captured: CapturedProcess) -> None:
    """Move the kernel's mappings aside and unmap the rest."""
    vdso = next((start for start, _, name in captured.kernel_areas if name == "[vdso]"), None)
    if vdso is None:
        raise MachineFailed("the captured process has no vdso")
    for start, length, _ in captured.kernel_areas:
        steps.add(_KERNEL_ASIDE, start - vdso, length, start - captured.kernel_areas[0][0])
    steps.add(_CLEAR)


def _map(steps: _Steps, areas: tuple[Area, ...], slots: dict[str, int]) -> None:
    opened: str | None = None
    for area in areas:
        if area.source is None:
            source = -1
        elif area.source in (IMAGE, MEMORY):
            source = slots[area.source]
        else:
            source = slots[_FILE]
            if area.source != opened:
                steps.add(_OPEN, source, _path(area.source), _O_CLOEXEC)
                opened = area.source
        steps.add(
            _MAP, area.start, area.length, area.protection, area.flags | _MAP_FIXED, source, area.offset
        )


def _open(steps: _Steps, descriptor: Descriptor, slots: dict[str, int], path: str) -> None:
    number, flags = descriptor.number, descriptor.flags
    match descriptor.kind:
        case "given":
            steps.add(_COPY, slots[descriptor.detail], number, flags & _O_CLOEXEC)
            steps.add(_STATUS, number, flags & _STATUS_FLAGS)
        case "memory":
            steps.add(_COPY, slots[MEMORY], number, flags & _O_CLOEXEC)
        case "eventfd":
            steps.add(_EVENTFD, number, flags & _MADE_FLAGS)
        case "signalfd":
            steps.add(_SIGNALFD, number, int(descriptor.detail, 16), flags & _MADE_FLAGS)
        case "bound":
            address = _Data(_ADDRESS.pack(socket.AF_UNIX, path.encode(errors="surrogateescape")))
            steps.add(_BOUND, number, address, len(address), flags & _MADE_FLAGS)
        case "epoll":
            steps.add(_EPOLL, number, flags & _O_CLOEXEC)
        case _:
            steps.add(_OPEN, number, _path(path), flags & _OPEN_FLAGS)
    for is_writing, start, length in descriptor.locks:
        steps.add(_LOCK, number, int(is_writing), start, length)


def _path(path: str) -> _Data:
    return _Data(path.encode(errors="surrogateescape") + b"\0")


def _render_thread(thread: Thread, tid_offset: int) -> bytes:
    base = thread.registers["fs_base"]
    words = (base + tid_offset, base, *thread.robust, *thread.rseq, thread.signal_mask)
    return _THREAD.pack(*words, thread.name, *(thread.registers[name] & _WORD for name in REGISTERS))
