"""The process that compares two systems. It reads open files and prints the result.

    python -I -S -c RUN DIRECTORY

The request is one JSON object on standard input: for each side its disks, as numbers of open files with
their formats, and the volumes on the disks. The answer is JSON lines: {"progress": files} while the process
works, then {"result": ...} or {"error": ..., "side": ...}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from bough.differences.accounts import compare_accounts, read_groups, read_users
from bough.differences.configuration import (
    Configuration,
    is_configuration,
    kind_of,
    printable,
    target_of,
    text_of,
)
from bough.differences.content import Contents, compare_volumes
from bough.differences.disk import Disk, DiskUnreadable
from bough.differences.packages import Packages, changed_names, compare_packages, files_of, read_packages
from bough.differences.sysctls import compare_values, read_sysctls
from bough.differences.totals import ChangedFiles, DiskUse
from bough.differences.tree import Found, Node, Tree, open_tree
from bough.differences.units import compare_units, read_units
from bough.differences.walk import Pair, Walk

#: Program text for `python -c`: the first argument names the directory of the package.
RUN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from bough.differences.program import main; main()"
_BETWEEN_REPORTS = 20_000
_RELEASES = (b"/etc/os-release", b"/usr/lib/os-release")
_MOST_ATTRIBUTES = 5
_SIDES = ("before", "after")


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    sides: list[Tree] = []
    for name in _SIDES:
        try:
            sides.append(_open(request[name]))
        except DiskUnreadable as error:
            _say(error=str(error), side=name)
            return
    try:
        _say(result=Comparison(sides[0], sides[1], request["most_bytes"]).run())
    except DiskUnreadable as error:
        _say(error=str(error))
    except MemoryError:
        _say(error="its directories are larger than expected")


def _open(side: dict[str, Any]) -> Tree:
    disks = [Disk(one["descriptors"], one["formats"]) for one in side["disks"]]
    return open_tree(disks, [Found(**one) for one in side["volumes"]])


def _say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


class Comparison:
    """A comparison of two systems."""

    def __init__(self, before: Tree, after: Tree, most_bytes: int) -> None:
        self._before, self._after = before, after
        self._contents = Contents(most_bytes)
        self._packages = (read_packages(before), read_packages(after))
        self._of_packages = self._files_of_packages()
        self._configuration = Configuration(self._contents, self._pristine())
        self._files = ChangedFiles()
        self._use = DiskUse()
        self._notes: list[str] = []
        self._damages: dict[str, int] = {}

    def run(self) -> dict[str, object]:
        """Return the differences, as JSON has them."""
        walk = Walk(self._before, self._after)
        for count, pair in enumerate(walk.pairs(), 1):
            self._use.add(pair)
            self._compare(pair)
            if count % _BETWEEN_REPORTS == 0:
                _say(progress=count)
        for damage, number in walk.damages.items():
            self._damages[damage] = self._damages.get(damage, 0) + number
        return self._render()

    def _compare(self, pair: Pair) -> None:
        before, after = pair.before, pair.after
        if before is None or after is None:
            here = before or after
            if here is None or here.inode.is_directory:
                return
            details: list[str] = []
        else:
            details = self._details(pair.path, before, after)
            if not details:
                return
        if is_configuration(pair.path):
            self._configuration.add(pair, details)
        elif pair.path in self._of_packages:
            self._files.of_packages += 1
        else:
            self._files.add(pair, details)

    def _details(self, path: bytes, before: Node, after: Node) -> list[str]:
        """Return how two files differ; nothing: they do not."""
        old, new = before.inode, after.inode
        kinds = kind_of(before), kind_of(after)
        if kinds[0] != kinds[1]:
            return [f"{kinds[0]} -> {kinds[1]}"]
        found = [] if self._is_same(path, before, after) else ["content"]
        if old.is_link and found:
            found = [f"link to {text_of(target_of(before))} -> {text_of(target_of(after))}"]
        elif not old.is_link and old.mode != new.mode:
            found.append(f"mode {old.mode & 0o7777:04o} -> {new.mode & 0o7777:04o}")
        if (old.uid, old.gid) != (new.uid, new.gid):
            found.append(f"owner {old.uid}:{old.gid} -> {new.uid}:{new.gid}")
        return found + _attributes(before, after)

    def _is_same(self, path: bytes, before: Node, after: Node) -> bool:
        try:
            if before.inode.is_link:
                return before.files.link(before.inode) == after.files.link(after.inode)
            if before.inode.is_device:
                return before.inode.block[:8] == after.inode.block[:8]
            return not before.inode.is_regular or self._contents.are_equal(before, after)
        except DiskUnreadable as error:
            damage = f"{error}, as of {text_of(path)}"
            if len(self._damages) < 20 or damage in self._damages:
                self._damages[damage] = self._damages.get(damage, 0) + 1
            return False

    def _changed_packages(self) -> set[str]:
        return changed_names(*self._packages)

    def _files_of_packages(self) -> set[bytes]:
        names = self._changed_packages()
        if not names:
            return set()
        sides = zip((self._before, self._after), self._packages, strict=True)
        return set().union(*(files_of(tree, packages, names) for tree, packages in sides))

    def _pristine(self) -> dict[bytes, str]:
        """Return the versions in the packages of the files that only one side has."""
        found: dict[bytes, str] = {}
        for name in self._changed_packages():
            for packages in self._packages:
                files = packages.conffiles.get(name, {})
                found |= {path.encode(errors="surrogateescape"): digest for path, digest in files.items()}
        return found

    def _render(self) -> dict[str, object]:
        trees = (self._before, self._after)
        users, groups = [read_users(tree) for tree in trees], [read_groups(tree) for tree in trees]
        self._note_all()
        entries = self._configuration.entries
        result: dict[str, object] = {
            "systems": dict(zip(_SIDES, map(_system, trees), strict=True)),
            "packages": compare_packages(*self._packages),
            "configuration": entries,
            "withheld": [str(entry["path"]) for entry in entries if "withheld" in entry or "masked" in entry],
            "files": self._files.render(),
            "units": compare_units(*map(read_units, trees)),
            "users": compare_accounts(*users),
            "groups": compare_accounts(*groups),
            "sysctls": compare_values(*map(read_sysctls, trees)),
            "disk_use": self._use.render(),
            "notes": [printable(note) for note in self._notes],
        }
        return result

    def _note_all(self) -> None:
        self._note_packages(self._packages)
        for name, tree in zip(_SIDES, (self._before, self._after), strict=True):
            for files in dict.fromkeys(tree.mounts.values()):
                for damage, number in files.damages.items():
                    self._damages[damage] = self._damages.get(damage, 0) + number
            both = set(self._before.notes) & set(self._after.notes)
            self._notes += [f"{name}: {note}" for note in tree.notes if note not in both]
        self._notes += [note for note in self._before.notes if note in self._after.notes]
        self._notes += [
            f"the file system is damaged: {text} ({n} times)" for text, n in self._damages.items()
        ]
        self._notes += self._compare_unread()
        if self._contents.assumed:
            count = self._contents.assumed
            self._notes.append(f"{count} large files were compared by size and time only")
        if self._configuration.left_off:
            self._notes.append(f"{self._configuration.left_off} configuration files are left out")

    def _note_packages(self, packages: Iterable[Packages]) -> None:
        one, other = packages
        if one.manager != other.manager:
            names = [found.manager or "no package manager" for found in (one, other)]
            self._notes.append(f"the packages cannot be compared: {names[0]} before, {names[1]} after")
        self._notes += [
            f"{name}: {found.note}" for name, found in zip(_SIDES, (one, other), strict=True) if found.note
        ]

    def _compare_unread(self) -> list[str]:
        """Tell whether the volumes that bough cannot read are equal, byte by byte."""
        notes = []
        others = {(one.disk, one.name): one for one, _ in self._before.unread}
        for one, why in self._after.unread:
            other = others.pop((one.disk, one.name), None)
            if other is None:
                notes.append(f"after: {one} cannot be read: {why}")
                continue
            disks = self._before.disks[other.disk], self._after.disks[one.disk]
            equal = compare_volumes(disks, (other, one), self._contents)
            told = {True: "it is equal", False: "it differs", None: "it is too large to compare"}[equal]
            if not equal:
                notes.append(f"the files of {one} cannot be read: {why}; {told}")
        return notes + [f"before: {one} is not there after" for one in others.values()]


def _attributes(before: Node, after: Node) -> list[str]:
    """Return a sentence for each extended attribute that differs. A value may be a secret."""
    old, new = before.inode, after.inode
    if old.attributes == new.attributes and not old.attribute_block and not new.attribute_block:
        return []
    try:
        one, other = before.files.attributes(old), after.files.attributes(new)
    except DiskUnreadable:
        return ["attributes (damaged)"]
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    return [f"attribute {printable(name)}" for name in names[:_MOST_ATTRIBUTES]]


def _system(tree: Tree) -> dict[str, object]:
    """Return what identifies the Linux of a side."""
    text = next((text for path in _RELEASES if (text := tree.read(path)) is not None), b"")
    fields: dict[str, str] = {}
    for line in text.decode(errors="backslashreplace").splitlines()[:100]:
        key, _, value = line.partition("=")
        fields[key] = printable(value.strip().strip("\"'"))[:200]
    return {
        "os": fields.get("ID", ""),
        "version": fields.get("VERSION_ID", ""),
        "title": fields.get("PRETTY_NAME", ""),
        "replayed": any(files.was_replayed for files in tree.mounts.values()),
    }
