"""A file without a name. The file gets a name when the content is complete.

Standard library only: one end of a copy runs in a guest.
"""

from __future__ import annotations

import errno
import os

_TEMPORARY_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Errors of file systems and kernels that do not support files without a name.
_NAMED_ONLY = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
_CHUNK = 256 * 1024


class UnnamedFile:
    """A new file in the directory `directory`; `descriptor` is open for writing.

    A killed process leaves no file, if the file system supports files without a name.
    """

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._temporary: bytes | None = None
        self.descriptor = self._open_unnamed()
        if self.descriptor < 0:
            self._temporary = temporary_name()
            self.descriptor = os.open(self._temporary, _TEMPORARY_FLAGS, 0o600, dir_fd=directory)

    def _open_unnamed(self) -> int:
        if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
            return -1
        try:
            return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in _NAMED_ONLY:
                raise
            return -1

    def publish(self, name: bytes) -> None:
        """Replace `name` atomically; a file that is a mount point is written in place."""
        if self._temporary is None:
            try:
                self._link(name)
                return
            except FileExistsError:
                temporary = temporary_name()
                self._link(temporary)
                self._temporary = temporary
        try:
            os.rename(self._temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            self._temporary = None
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            self._overwrite(name)

    def close(self) -> None:
        """Close the file; remove the file if it was not published."""
        os.close(self.descriptor)
        if self._temporary is not None:
            os.unlink(self._temporary, dir_fd=self._directory)

    def _link(self, name: bytes) -> None:
        path = b"/proc/self/fd/%d" % self.descriptor
        os.link(path, name, dst_dir_fd=self._directory, follow_symlinks=True)

    def _overwrite(self, name: bytes) -> None:
        flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(name, flags, dir_fd=self._directory)
        try:
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            data = os.read(self.descriptor, _CHUNK)
            while data:
                write_all(target, data)
                data = os.read(self.descriptor, _CHUNK)
        finally:
            os.close(target)


def temporary_name() -> bytes:
    return b".bough-" + os.urandom(8).hex().encode()


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
