"""The tree that the layers are applied to, reached by descriptors of its directories.

No path is given to the kernel as a whole: each component is opened in the directory before it, and a symbolic
link is never followed by the kernel. A link in the middle of a path is resolved here, with the tree's root as
the root directory and "..": as umoci does (securejoin), and as Docker does by chroot.

The chain of open directories leads from the root to the directory in use, so that the entries of one
directory need one lookup. A directory that the chain leaves gets back the time that its own entry gave it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence

from bough.images.oci.inside.failure import BAD_LAYER, TOO_MUCH, Failure

MOST_DEPTH = 512
_MOST_LINKS = 255
_MOST_PATH_BYTES = 4095
_MOST_NAME_BYTES = 255
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IS_NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


def split_path(path: bytes) -> list[bytes]:
    """Return the components of an entry's name. ".." removes the component before, and does not lead out.

    Raises:
        Failure: the name is too long, or has a NUL.
    """
    if len(path) > _MOST_PATH_BYTES:
        raise Failure(BAD_LAYER, f"a name of {len(path)} bytes is longer than {_MOST_PATH_BYTES}", path)
    if b"\0" in path:
        raise Failure(BAD_LAYER, "a name contains a NUL", path)
    names: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            del names[-1:]
        elif name not in (b"", b"."):
            if len(name) > _MOST_NAME_BYTES:
                raise Failure(BAD_LAYER, f"a part of a name is longer than {_MOST_NAME_BYTES} bytes", path)
            names.append(name)
    return names


class Tree:
    """A tree and the chain of open directories in it.

    Args:
        root: descriptor of the tree's directory; closed by `close`.

    Attributes:
        made_acls: directories may give an access list to each new file.
    """

    def __init__(self, root: int) -> None:
        self._names: list[bytes] = []
        self._open = [root]
        #: The time to give back to the directory of the same level; None: the directory is unchanged.
        self._times: list[int | None] = [None]
        self._upper: set[int] | None = None
        self.made_acls = False

    @property
    def here(self) -> int:
        """The descriptor of the directory that `enter` opened last."""
        return self._open[-1]

    @property
    def _path(self) -> bytes:
        return b"/" + b"/".join(self._names) if self._names else b""

    def begin_layer(self, first: bool) -> None:
        """Forget which paths are of the layer. In the first layer nothing is below, so nothing is noted."""
        self._upper = None if first else set()

    def end_layer(self) -> None:
        self._leave(0)
        self._give_time_back()

    def close(self) -> None:
        """Close all descriptors, also in the middle of a layer. The tree cannot be used afterwards."""
        while self._open:
            os.close(self._open.pop())

    def enter(self, names: Sequence[bytes], *, create: bool) -> bool:
        """Make `here` the directory of this path. Return False if the path does not exist.

        Args:
            create: make what is missing, and replace anything that is no directory by a directory.
        """
        common = 0
        for mine, name in zip(self._names, names):  # noqa: B905 (Python 3.9 has no strict)
            if mine != name:
                break
            common += 1
        self._leave(common)
        missing = self._walk(deque(names[common:]))
        if missing and not create:
            return False
        for name in missing:
            self._make_way(name)
        return True

    def enter_child(self, name: bytes) -> None:
        """Make a directory in `here` the new `here`."""
        if not self._push(name):
            raise Failure(BAD_LAYER, "a directory cannot be opened", name)

    def note(self, name: bytes) -> None:
        """Note that `name` in `here`, and all directories above, are of this layer."""
        if self._upper is None:
            return
        path = self._path
        key = hash(path + b"/" + name)
        while key not in self._upper:
            self._upper.add(key)
            if not path:
                break
            key, path = hash(path), path.rpartition(b"/")[0]

    def change(self) -> int:
        """Return `here` for a change of its content. Its time is given back when the chain leaves it."""
        if self._times[-1] is None:
            self._times[-1] = os.fstat(self._open[-1]).st_mtime_ns
        return self._open[-1]

    def set_time(self, time_ns: int) -> None:
        """Set the time of `here`, for now and for when the chain leaves it."""
        self._times[-1] = time_ns

    def remove(self, name: bytes) -> None:
        """Remove `name` from `here` with everything below, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            _remove(name, self.change())

    def make_directory(self, name: bytes, mode: int = 0o700) -> bool:
        """Make a directory in `here`, in the place of anything else. Return False if there was one before."""
        try:
            os.mkdir(name, mode, dir_fd=self.change())
        except FileExistsError:
            if self._is_directory(name):
                return False
            self.remove(name)
            os.mkdir(name, mode, dir_fd=self.here)
        return True

    def white_out(self, name: bytes) -> None:
        """Remove what lower layers have at `name` in `here`. What this layer has there stays."""
        if self._upper is not None:
            with contextlib.suppress(FileNotFoundError):
                self._white_out(self._path + b"/" + name, name, self.change())

    def white_out_content(self) -> None:
        """Remove what lower layers have in `here`. What this layer has there stays."""
        if self._upper is not None:
            self._white_out_content(self._path, self.change())

    def _white_out(self, path: bytes, name: bytes, directory: int) -> None:
        assert self._upper is not None
        if hash(path) not in self._upper:
            _remove(name, directory)
        elif (descriptor := _open_directory(name, directory)) is not None:
            self._white_out_kept(path, descriptor)

    def _white_out_kept(self, path: bytes, descriptor: int) -> None:
        """White out the content of a directory of this layer, which stays. Close `descriptor`."""
        try:
            time = os.fstat(descriptor).st_mtime_ns
            self._white_out_content(path, descriptor)
            os.utime(descriptor, ns=(time, time))
        finally:
            os.close(descriptor)

    def _white_out_content(self, path: bytes, directory: int) -> None:
        assert self._upper is not None
        # A directory that is read while it changes may skip a name, so what is left is read again.
        removed = True
        while removed:
            removed = False
            for name in _list(directory):
                if hash(path + b"/" + name) not in self._upper:
                    _remove(name, directory)
                    removed = True
        for name in list(_list(directory)):
            below = _open_directory(name, directory)
            if below is not None:
                self._white_out_kept(path + b"/" + name, below)

    def _walk(self, left: deque[bytes]) -> list[bytes]:
        """Open the path component by component. Return the end of the path that does not exist."""
        missing: list[bytes] = []
        links = 0
        while left:
            name = left.popleft()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if missing:
                    missing.pop()
                else:
                    self._leave(max(0, len(self._names) - 1))
                continue
            if missing:
                missing.append(name)
            elif not self._push(name):
                target = self._read_link(name)
                if target is None:
                    missing.append(name)
                    continue
                links += 1
                if links > _MOST_LINKS:
                    raise Failure(BAD_LAYER, "symbolic links lead in a circle", self._path + b"/" + name)
                if target.startswith(b"/"):
                    self._leave(0)
                left.extendleft(reversed(target.split(b"/")))
        return missing

    def _push(self, name: bytes) -> bool:
        """Open a directory in `here`. Return False if there is none of that name."""
        if len(self._names) >= MOST_DEPTH:
            raise Failure(TOO_MUCH, f"a path is deeper than {MOST_DEPTH} directories", name)
        descriptor = _open_directory(name, self._open[-1])
        if descriptor is None:
            return False
        self._names.append(name)
        self._open.append(descriptor)
        self._times.append(None)
        return True

    def _read_link(self, name: bytes) -> bytes | None:
        """Return the target of a link in `here`; None for anything else."""
        try:
            return os.readlink(name, dir_fd=self._open[-1])
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return None
            raise

    def _make_way(self, name: bytes) -> None:
        """Make a directory that no entry describes, and enter it."""
        self.make_directory(name, 0o755)  # a directory above may give it a group
        self.enter_child(name)
        self._times[-1] = 0

    def _is_directory(self, name: bytes) -> bool:
        found = os.stat(name, dir_fd=self.here, follow_symlinks=False)
        return stat.S_ISDIR(found.st_mode)

    def _leave(self, level: int) -> None:
        while len(self._names) > level:
            self._give_time_back()
            self._names.pop()
            self._times.pop()
            os.close(self._open.pop())

    def _give_time_back(self) -> None:
        time = self._times[-1]
        if time is not None:
            os.utime(self._open[-1], ns=(time, time))
            self._times[-1] = None


def _open_directory(name: bytes, directory: int) -> int | None:
    """Open a directory in `directory`; None if there is none of that name, or a link or a file."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        if error.errno in _IS_NO_DIRECTORY:
            return None
        raise


def _list(directory: int) -> Iterator[bytes]:
    with os.scandir(directory) as found:
        for item in found:
            yield os.fsencode(item.name)


def _remove(name: bytes, directory: int) -> None:
    """Remove a file, or a directory with its content. Links are not followed."""
    if _unlink(name, directory):
        return
    # One descriptor a level, and no recursion: the depth is the image's.
    chain, opened = [name], [directory, os.open(name, _DIRECTORY, dir_fd=directory)]
    try:
        while chain:
            below = next((each for each in _list(opened[-1]) if not _unlink(each, opened[-1])), None)
            if below is not None:
                opened.append(os.open(below, _DIRECTORY, dir_fd=opened[-1]))
                chain.append(below)
            elif next(_list(opened[-1]), None) is None:
                os.close(opened.pop())
                os.rmdir(chain.pop(), dir_fd=opened[-1])
    finally:
        for descriptor in opened[1:]:
            os.close(descriptor)


def _unlink(name: bytes, directory: int) -> bool:
    """Remove a file. Return False for a directory."""
    try:
        os.unlink(name, dir_fd=directory)
    except (IsADirectoryError, PermissionError):
        return False
    return True
