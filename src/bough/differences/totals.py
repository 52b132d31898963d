"""Changed files, and the use of the disk, by directory. Bounded: a guest can have many directories."""

from __future__ import annotations

from bough.differences.configuration import text_of
from bough.differences.tree import Node
from bough.differences.walk import Pair

_DEPTH = 4
_MOST_KEPT = 20_000
_MOST_TOLD = 200
_MOST_LISTED = 10_000
_MOST_PATH_BYTES = 4 << 20
_USE_DEPTH = 2


class ChangedFiles:
    """Counts of added, removed and changed files.

    Attributes:
        of_packages: number of files that belong to packages that differ.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[bytes, ...], list[int]] = {}
        self._list: list[dict[str, object]] = []
        self._total = [0, 0, 0]
        self._left_path_bytes = _MOST_PATH_BYTES
        self.of_packages = 0

    def add(self, pair: Pair, details: list[str]) -> None:
        column = 0 if pair.before is None else 1 if pair.after is None else 2
        self._total[column] += 1
        key = _key(pair.path, _DEPTH)
        if key not in self._counts and len(self._counts) >= _MOST_KEPT:
            key = key[:1]
        self._counts.setdefault(key, [0, 0, 0])[column] += 1
        self._left_path_bytes -= len(pair.path)
        if len(self._list) < _MOST_LISTED and self._left_path_bytes > 0:
            change = ("added", "removed", "changed")[column]
            self._list.append({"path": text_of(pair.path), "change": change, "details": details})

    def render(self) -> dict[str, object]:
        counts, depth = self._counts, _DEPTH
        while len(counts) > _MOST_TOLD and depth > 1:
            depth -= 1
            merged: dict[tuple[bytes, ...], list[int]] = {}
            for key, numbers in counts.items():
                total = merged.setdefault(key[:depth], [0, 0, 0])
                total[:] = [one + more for one, more in zip(total, numbers, strict=True)]
            counts = merged
        told = sorted(counts.items())[:_MOST_TOLD]
        added, removed, changed = self._total
        return {
            "added": added,
            "removed": removed,
            "changed": changed,
            "of_packages": self.of_packages,
            "directories": [
                {"path": _path(key), "added": one[0], "removed": one[1], "changed": one[2]}
                for key, one in told
            ],
            "list": self._list,
            "left_off": added + removed + changed - len(self._list),
        }


class DiskUse:
    """Bytes that the files of each side use. A file with several names counts once."""

    def __init__(self) -> None:
        self._bytes: dict[tuple[bytes, ...], list[int]] = {}
        self._total = [0, 0]
        self._seen: tuple[set[tuple[int, int]], set[tuple[int, int]]] = (set(), set())

    def add(self, pair: Pair) -> None:
        key: tuple[bytes, ...] | None = None
        for side, node in enumerate(pair[1:]):
            if node is None or not node.inode.used_bytes or self._is_known(side, node):
                continue
            self._total[side] += node.inode.used_bytes
            if key is None:
                key = _key(pair.path, _USE_DEPTH)
                if key not in self._bytes and len(self._bytes) >= _MOST_KEPT:
                    key = key[:1]
            self._bytes.setdefault(key, [0, 0])[side] += node.inode.used_bytes

    def _is_known(self, side: int, node: Node) -> bool:
        if node.inode.links <= 1 or node.inode.is_directory:
            return False
        identity = (id(node.files), node.inode.number)
        if identity in self._seen[side]:
            return True
        self._seen[side].add(identity)
        return False

    def render(self) -> dict[str, object]:
        differing = [(key, one) for key, one in self._bytes.items() if one[0] != one[1]]
        differing.sort(key=lambda item: -abs(item[1][0] - item[1][1]))
        return {
            "before_bytes": self._total[0],
            "after_bytes": self._total[1],
            "directories": [
                {"path": _path(key), "before_bytes": one[0], "after_bytes": one[1]}
                for key, one in differing[:_MOST_TOLD]
            ],
        }


def _key(path: bytes, depth: int) -> tuple[bytes, ...]:
    """Return the first names of the directory that has the file."""
    return tuple(path.split(b"/", depth + 1)[1 : depth + 1][: path.count(b"/") - 1])


def _path(key: tuple[bytes, ...]) -> str:
    return text_of(b"/" + b"/".join(key))
