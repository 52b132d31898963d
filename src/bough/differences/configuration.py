"""Changed configuration files, as unified diffs.

A comparison of two texts may take very long if someone made the texts for that. So each diff has a time, and
all diffs together have a size.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import signal
import stat
from types import FrameType

from bough.differences.content import Contents, read_text
from bough.differences.disk import DiskUnreadable
from bough.differences.secrets import MASK, mask, why_withheld
from bough.differences.tree import Node
from bough.differences.walk import Pair

_PLACES = re.compile(
    rb"/(?:usr/local/)?etc/.*|/boot/(?:grub2?|loader|extlinux|syslinux)/.*\.(?:cfg|conf)|/opt/[^/]+/etc/.*"
    rb"|/var/spool/cron/.*|/usr/local/lib/(?:systemd|sysctl\.d)/.*",
    re.DOTALL,  # a name may contain a newline
)
_MOST_TEXT = 256 << 10
_MOST_LINES_EACH = 400
_MOST_LINE = 2000
_CUT = "... (cut)"
_MOST_BYTES_TOGETHER = 2 << 20
_MOST_ENTRIES = 20_000
_MOST_PATH_BYTES = 4 << 20
_EACH_S, _TOGETHER_S = 2.0, 20.0
#: /etc/passwd and /etc/group: the accounts are listed by themselves.
_ELSEWHERE = {b"/etc/passwd": "see the users", b"/etc/group": "see the groups"}


def is_configuration(path: bytes) -> bool:
    return _PLACES.fullmatch(path) is not None


class TooSlow(Exception):
    """A diff takes too long."""


class Configuration:
    """The changed configuration files.

    Args:
        pristine: path -> MD5 of the version in the package, of packages that only one side has.

    Attributes:
        entries: one for each file: path, change, details, diff, withheld.
        left_off: number of files without an entry.
    """

    def __init__(self, contents: Contents, pristine: dict[bytes, str]) -> None:
        self.entries: list[dict[str, object]] = []
        self.left_off = 0
        self._contents = contents
        self._pristine = pristine
        self._left_bytes = _MOST_BYTES_TOGETHER
        self._left_path_bytes = _MOST_PATH_BYTES
        self._left_s = _TOGETHER_S

    def add(self, pair: Pair, details: list[str]) -> None:
        """Add a file that differs, with sentences about everything except its text."""
        self._left_path_bytes -= len(pair.path)
        if len(self.entries) >= _MOST_ENTRIES or self._left_path_bytes <= 0:
            self.left_off += 1
            return
        nodes = [node for node in pair[1:] if node is not None]
        change = "added" if pair.before is None else "removed" if pair.after is None else "changed"
        entry: dict[str, object] = {"path": text_of(pair.path), "change": change, "details": details}
        self.entries.append(entry)
        if "content" not in details and change == "changed":
            return
        if not all(node.inode.is_regular for node in nodes):
            entry["details"] = details or [_tell_kind(node) for node in nodes]
            return
        self._add_diff(entry, pair, nodes)

    def _add_diff(self, entry: dict[str, object], pair: Pair, nodes: list[Node]) -> None:
        if pair.path in _ELSEWHERE:
            entry["why"] = _ELSEWHERE[pair.path]
            return
        texts = [read_text(node, _MOST_TEXT) for node in nodes]
        if any(text is None for text in texts):
            entry["why"] = "it is larger than 256 KiB, or damaged"
            withheld = why_withheld(pair.path, [node.inode.mode for node in nodes], [])
            if withheld:
                entry["withheld"] = withheld
            return
        contents = [text for text in texts if text is not None]
        withheld = why_withheld(pair.path, [node.inode.mode for node in nodes], contents)
        if withheld:
            entry["withheld"] = withheld
        elif len(nodes) == 1 and self._is_pristine(pair.path, contents[0]):
            entry["why"] = "as in its package"
        elif any(b"\0" in content for content in contents):
            entry["why"] = "it is binary"
        else:
            before = contents[0] if pair.before is not None else b""
            after = contents[-1] if pair.after is not None else b""
            self._render(entry, before, after)

    def _is_pristine(self, path: bytes, content: bytes) -> bool:
        known = self._pristine.get(path)
        return known is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() == known

    def _render(self, entry: dict[str, object], before: bytes, after: bytes) -> None:
        if self._left_bytes <= 0 or self._left_s <= 0:
            entry["why"] = "the diffs together are too long"
            return
        path = str(entry["path"])
        names = ("/dev/null" if entry["change"] == "added" else path, path)
        if entry["change"] == "removed":
            names = (path, "/dev/null")
        try:
            lines = self._diff(before, after, names)
        except TooSlow:
            entry["why"] = "the versions are too different for a diff"
            return
        if len(lines) > _MOST_LINES_EACH:
            more = len(lines) - _MOST_LINES_EACH
            lines = [*lines[:_MOST_LINES_EACH], f"... {more} more lines"]
        masked = [_mask(line) for line in lines]
        if any(MASK in one and MASK not in line for one, line in zip(masked, lines, strict=True)):
            entry["masked"] = True
        entry["diff"] = "\n".join(masked)
        self._left_bytes -= sum(map(len, masked))

    def _diff(self, before: bytes, after: bytes, names: tuple[str, str]) -> list[str]:
        def stop(_: int, __: FrameType | None) -> None:
            raise TooSlow

        signal.signal(signal.SIGALRM, stop)
        each = min(_EACH_S, self._left_s)
        signal.setitimer(signal.ITIMER_REAL, each)
        try:
            return list(difflib.unified_diff(_lines(before), _lines(after), *names, n=2, lineterm=""))
        finally:
            left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
            self._left_s -= each - left


def _mask(line: str) -> str:
    """Return a line without secrets. A bound of the line bounds the work of the patterns."""
    return mask(line) if len(line) <= _MOST_LINE else mask(line[:_MOST_LINE]) + _CUT


def _lines(content: bytes) -> list[str]:
    """Return the lines as a diff shows them. As in diff(1), a missing newline at the end is told."""
    lines = [printable(line) for line in content.decode(errors="backslashreplace").split("\n")]
    return [*lines[:-1], *([f"{lines[-1]} (no newline at the end)"] if lines[-1] else [])]


def printable(text: str) -> str:
    """Return a text with escapes instead of control characters, except tabs."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def text_of(path: bytes) -> str:
    return printable(path.decode(errors="backslashreplace"))


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}


def kind_of(node: Node) -> str:
    return _KINDS.get(stat.S_IFMT(node.inode.mode), "unknown")


def _tell_kind(node: Node) -> str:
    return f"link to {text_of(target_of(node))}" if node.inode.is_link else kind_of(node)


def target_of(node: Node) -> bytes:
    try:
        return node.files.link(node.inode)
    except DiskUnreadable:
        return b"(damaged)"
