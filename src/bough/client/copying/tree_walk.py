"""A position in a tree, with a descriptor for each directory: no link is followed, any depth works.

Standard library only: one end of a copy runs in a guest.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Open directories at once; the usual limit of a process is 1,024 descriptors. Directories further up are
#: reopened through "..", and must still have the same inode.
MOST_OPEN = 64


class _Level:
    def __init__(self, name: bytes, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        info = os.fstat(descriptor)
        self.key = (info.st_dev, info.st_ino)


class TreeWalk:
    """A walk below the open directory `root`. This object closes the directory.

    Args:
        leave: called with the path below the root and the descriptor of each directory that is left.
    """

    def __init__(
        self, root: int, leave: Callable[[tuple[bytes, ...], int], None] = lambda parts, fd: None
    ) -> None:
        self._levels = [_Level(b"", root)]
        self._leave = leave

    @property
    def at(self) -> tuple[bytes, ...]:
        return tuple(level.name for level in self._levels[1:])

    @property
    def top(self) -> int:
        """Return a descriptor of the directory that was entered last."""
        return self._levels[-1].descriptor

    @property
    def root(self) -> int:
        return self._levels[0].descriptor

    def down(self, name: bytes) -> int:
        """Enter `name`; raises OSError for anything but a directory, links included."""
        self._levels.append(_Level(name, os.open(name, DIRECTORY, dir_fd=self.top)))
        if len(self._levels) > MOST_OPEN + 1:
            far = self._levels[-MOST_OPEN]
            if far.descriptor >= 0:
                os.close(far.descriptor)
                far.descriptor = -1
        return self.top

    def up(self) -> None:
        self._open_parent()
        parts = self.at
        level = self._levels.pop()
        try:
            self._leave(parts, level.descriptor)
        finally:
            os.close(level.descriptor)

    def common(self, parts: tuple[bytes, ...]) -> int:
        """Return how many leading `parts` the current position shares."""
        most = min(len(parts), len(self._levels) - 1)
        for count in range(most):
            if self._levels[count + 1].name != parts[count]:
                return count
        return most

    def back_to(self, depth: int) -> None:
        """Go up until the position is `depth` levels below the root."""
        while len(self._levels) - 1 > depth:
            self.up()

    def close(self) -> None:
        """Close all directories without calling `leave`."""
        for level in self._levels:
            if level.descriptor >= 0:
                os.close(level.descriptor)
        self._levels = []

    def _open_parent(self) -> None:
        parent = self._levels[-2]
        if parent.descriptor >= 0:
            return
        descriptor = os.open("..", DIRECTORY, dir_fd=self.top)
        info = os.fstat(descriptor)
        if (info.st_dev, info.st_ino) != parent.key:
            os.close(descriptor)
            raise OSError(116, "a directory was moved while it was copied", self.top)
        parent.descriptor = descriptor
