"""Write a stream of entries as files. Every byte from a guest may be hostile.

Safety does not depend on names alone. Every directory is opened one part at a time without following links.
Every entry is made relative to such a descriptor. So a link is never written through, be it from the stream
or in the target. Links themselves are kept unchanged: a copy of /etc without its absolute links would be no
copy.

Refused: absolute names, `..`, hard links to files outside the stream. Left out and listed: devices, pipes,
sockets. Removed unless owners are kept: set-user-id, set-group-id and capabilities.

client/copy.py states the rules for existing files. The guest runs this module when the host copies to the
guest: standard library only.
"""

from __future__ import annotations

import errno
import os
import stat

from bough.client.copying.pack import xattr_kind
from bough.client.copying.report import CopyReport
from bough.client.copying.tree_walk import TreeWalk
from bough.client.copying.unnamed_file import UnnamedFile, temporary_name, write_all
from bough.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bough.client.copying.archive import Entry, Reader

MAX_DEPTH = 4096
MAX_NAME_BYTES = 64 * 1024


class InTheWay(NotADirectoryError):
    """An existing entry that a copy does not replace."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.ENOTDIR, text)


class Unpacker:
    """Extracts below the directory `root`, which exists. A context manager, which closes all descriptors.

    Args:
        owner: keep owners, set-id bits and capabilities, as far as this process may.
    """

    def __init__(
        self,
        root: bytes,
        count: Callable[[int], None] = lambda _: None,
        *,
        owner: bool = False,
        notes: CopyReport | None = None,
    ) -> None:
        self._walk = TreeWalk(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), self._settle)
        self._count = count
        self._owner = owner
        #: Incomplete new directories, with the final attributes.
        self._made: dict[tuple[bytes, ...], tuple[Entry, bytes]] = {}
        self._linked: dict[tuple[bytes, ...], tuple[int, int]] = {}
        self.notes = notes or CopyReport()
        #: Names of devices and pipes.
        self.skipped: list[str] = []

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *_: object) -> None:
        self._walk.close()

    def extract(
        self,
        archive: Reader,
        entry: Entry,
        parts: tuple[bytes, ...],
        shown: bytes = b"",
        target: tuple[bytes, ...] | None = None,
    ) -> None:
        """Make `entry` as `parts` below the root; () is the root itself.

        Args:
            shown: the name of `entry` in notes.
            target: the target of a hard link, below the root; default: the link in `entry`.

        Raises:
            InTheWay: an existing entry must stay.
            OSError: the file system refuses. An existing entry is unchanged.
        """
        if entry.kind == "directory":
            if parts:
                self._make_directory(entry, parts, shown)
            return
        if not parts:
            raise ProtocolError("the guest sent another entry in the place of a directory")
        if entry.kind == "file":
            self._write_file(archive, entry, parts, shown)
        elif entry.kind == "link":
            self._make_link(entry, parts, shown)
        elif entry.kind == "again":
            self._link_again(entry, parts, parse_name(entry.link) if target is None else target)
        else:
            self.notes.add(entry.kind, shown)
            if len(self.skipped) < 1000:
                self.skipped.append(os.fsdecode(entry.path))
            return
        self.notes.files += 1

    def finish(self) -> None:
        """Set modes and times of the directories that are still open."""
        self._walk.back_to(0)

    # -- directories ------------------------------------------------------------------------------

    def _enter(self, parts: tuple[bytes, ...]) -> int:
        """Return a descriptor of that directory, reached without following a link."""
        common = self._walk.common(parts)
        self._walk.back_to(common)
        for part in parts[common:]:
            try:
                self._walk.down(part)
            except FileNotFoundError:
                os.mkdir(part, 0o700, dir_fd=self._walk.top)
                self._walk.down(part)
            except OSError as error:
                raise self._explain(part, error) from None
        return self._walk.top

    def _make_directory(self, entry: Entry, parts: tuple[bytes, ...], shown: bytes) -> None:
        parent = self._enter(parts[:-1])
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            self._enter(parts)  # refuses a link or a file; an existing directory stays unchanged
            return
        self._enter(parts)
        self._made[parts] = (entry, shown)

    def _settle(self, parts: tuple[bytes, ...], descriptor: int) -> None:
        """Set a new directory's attributes last: the mode may exclude the owner."""
        entry, shown = self._made.pop(parts, (None, b""))
        if entry is not None:
            self._keep(entry, descriptor, shown)

    def _explain(self, part: bytes, error: OSError) -> OSError:
        """Return an error with a reason in words for a directory that could not be entered."""
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            return error
        mode = os.stat(part, dir_fd=self._walk.top, follow_symlinks=False).st_mode
        return InTheWay("Not a directory: " + ("a link" if stat.S_ISLNK(mode) else "a file") + " is there")

    # -- what is there ----------------------------------------------------------------------------

    def _look(self, directory: int, entry: Entry, name: bytes) -> os.stat_result | None:
        """Return the regular file that `entry` replaces, or None.

        Raises:
            InTheWay: the existing entry must stay.
        """
        try:
            info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISREG(info.st_mode):
            return info
        if stat.S_ISLNK(info.st_mode):
            if entry.kind != "link" and _leads_to_directory(directory, name):
                raise InTheWay("a link to a directory is there")
            return None
        what = "a directory" if stat.S_ISDIR(info.st_mode) else "a device, pipe or socket"
        raise InTheWay(f"{what} is there")

    # -- entries ----------------------------------------------------------------------------------

    def _write_file(self, archive: Reader, entry: Entry, parts: tuple[bytes, ...], shown: bytes) -> None:
        directory, name = self._enter(parts[:-1]), parts[-1]
        before = self._look(directory, entry, name)
        file = UnnamedFile(directory)
        try:
            self.notes.bytes += write_content(archive, entry, file.descriptor, self._count)
            if before is not None and not self._owner:
                _take_owner(file.descriptor, before)
            self._keep(entry, file.descriptor, shown)
            file.publish(name)
            if entry.linked:
                info = os.stat(name, dir_fd=directory, follow_symlinks=False)
                self._linked[parts] = (info.st_dev, info.st_ino)
        finally:
            file.close()

    def _make_link(self, entry: Entry, parts: tuple[bytes, ...], shown: bytes) -> None:
        directory, name = self._enter(parts[:-1]), parts[-1]
        self._look(directory, entry, name)
        temporary = temporary_name()
        os.symlink(entry.link, temporary, dir_fd=directory)
        if self._owner and not _try(
            os.chown, temporary, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False
        ):
            self.notes.add("owner", shown)
        times = (entry.mtime_ns, entry.mtime_ns)
        _try(os.utime, temporary, ns=times, dir_fd=directory, follow_symlinks=False)
        self._move(directory, temporary, name)

    def _link_again(self, entry: Entry, parts: tuple[bytes, ...], target: tuple[bytes, ...]) -> None:
        if target not in self._linked:
            raise ProtocolError(
                f"the guest sent a hard link to a file that it did not send: {entry.link[:200]!r}"
            )
        directory, name = self._enter(parts[:-1]), parts[-1]
        self._look(directory, entry, name)
        temporary = temporary_name()
        source = self._open_again(target[:-1])
        try:
            os.link(target[-1], temporary, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
            info = os.stat(temporary, dir_fd=directory, follow_symlinks=False)
            if (info.st_dev, info.st_ino) != self._linked[target]:
                _try(os.unlink, temporary, dir_fd=directory)
                raise OSError(errno.ESTALE, "a file was replaced while it was copied")
            self._move(directory, temporary, name)
        finally:
            os.close(source)

    def _open_again(self, parts: tuple[bytes, ...]) -> int:
        """Return a descriptor of a directory elsewhere in the tree. The current position stays."""
        way = TreeWalk(os.dup(self._walk.root))
        try:
            for part in parts:
                way.down(part)
            return os.dup(way.top)
        finally:
            way.close()

    def _move(self, directory: int, temporary: bytes, name: bytes) -> None:
        try:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            # A rename onto another link to the same file does nothing (POSIX), and leaves both.
            _try(os.unlink, temporary, dir_fd=directory)

    def _keep(self, entry: Entry, descriptor: int, shown: bytes) -> None:
        """Set owner, mode, attributes and time, in this order: a change of owner clears set-id bits."""
        if self._owner and not _try(os.fchown, descriptor, entry.uid, entry.gid):
            self.notes.add("owner", shown)
        if not _try(os.fchmod, descriptor, entry.mode & (0o7777 if self._owner else 0o1777)):
            self.notes.add("mode", shown)
        for name, value in entry.xattrs.items():
            kind = xattr_kind(os.fsdecode(name))
            if kind is None or (kind == "capability" and not self._owner):
                continue
            if not _try(os.setxattr, descriptor, name, value):
                self.notes.add(kind, shown)
        if not _try(os.utime, descriptor, ns=(entry.mtime_ns, entry.mtime_ns)):
            self.notes.add("time", shown)


def _take_owner(descriptor: int, before: os.stat_result) -> None:
    """Give a new file the owner and group of the replaced file, as far as this process may."""
    info = os.fstat(descriptor)
    if (info.st_uid, info.st_gid) != (before.st_uid, before.st_gid):
        _try(os.fchown, descriptor, before.st_uid, before.st_gid)


def _leads_to_directory(directory: int, name: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory).st_mode)
    except OSError:
        return False


def _try(call: Callable[..., object], *arguments: object, **options: object) -> bool:
    try:
        call(*arguments, **options)
    except OSError:
        return False
    return True


def write_content(archive: Reader, entry: Entry, descriptor: int, count: Callable[[int], None]) -> int:
    """Write the content of `entry`, holes as holes, up to the size in its header. Return its size."""
    at = 0
    for offset, data in archive.content(entry):
        if offset != at:
            os.lseek(descriptor, offset, os.SEEK_SET)
        write_all(descriptor, data)
        at = offset + len(data)
        count(len(data))
    if at != entry.size:
        os.ftruncate(descriptor, entry.size)
    return entry.size


def parse_name(name: bytes) -> tuple[bytes, ...]:
    """Return the parts of an entry's name; () for ".".

    Raises:
        ProtocolError: the name is absolute, leads upwards, or is too long.
    """
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if name.startswith(b"/") or b".." in parts or b"\0" in name:
        raise ProtocolError(f"the guest sent a file with a name that leads elsewhere: {name[:200]!r}")
    if len(parts) > MAX_DEPTH or len(name) > MAX_NAME_BYTES or any(len(part) > 255 for part in parts):
        raise ProtocolError(f"the guest sent a file with a name that is too long: {name[:60]!r}...")
    return parts
