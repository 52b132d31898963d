"""Trees as a stream of entries: modes, times to the nanosecond, links, holes, extended attributes.

Runs at the sending end of a copy, which may be the guest: standard library only.
"""

from __future__ import annotations

import errno
import os
import stat

from bough.client.copying.archive import (
    BLOCK,
    CHUNK,
    MOST_SEGMENTS,
    Entry,
    padding,
    render_end,
    render_entry,
)
from bough.client.copying.report import CopyReport
from bough.client.copying.tree_walk import DIRECTORY, TreeWalk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Write = Callable[[bytes], object]
    Count = Callable[[int], None]

#: A file in /proc claims to be empty. At most this many bytes of such a file are read.
_MOST_UNKNOWN = 16 << 20
_MOST_XATTR_BYTES = 256 * 1024
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe instead of a file does not block the open


class Packer:
    """Writes entries with `write`. Entries that cannot be sent are in `notes`; the others are sent.

    Args:
        owner: the other end keeps owners, set-id bits and capabilities; else their loss is noted.
        receiver: the user id of the unpacking process.
    """

    def __init__(
        self,
        write: Write,
        count: Count = lambda _: None,
        *,
        owner: bool = False,
        receiver: int = 0,
        notes: CopyReport | None = None,
    ) -> None:
        self._write = write
        self._count = count
        self._owner = owner
        #: Files of the sender become files of the receiver. Files of other users lose their owner.
        self._expected = (os.geteuid(), receiver)
        self._seen: dict[tuple[int, int], bytes] = {}
        self.notes = notes or CopyReport()

    def add(self, path: bytes, name: bytes) -> None:
        """Send `path` and everything below as `name`. A link at the top is followed, a link below never.

        Raises:
            OSError: `path` itself cannot be read.
        """
        info = os.stat(path)  # noqa: PTH116
        if stat.S_ISDIR(info.st_mode):
            self._add_tree(path, name)
        elif stat.S_ISREG(info.st_mode):
            self._add_file(path, None, path, name, info)
        else:
            self.notes.fail(path, "it is neither a file nor a directory")

    def close(self) -> None:
        """Write the end of the archive. The stream itself stays open."""
        self._write(render_end())

    def _add_tree(self, path: bytes, name: bytes) -> None:
        walk = TreeWalk(os.open(path, DIRECTORY & ~os.O_NOFOLLOW))
        place = path.rstrip(b"/") or b""
        try:
            self._send_directory(walk.top, name, path)
            left = [_names(walk.top)]
            parts = [name]
            shown = [place]
            while left:
                if left[-1]:
                    inner = left[-1].pop()
                    shown.append(inner)
                    parts.append(inner)
                    if self._add_inner(walk, inner, b"/".join(parts), shown):
                        left.append(self._list(walk.top, shown))
                        continue
                elif len(left) > 1:
                    left.pop()
                    walk.up()
                else:
                    break
                shown.pop()
                parts.pop()
        finally:
            walk.close()

    def _add_inner(self, walk: TreeWalk, inner: bytes, name: bytes, shown: list[bytes]) -> bool:
        """Send one entry of the current directory. Return True if `walk` has entered it."""
        at = walk.top
        try:
            info = os.stat(inner, dir_fd=at, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                self._send_directory(walk.down(inner), name, b"/".join(shown))
                return True
            if stat.S_ISREG(info.st_mode):
                self._add_file(inner, at, b"/".join(shown), name, info)
            elif stat.S_ISLNK(info.st_mode):
                entry = self._entry("link", name, info, b"/".join(shown))
                entry.link = os.readlink(inner, dir_fd=at)
                self._send(entry)
            else:
                self.notes.add(_kind(info.st_mode), b"/".join(shown))
        except OSError as error:
            if isinstance(error, BrokenPipeError) or error.errno in (errno.EIO, errno.EMFILE):
                raise
            self.notes.fail(b"/".join(shown), error.strerror or str(error))
        return False

    def _list(self, descriptor: int, shown: list[bytes]) -> list[bytes]:
        try:
            return _names(descriptor)
        except OSError as error:
            self.notes.fail(b"/".join(shown), error.strerror)
            return []

    def _send_directory(self, descriptor: int, name: bytes, shown: bytes) -> None:
        entry = self._entry("directory", name, os.fstat(descriptor), shown)
        self._add_xattrs(entry, descriptor, shown)
        self._write(render_entry(entry))

    def _send(self, entry: Entry) -> None:
        self._write(render_entry(entry))
        self.notes.files += 1

    def _add_file(self, path: bytes, at: int | None, shown: bytes, name: bytes, info: os.stat_result) -> None:
        entry = self._entry("file", name, info, shown)
        key = (info.st_dev, info.st_ino)
        if info.st_nlink > 1 and key in self._seen:
            entry.kind, entry.link = "again", self._seen[key]
            self._send(entry)
            return
        descriptor = os.open(path, _OPEN if at is None else _OPEN | os.O_NOFOLLOW, dir_fd=at)
        try:
            if info.st_nlink > 1:
                self._seen[key] = name
                entry.linked = True
            self._add_xattrs(entry, descriptor, shown)
            self._send_content(entry, descriptor, shown)
        finally:
            os.close(descriptor)

    def _send_content(self, entry: Entry, descriptor: int, shown: bytes) -> None:
        info = os.fstat(descriptor)
        entry.size = info.st_size
        entry.segments = _find_segments(descriptor, info.st_size, info.st_blocks)
        if entry.segments is None:
            head = _read_head(descriptor, info.st_size)
            if len(head) < CHUNK or not info.st_size:
                entry.size = len(head)  # the real size, whatever the file states
            self._send(entry)
            self._write(head)
            self._count(len(head))
            self._copy(descriptor, entry.size - len(head), shown)
            self._write(padding(entry.size))
        else:
            self._send(entry)
            for begin, length in entry.segments:
                os.lseek(descriptor, begin, os.SEEK_SET)
                self._copy(descriptor, length, shown)
            self._write(padding(sum(length for _, length in entry.segments)))
        self.notes.bytes += entry.size

    def _copy(self, descriptor: int, length: int, shown: bytes) -> None:
        while length:
            data = os.read(descriptor, min(CHUNK, length))
            if not data:  # the header has promised its size
                self.notes.add("shrank", shown)
                data = b"\0" * min(CHUNK, length)
            self._write(data)
            length -= len(data)
            self._count(len(data))

    def _entry(self, kind: str, name: bytes, info: os.stat_result, shown: bytes) -> Entry:
        entry = Entry(kind, name, stat.S_IMODE(info.st_mode), info.st_mtime_ns)
        entry.uid, entry.gid = info.st_uid, info.st_gid
        if not self._owner:
            if info.st_uid not in self._expected:
                self.notes.add("owner", shown)
            if entry.mode & 0o6000 and kind != "link":
                self.notes.add("set-id", shown)
        return entry

    def _add_xattrs(self, entry: Entry, descriptor: int, shown: bytes) -> None:
        try:
            names = os.listxattr(descriptor)
        except OSError:  # a file system without extended attributes
            return
        room = _MOST_XATTR_BYTES
        for text in names:
            reason = xattr_kind(text)
            if reason is None:
                continue
            if reason == "capability" and not self._owner:
                self.notes.add(reason, shown)
                continue
            try:
                value = os.getxattr(descriptor, text)
            except OSError:
                value = b"" if room < 0 else b"\0" * (room + 1)
            room -= len(text) + len(value)
            if room < 0:
                self.notes.add(reason, shown)
                continue
            entry.xattrs[os.fsencode(text)] = value


def xattr_kind(name: str) -> str | None:
    """Return the reason under which a loss of the attribute is noted; None for an attribute that is never
    copied.

    Labels of SELinux are never copied: the receiving system sets its own.
    """
    if name.startswith("user."):
        return "xattr"
    if name in ("system.posix_acl_access", "system.posix_acl_default"):
        return "acl"
    return "capability" if name == "security.capability" else None


def _names(descriptor: int) -> list[bytes]:
    """Return the names in a directory, in reverse order."""
    return sorted(map(os.fsencode, os.listdir(descriptor)), reverse=True)


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "pipe"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def _read_head(descriptor: int, size: int) -> bytes:
    """Return the first bytes, up to CHUNK; up to _MOST_UNKNOWN of a file that claims to be empty."""
    most = CHUNK if size else _MOST_UNKNOWN
    parts: list[bytes] = []
    while most:
        data = os.read(descriptor, min(CHUNK, most))
        if not data:
            return b"".join(parts)
        parts.append(data)
        most -= len(data)
    if not size:
        raise OSError(errno.EFBIG, "the size is not known; copy to - instead")
    return b"".join(parts)


def _find_segments(descriptor: int, size: int, blocks: int) -> list[tuple[int, int]] | None:
    """Return the segments that hold data; None for a file without holes."""
    if blocks * BLOCK >= size or size < 64 * 1024:
        return None
    segments: list[tuple[int, int]] = []
    position = 0
    while position < size and len(segments) < MOST_SEGMENTS:
        try:
            begin = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole follows
            break
        position = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
        segments.append((begin, position - begin))
    os.lseek(descriptor, 0, os.SEEK_SET)
    if len(segments) >= MOST_SEGMENTS or sum(length for _, length in segments) >= size:
        return None
    return segments
