"""The format of a project's bundle: the bundles of its machines behind a manifest. Pure.

    head        8 bytes, version u32, length u32, manifest (JSON), its SHA-256
    members     for each machine, in the order of the manifest: pieces of its bundle (length u32, bytes), and
                the length 0

All numbers are little-endian. The format of a machine's bundle is in bundle.py. Each such bundle has its own
checksums. A bundle may be hostile.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from bough.bundle import Source, read_checked_manifest, read_exactly
from bough.errors import BadBundle

MAGIC = b"\x89BOUGHP\n"
VERSION = 1
_HEAD = struct.Struct("<8sII")
_LENGTH = struct.Struct("<I")
_MOST_PIECE_BYTES = 16 << 20


def write_project_bundle(manifest: dict[str, Any]) -> bytes:
    """Return the head of a bundle. The members follow."""
    text = json.dumps(manifest, indent=1).encode() + b"\n"
    return _HEAD.pack(MAGIC, VERSION, len(text)) + text + hashlib.sha256(text).digest()


def write_member(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bundle of a machine as a member."""
    for piece in pieces:
        for at in range(0, len(piece), _MOST_PIECE_BYTES):
            part = piece[at : at + _MOST_PIECE_BYTES]
            yield _LENGTH.pack(len(part)) + part
    yield _LENGTH.pack(0)


def read_project_manifest(source: Source) -> dict[str, Any]:
    """Read the head behind MAGIC. Only the form of the manifest has been checked.

    Raises:
        BadBundle: the file is truncated, was altered, or has a newer version.
    """
    manifest, _ = read_checked_manifest(source, VERSION, "project")
    return manifest


class Member:
    """The bundle of a machine inside a project's bundle, as a source to read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = 0
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; nothing at the end of the member. Raises BadBundle."""
        if self._ended or size <= 0:
            return b""
        if self._left == 0:
            (self._left,) = _LENGTH.unpack(read_exactly(self._source, _LENGTH.size))
            if self._left > _MOST_PIECE_BYTES:
                raise BadBundle("the bundle was altered: a piece of a machine is too large")
            if self._left == 0:
                self._ended = True
                return b""
        data = self._source.read(min(size, self._left))
        if not data:
            raise BadBundle(
                "the bundle is truncated", hint="copy the file again, or export the project again"
            )
        self._left -= len(data)
        return data


class Peeked:
    """A source whose first bytes were read already."""

    def __init__(self, first: bytes, source: Source) -> None:
        self._first = first
        self._source = source

    def read(self, size: int, /) -> bytes:
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
            return data
        return self._source.read(size)


def read_magic(source: Source) -> bytes:
    """Return the first 8 bytes, or fewer at the end of the stream."""
    data = b""
    while len(data) < len(MAGIC) and (more := source.read(len(MAGIC) - len(data))):
        data += more
    return data
