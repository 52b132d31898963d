"""The note on an exported disk: an import recognizes the guest's agent by the note.

A qcow2 has the note in a header extension (QEMU docs/interop/qcow2.txt). Other programs ignore the extension.
An OVA has the note in a property of the description. The note is not trusted: anybody may have written a
note. The note names no file and no command. It says whether to wait for an agent, and what to show in lists.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bough.spec.disk import Bus
from bough.spec.nic import Model

MOST_NOTE_BYTES = 2048
#: Type of the header extension in a qcow2: "boug". No other program is known to use it.
EXTENSION = 0x626F7567
_CLASS = "bough"
_KEY = "note"
_END = bytes(8)
_MOST_EXTENSIONS = 64


class ExportNote(BaseModel):
    """The content of the note.

    Attributes:
        bough: version of the note.
        agent: the guest has bough's agent, which starts at boot.
        agent_disk: the guest starts the agent from the agent disk. Left out if false: bough 0.1 reads no note
            with unknown fields.
        disks: number of the machine's disks. An OVA contains all of them.
        disk_bus, nic_model, agent_port: the hardware of the machine. Left out if the guest has virtio.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    bough: Literal[1] = 1
    agent: bool
    agent_disk: bool = False
    os: str = Field(default="unknown", max_length=40, pattern=r"^[A-Za-z0-9._+-]*$")
    version: str = Field(default="", max_length=40, pattern=r"^[A-Za-z0-9._+~-]*$")
    disks: int = Field(default=1, ge=1, le=17)
    disk_bus: Bus = "virtio"
    nic_model: Model = "virtio"
    agent_port: Literal["virtio", "serial"] = "virtio"

    def render(self) -> str:
        plain = {"agent_disk": False, "disk_bus": "virtio", "nic_model": "virtio", "agent_port": "virtio"}
        left_out = {name for name, value in plain.items() if getattr(self, name) == value}
        return self.model_dump_json(exclude=left_out)


def parse_note(text: bytes | str | None) -> ExportNote | None:
    """Return the note; None if the note is missing, damaged, or of a newer bough. Such a disk counts as
    foreign.
    """
    if not text or len(text) > MOST_NOTE_BYTES:
        return None
    try:
        return ExportNote.model_validate_json(text)
    except ValidationError:
        return None


def note_property(note: ExportNote) -> tuple[str, str, str]:
    """Return class, key and value of the OVF property (DSP0243, ProductSection)."""
    return _CLASS, _KEY, note.render()


def is_note(section: str, key: str) -> bool:
    return (section, key) == (_CLASS, _KEY)


def write_note(qcow2: Path, note: ExportNote) -> None:
    """Write the note into the header of a qcow2 of version 3 that qemu-img has just written.

    Raises:
        ValueError: the header has no room for the note.
    """
    data = note.render().encode()
    extension = struct.pack(">II", EXTENSION, len(data)) + data + bytes(-len(data) % 8)
    with qcow2.open("r+b") as stream:
        place, end = _end_of_extensions(stream)
        if place is None or place + len(extension) + len(_END) > end:
            raise ValueError("the header has no room")
        stream.seek(place)
        stream.write(extension + _END)
        stream.flush()
        os.fsync(stream.fileno())


def read_note(stream: BinaryIO) -> ExportNote | None:
    """Read the note of a qcow2. formats.py must have checked the header before."""
    for kind, place, length in _extensions(stream):
        if kind == EXTENSION and length <= MOST_NOTE_BYTES:
            stream.seek(place)
            return parse_note(stream.read(length))
    return None


def _end_of_extensions(stream: BinaryIO) -> tuple[int | None, int]:
    """Return the end of the header extensions, and the end of the space for extensions.

    The first cluster's end limits the space. The first value is None if the file has no version 3 header.
    """
    stream.seek(0)
    head = stream.read(104)
    if len(head) < 104 or struct.unpack_from(">I", head, 4)[0] != 3:
        return None, 0
    (bits,) = struct.unpack_from(">I", head, 20)
    place: int = struct.unpack_from(">I", head, 100)[0]
    for _, start, length in _extensions(stream):
        place = start + length + -length % 8
    return place, 1 << min(bits, 21)


def _extensions(stream: BinaryIO) -> list[tuple[int, int, int]]:
    """Return type, offset and length of each extension (docs/interop/qcow2.txt, "Header extensions")."""
    stream.seek(0)
    head = stream.read(104)
    if len(head) < 104 or struct.unpack_from(">I", head, 4)[0] != 3:
        return []
    (bits,), (place,) = struct.unpack_from(">I", head, 20), struct.unpack_from(">I", head, 100)
    found: list[tuple[int, int, int]] = []
    while len(found) < _MOST_EXTENSIONS and place + 8 <= 1 << min(bits, 21):
        stream.seek(place)
        words = stream.read(8)
        if len(words) < 8:
            break
        kind, length = struct.unpack(">II", words)
        if kind == 0:
            break
        found.append((kind, place + 8, length))
        place += 8 + length + -length % 8
    return found
