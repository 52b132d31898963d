"""The two ends of a copy: `send`, `Receiver`, and `main`, which runs in the guest.

The same code runs at both ends, so both directions have the same rules. The client sends this program to
the guest, so an image of any age runs the right version. The guest needs Python 3.7 or newer.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from bough.client.copying.archive import CHUNK, Entry, Reader
from bough.client.copying.pack import Packer
from bough.client.copying.report import CopyReport, Fault
from bough.client.copying.unnamed_file import write_all
from bough.client.copying.unpack import Unpacker, parse_name
from bough.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Errors after which the next file would fail as well.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


# -- sending ------------------------------------------------------------------------------------------


def name_of(source: bytes) -> bytes:
    """Return the name of a copy of `source` in a directory; b"" for its content (".", "..", "/", "dir/.")."""
    name = source.rstrip(b"/").rpartition(b"/")[2]
    return b"" if name in (b".", b"..") else name


def check_source(path: bytes) -> os.stat_result:
    """Raise Fault if `path` cannot be copied."""
    try:
        info = os.stat(path)  # noqa: PTH116
        if path.endswith(b"/") and not stat.S_ISDIR(info.st_mode):
            raise Fault("not_directory", path)
        if not (stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)):
            raise Fault("special", path)
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        return info
    except FileNotFoundError:
        raise Fault("missing", path) from None
    except OSError as error:
        raise Fault("unreadable", path, error.strerror) from None


def send(sources: list[bytes], packer: Packer) -> None:
    """Send all `sources`, with numbers as names: the receiver knows the names.

    Raises:
        OSError: the stream cannot be written, or a source cannot be read.
    """
    for number, source in enumerate(sources):
        packer.add(source, b"%d" % number)
    packer.close()


# -- receiving ----------------------------------------------------------------------------------------


class Receiver:
    """Writes a stream of entries to the places that `cp -r` would choose.

    Args:
        destination: a path from the user. Links in this path are followed, links below are not.
        names: names of the sources, in their order; see `name_of`.
        begin: called with the first entry when nothing prevents the copy.
    """

    def __init__(
        self,
        destination: bytes,
        names: list[bytes],
        count: Callable[[int], None] = lambda _: None,
        begin: Callable[[Entry], None] = lambda _: None,
        *,
        owner: bool = False,
    ) -> None:
        self.notes = CopyReport()
        self.destination = destination
        self._names = names
        self._count = count
        self._begin = begin
        self._owner = owner
        self._unpacker: Unpacker | None = None
        self._base = destination
        #: The place of each source below the unpacker's root, and its kind.
        self._tops: list[tuple[tuple[bytes, ...], str]] = []
        self._refused: set[tuple[bytes, ...]] = set()
        self._into = os.path.isdir(destination)  # noqa: PTH112

    def receive(self, reader: Reader) -> None:
        """Receive the stream. Raises Fault if the copy cannot begin or go on; complete entries stay."""
        if not self._into and (len(self._names) > 1 or self.destination.endswith(b"/")):
            raise Fault("not_directory", self.destination)
        try:
            entry = reader.next()
            while entry is not None:
                self._take(reader, entry)
                entry = reader.next()
            if len(self._tops) != len(self._names):
                raise ProtocolError("the guest sent less than was requested")
            if self._unpacker is not None:
                self._unpacker.finish()
        finally:
            if self._unpacker is not None:
                self._unpacker.__exit__()

    def _take(self, reader: Reader, entry: Entry) -> None:
        number, rest = self._split(entry.path)
        if number == len(self._tops):
            if rest:
                raise ProtocolError("the guest sent an entry below a directory that it did not send")
            if not self._place(reader, entry, number):
                return
        top, kind = self._tops[number]
        if rest and kind != "directory":
            raise ProtocolError("the guest sent an entry below a file")
        parts = top + rest
        if self._refused and any(parts[:end] in self._refused for end in range(len(parts) + 1)):
            return
        shown = b"/".join((self._base.rstrip(b"/"), *parts))
        target = None
        if entry.kind == "again":
            place, below = self._split(entry.link)
            target = self._tops[place][0] + below if place < len(self._tops) else ()
        self._extract(reader, entry, parts, shown, target)

    def _extract(
        self,
        reader: Reader,
        entry: Entry,
        parts: tuple[bytes, ...],
        shown: bytes,
        target: tuple[bytes, ...] | None,
    ) -> None:
        assert self._unpacker is not None
        try:
            self._unpacker.extract(reader, entry, parts, shown, target)
        except OSError as error:
            if error.errno in _FATAL:
                raise Fault(_kind(error), shown, error.strerror) from None
            if entry.kind == "directory" and len(self._refused) < 10_000:
                self._refused.add(parts)
            self.notes.fail(shown, (error.strerror or str(error)).replace("Not a directory: ", ""))

    def _split(self, path: bytes) -> tuple[int, tuple[bytes, ...]]:
        """Return the number of the source, and the parts below."""
        parts = parse_name(path)
        if not parts or not parts[0].isdigit() or len(parts[0]) > 9:
            raise ProtocolError(f"the guest sent {path[:60]!r}, which was not requested")
        number = int(parts[0])
        if number > len(self._tops) or number >= len(self._names):
            raise ProtocolError(f"the guest sent {path[:60]!r}, which was not requested")
        return number, parts[1:]

    def _place(self, reader: Reader, entry: Entry, number: int) -> bool:
        """Choose the place of a source. False: a device or pipe, which now has the content."""
        if entry.kind not in ("directory", "file") and not (entry.kind == "again" and number):
            raise ProtocolError(f"the guest sent a {entry.kind} in the place of a file")
        name = self._names[number]
        if not name and entry.kind != "directory" and self._into:
            raise ProtocolError("the guest sent another entry in the place of a directory")
        if self._into:
            self._base, top = self.destination, (name,) if name else ()
        else:
            path = self._resolve(entry)
            if _is_special(path):
                self._begin(entry)
                self._write_through(reader, entry, path)
                self._tops.append(((), entry.kind))
                return False
            self._base, base = os.path.split(path)
            top = (base,)
            if not os.path.isdir(self._base or b"."):  # noqa: PTH112
                raise Fault("no_parent", self._base)
        if self._unpacker is None:
            self._begin(entry)
            root = self._base or b"."
            self._unpacker = Unpacker(root, self._count, owner=self._owner, notes=self.notes)
        self._tops.append((top, entry.kind))
        return True

    def _resolve(self, entry: Entry) -> bytes:
        """Return the path that a destination other than a directory stands for."""
        path = self.destination
        if entry.kind == "directory":
            if os.path.lexists(path):
                raise Fault("not_directory", path)
            return path
        if os.path.islink(path):  # noqa: PTH114
            if not os.path.exists(path):  # noqa: PTH110
                raise Fault("dangling", path)
            if not _is_special(path):  # /dev/stdout leads to a pipe, which has no path
                return os.path.realpath(path)
        return path

    def _write_through(self, reader: Reader, entry: Entry, path: bytes) -> None:
        """Write into a device or a pipe as `cp` does, with zeros for holes."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                at = 0
                for offset, data in reader.content(entry):
                    at = self._fill(descriptor, at, offset)
                    write_all(descriptor, data)
                    at += len(data)
                    self._count(len(data))
                self._fill(descriptor, at, entry.size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Fault(_kind(error), path, error.strerror) from None
        self.notes.files += 1
        self.notes.bytes += entry.size

    def _fill(self, descriptor: int, at: int, end: int) -> int:
        while at < end:
            size = min(CHUNK, end - at)
            write_all(descriptor, b"\0" * size)
            at += size
        return at


def _is_special(path: bytes) -> bool:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _kind(error: OSError) -> str:
    return "no_space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "unwritable"


# -- the end in the guest -----------------------------------------------------------------------------


def main(action: str, paths: list[bytes], names: list[bytes], owner: bool, receiver: int) -> None:
    """Send `paths` to standard output, or receive into paths[0]; report on standard error."""
    notes = CopyReport()
    try:
        if action == "send":
            for path in paths:
                check_source(path)
            with open(1, "wb", CHUNK, closefd=False) as stream:
                send(paths, Packer(stream.write, owner=owner, receiver=receiver, notes=notes))
        else:
            with open(0, "rb", CHUNK, closefd=False) as source:
                end = Receiver(paths[0], names, owner=owner)
                notes = end.notes
                end.receive(Reader(source.read))
    except Fault as fault:
        notes.fault = fault
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        notes.fault = Fault(_kind(error), paths[0], error.strerror or str(error))
    with open(2, "wb", closefd=False) as stream:
        stream.write(notes.render())
    sys.exit(3 if notes.fault else 0)
