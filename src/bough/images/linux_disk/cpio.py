"""Initrds: the names of the files in one, as the kernel reads it, and the archive of a new one.

An initrd is a row of cpio archives ("newc"), each plain or compressed. Zeros may stand between them. See
Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: Modes of entries for `render_archive`.
DIRECTORY, PROGRAM, FILE, LINK = 0o040755, 0o100755, 0o100644, 0o120777
_HEADER_BYTES = 110
_MAGICS = (b"070701", b"070702")
_END = "TRAILER!!!"
_MOST_NAME = 4096
_MOST_KEPT = 20_000


class BrokenArchive(Exception):
    """The bytes are not a cpio archive."""


class CpioNames:
    """Collects names in archives that come in pieces.

    Args:
        keeps: whether to keep a name.

    Attributes:
        names: the kept names so far.
        rest: after the last archive, the first bytes of something else: a compressed archive.
        rest_at: offset of `rest` in what was fed; None inside of an archive.
    """

    def __init__(self, keeps: Callable[[str], object]) -> None:
        self._keeps = keeps
        self.names: list[str] = []
        self.rest = b""
        self.rest_at: int | None = None
        self._buffer = bytearray()
        self._skip = 0
        self._at = 0
        self._is_between = True

    @property
    def is_complete(self) -> bool:
        """All archives so far have ended."""
        return self._is_between and (self.rest_at is not None or not any(self._buffer))

    def feed(self, data: bytes) -> bool:
        """Take the next bytes. Return False if no more are wanted.

        Raises:
            BrokenArchive
        """
        place = 0
        while place < len(data) or self._buffer:
            if self._skip:
                step = min(self._skip, len(data) - place)
                self._skip -= step
                self._at += step
                place += step
                if self._skip or place >= len(data):
                    return True
                continue
            if self._is_between and not self._buffer:
                place = self._skip_zeros(data, place)
            self._buffer += data[place : place + _HEADER_BYTES + _MOST_NAME]
            place += min(len(data) - place, _HEADER_BYTES + _MOST_NAME)
            used = self._parse()
            if used is None:
                return True
            if used < 0:
                return False
            place = self._give_back(used, place)
        return True

    def _skip_zeros(self, data: bytes, place: int) -> int:
        while place < len(data) and data[place] == 0:
            place += 1
            self._at += 1
        return place

    def _give_back(self, used: int, place: int) -> int:
        """Drop the parsed bytes of the buffer. Return the place in the data where reading goes on."""
        place -= len(self._buffer) - used
        self._buffer.clear()
        self._at += used
        return place

    def _parse(self) -> int | None:
        """Parse a header and its name. Return their size; None if bytes are missing; -1 at something else."""
        if len(self._buffer) < 6:
            return None
        if bytes(self._buffer[:6]) not in _MAGICS:
            if not self._is_between:
                raise BrokenArchive
            self.rest, self.rest_at = bytes(self._buffer), self._at
            return -1
        if len(self._buffer) < _HEADER_BYTES:
            return None
        try:
            size = int(self._buffer[54:62], 16)
            name_bytes = int(self._buffer[94:102], 16)
        except ValueError:
            raise BrokenArchive from None
        if not 0 < name_bytes <= _MOST_NAME or len(self.names) >= _MOST_KEPT:
            raise BrokenArchive
        end = _HEADER_BYTES + name_bytes
        if len(self._buffer) < end:
            return None
        name = bytes(self._buffer[_HEADER_BYTES : end - 1]).decode(errors="replace")
        self._is_between = name == _END
        if not self._is_between and self._keeps(name):
            self.names.append(name)
        padded = end + -end % 4
        self._skip = padded - end + size + -size % 4
        return end


def render_archive(entries: Sequence[tuple[str, int, bytes]]) -> bytes:
    """Return an archive of the form "newc".

    Args:
        entries: name, mode and content; of a link, the content is its target.
    """
    ended = [*entries, (_END, 0, b"")]
    return b"".join(_render_entry(number, *entry) for number, entry in enumerate(ended, 1))


def _render_entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = _MAGICS[0] + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
    return header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4)
