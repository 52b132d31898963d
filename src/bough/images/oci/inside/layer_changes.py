"""Apply the entries of one layer to the tree."""

from __future__ import annotations

import contextlib
import errno
import os
import tarfile
from collections.abc import Sequence

from bough.images.oci.inside.failure import BAD_LAYER, NO_SUCH_ID, TOO_MUCH, Failure, show
from bough.images.oci.inside.layer_stream import LayerStream
from bough.images.oci.inside.tar_entries import Entry
from bough.images.oci.inside.tree import Tree, split_path

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_CAPABILITIES = "security.capability"
_ACCESS_LISTS = ("system.posix_acl_access", "system.posix_acl_default")
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE)
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE)
_MOST_NAMED = 3
_BLOCK_BYTES = 4096


class Notes:
    """What was not applied as the image has it: kind -> number, and the first names."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, kind: str, name: bytes) -> None:
        count, names = self._found.get(kind, (0, []))
        if len(names) < _MOST_NAMED:
            names = [*names, show(name)]
        if kind in self._found or len(self._found) < 50:
            self._found[kind] = (count + 1, names)

    def render(self) -> list[str]:
        """Return a sentence for each kind."""
        said = []
        for kind, (count, names) in self._found.items():
            more = f" and {count - len(names)} more" if count > len(names) else ""
            said.append(f"{kind}: {', '.join(names)}{more}")
        return said


class LayerChanges:
    """Applier of entries.

    Args:
        most_entries: of all layers together.

    Attributes:
        entries: applied until now.
        content_bytes: written until now, each file in whole blocks.
    """

    def __init__(self, tree: Tree, most_entries: int, notes: Notes) -> None:
        self._tree = tree
        self._most_entries = most_entries
        self._notes = notes
        self.entries = 0
        self.content_bytes = 0

    def apply(self, entry: Entry, stream: LayerStream) -> None:
        """Apply one entry. The content of a file is next in `stream`.

        Raises:
            Failure: the entry is refused.
        """
        self.entries += 1
        path = entry.name_bytes
        if self.entries > self._most_entries:
            raise Failure(TOO_MUCH, f"the layers have more than {self._most_entries} entries", path)
        try:
            self._apply(entry, path, stream)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Failure(BAD_LAYER, f"it cannot be made: {error.strerror}", path) from error

    def _apply(self, entry: Entry, path: bytes, stream: LayerStream) -> None:
        names = split_path(path)
        if not names:
            self._apply_root(entry, path)
            return
        name = names.pop()
        if name.startswith(_WHITEOUT):
            self._white_out(names, name, path)
            return
        self._tree.enter(names, create=True)
        self._tree.note(name)
        if entry.type in _REGULAR:
            self._make_file(entry, name, path, stream)
        elif entry.type == tarfile.DIRTYPE:
            self._make_directory(entry, name, path)
        elif entry.type == tarfile.SYMTYPE:
            self._make_link(entry, name, path)
        elif entry.type == tarfile.LNKTYPE:
            self._make_hard_link(entry, names, name, path)
        elif entry.type == tarfile.FIFOTYPE:
            self._make_fifo(entry, name, path)
        elif entry.type in _DEVICES:
            self._notes.add("device nodes became empty files", path)
            self._make_file(entry, name, path, None)
        else:
            raise Failure(BAD_LAYER, f"an entry of type {ascii(entry.type)[2:-1]} is unknown", path)

    def _apply_root(self, entry: Entry, path: bytes) -> None:
        if entry.type != tarfile.DIRTYPE:
            raise Failure(BAD_LAYER, "the root directory cannot be replaced", path or b"/")
        self._tree.enter((), create=False)
        self._describe_directory(entry, path, made=False)

    def _white_out(self, names: list[bytes], name: bytes, path: bytes) -> None:
        """Apply a whiteout. Its name decides, whatever its type: it may be a hard link.

        AUFS has further names of this form for its own use. They never name a file of the tree.
        """
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise Failure(BAD_LAYER, "a whiteout names no file", path)
        if not self._tree.enter(names, create=False):
            return
        if name == _OPAQUE:
            self._tree.white_out_content()
        else:
            self._tree.white_out(hidden)

    def _make_file(self, entry: Entry, name: bytes, path: bytes, stream: LayerStream | None) -> None:
        directory = self._tree.change()
        try:
            file = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
        except FileExistsError:
            self._tree.remove(name)
            file = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
        try:
            if stream is not None:
                self._write(entry, path, file, stream)
            self._own(file, entry, path)
            os.fchmod(file, entry.permissions)
            if self._tree.made_acls:
                self._drop_xattrs(file)
            self._set_xattrs(file, entry, path)
            time = entry.mtime_ns
            os.utime(file, ns=(time, time))
        finally:
            os.close(file)

    def _write(self, entry: Entry, path: bytes, file: int, stream: LayerStream) -> None:
        if entry.size < 0:
            raise Failure(BAD_LAYER, "a file has a negative size", path)
        pieces = entry.pieces
        if pieces is None:
            self._copy(entry.size, path, file, stream)
        else:
            self._write_sparse(entry, pieces, path, file, stream)

    def _write_sparse(
        self, entry: Entry, pieces: Sequence[tuple[int, int]], path: bytes, file: int, stream: LayerStream
    ) -> None:
        end = 0
        for offset, length in pieces:
            if offset < end or length < 0 or offset + length > entry.size:
                raise Failure(BAD_LAYER, "the map of a sparse file is damaged", path)
            end = offset + length
            if length:
                os.lseek(file, offset, os.SEEK_SET)
                self._copy(length, path, file, stream)
        os.ftruncate(file, entry.size)

    def _copy(self, length: int, path: bytes, file: int, stream: LayerStream) -> None:
        self.content_bytes += -(-length // _BLOCK_BYTES) * _BLOCK_BYTES
        left = length
        for part in stream.parts(length):
            left -= len(part)
            written = 0
            while written < len(part):
                written += os.write(file, part[written:])
        if left:
            raise Failure(BAD_LAYER, "the archive ends within a file", path)

    def _make_directory(self, entry: Entry, name: bytes, path: bytes) -> None:
        made = self._tree.make_directory(name)
        self._tree.enter_child(name)
        self._describe_directory(entry, path, made=made)

    def _describe_directory(self, entry: Entry, path: bytes, *, made: bool) -> None:
        directory = self._tree.here
        self._own(directory, entry, path)
        os.fchmod(directory, entry.permissions)
        if not made or self._tree.made_acls:
            self._drop_xattrs(directory)
        self._set_xattrs(directory, entry, path)
        self._tree.set_time(entry.mtime_ns)

    def _make_link(self, entry: Entry, name: bytes, path: bytes) -> None:
        target = entry.target_bytes
        if not target or b"\0" in target:
            raise Failure(BAD_LAYER, "a symbolic link has no valid target", path)
        directory = self._tree.change()
        try:
            os.symlink(target, name, dir_fd=directory)
        except FileExistsError:
            self._tree.remove(name)
            os.symlink(target, name, dir_fd=directory)
        self._describe_by_name(entry, name, path)

    def _make_fifo(self, entry: Entry, name: bytes, path: bytes) -> None:
        directory = self._tree.change()
        self._tree.remove(name)
        os.mkfifo(name, 0o600, dir_fd=directory)
        self._describe_by_name(entry, name, path)
        os.chmod(name, entry.permissions, dir_fd=directory)  # nothing else can have replaced it

    def _describe_by_name(self, entry: Entry, name: bytes, path: bytes) -> None:
        """Set owner and time of what must not be opened."""
        directory = self._tree.here
        user, group = entry.owner
        try:
            os.chown(name, user, group, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            raise _owner_failure(error, user, group, path) from error
        for xattr in entry.xattrs:
            self._notes.add(f"attribute {show(xattr.encode())} was left out", path)
        time = entry.mtime_ns
        os.utime(name, ns=(time, time), dir_fd=directory, follow_symlinks=False)

    def _make_hard_link(self, entry: Entry, names: list[bytes], name: bytes, path: bytes) -> None:
        """Make a further name of a file of this or a lower layer. The file keeps its own description."""
        target = split_path(entry.target_bytes)
        if not target:
            raise Failure(BAD_LAYER, "a hard link has no target", path)
        self._tree.change()
        self._tree.remove(name)
        last = target.pop()
        if not self._tree.enter(target, create=False):
            self._lacks_target(entry, path)
        source = os.dup(self._tree.here)
        try:
            self._tree.enter(names, create=True)
            os.link(last, name, src_dir_fd=source, dst_dir_fd=self._tree.change(), follow_symlinks=False)
        except FileNotFoundError:
            self._lacks_target(entry, path)
        except PermissionError as error:
            raise Failure(BAD_LAYER, "a hard link leads to a directory", path) from error
        finally:
            os.close(source)

    def _lacks_target(self, entry: Entry, path: bytes) -> None:
        raise Failure(BAD_LAYER, f"a hard link leads to {show(entry.target_bytes)}, which is missing", path)

    def _own(self, file: int, entry: Entry, path: bytes) -> None:
        user, group = entry.owner
        try:
            os.fchown(file, user, group)
        except OSError as error:
            raise _owner_failure(error, user, group, path) from error

    def _drop_xattrs(self, file: int) -> None:
        for name in os.listxattr(file):
            with contextlib.suppress(OSError):
                os.removexattr(file, name)

    def _set_xattrs(self, file: int, entry: Entry, path: bytes) -> None:
        for name, value in entry.xattrs.items():
            if not (name.startswith("user.") or name in (_CAPABILITIES, *_ACCESS_LISTS)):
                self._notes.add(f"attribute {show(name.encode())} was left out", path)
                continue
            try:
                os.setxattr(file, name, value)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._notes.add(f"attribute {show(name.encode())} was left out ({error.strerror})", path)
            else:
                self._tree.made_acls |= name == _ACCESS_LISTS[1]


def _owner_failure(error: OSError, user: int, group: int, path: bytes) -> Exception:
    if error.errno != errno.EINVAL:
        return error
    return Failure(NO_SUCH_ID, f"the owner {user}:{group} is beyond the subordinate ids of this user", path)
