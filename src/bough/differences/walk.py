"""Go through the trees of both sides at once, directory by directory.

Only the directories on the way are in memory, so a tree of any number of files can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bough.differences.disk import DiskUnreadable
from bough.differences.tree import Node, Tree

_MOST_DEPTH = 200


class Pair(NamedTuple):
    """A path, and the file there on each side; None: no file."""

    path: bytes
    before: Node | None
    after: Node | None


class Walk:
    """The way through two trees.

    Attributes:
        damages: sentences about directories that could not be read: text -> number.
    """

    def __init__(self, before: Tree, after: Tree) -> None:
        self._trees = (before, after)
        self._seen: tuple[set[tuple[int, int]], set[tuple[int, int]]] = (set(), set())
        self.damages: dict[str, int] = {}

    def pairs(self) -> Iterator[Pair]:
        """Yield all files below the roots, in the order of the names. A directory comes before its files."""
        before, after = self._trees
        stack = [self._children(Pair(b"", before.root, after.root), first=True)]
        while stack:
            pair = next(stack[-1], None)
            if pair is None:
                stack.pop()
                continue
            yield pair
            if _is_directory(pair.before) or _is_directory(pair.after):
                if len(stack) >= _MOST_DEPTH:
                    self._note("a directory is too deep")
                    continue
                stack.append(self._children(pair))

    def _children(self, parent: Pair, *, first: bool = False) -> Iterator[Pair]:
        before, after = (self._names(side, node) for side, node in enumerate(parent[1:]))
        extra = set().union(*(tree.mounts for tree in self._trees)) if first else set()
        own = {path[1:] for path in extra if path.startswith(b"/[")}
        for name in sorted({*before, *after, *own}):
            path = parent.path + b"/" + name
            left = self._child(0, path, parent.before, before.get(name))
            right = self._child(1, path, parent.after, after.get(name))
            if left is not None or right is not None:
                yield Pair(path, left, right)

    def _names(self, side: int, node: Node | None) -> dict[bytes, int]:
        if node is None or not node.inode.is_directory:
            return {}
        key = (id(node.files), node.inode.number)
        if key in self._seen[side]:  # only a damaged file system has a directory twice
            self._note("a directory is in two places")
            return {}
        self._seen[side].add(key)
        try:
            return node.files.entries(node.inode)
        except DiskUnreadable as error:
            self._note(str(error))
            return {}

    def _child(self, side: int, path: bytes, parent: Node | None, number: int | None) -> Node | None:
        mounted = self._trees[side].mounts.get(path)
        if parent is None or (number is None and mounted is None):
            return None
        try:
            node = self._trees[side].child(path, parent, number or 0)
        except DiskUnreadable as error:
            self._note(str(error))
            return None
        return node if node.inode.mode else None

    def _note(self, damage: str) -> None:
        self.damages[damage] = self.damages.get(damage, 0) + 1


def _is_directory(node: Node | None) -> bool:
    return node is not None and node.inode.is_directory
