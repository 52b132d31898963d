"""Losses, failures and counts of a copy, noted at both ends. One end runs in a guest: standard
library only.
"""

from __future__ import annotations

MOST_NAMES = 100
MOST_BYTES = 4 << 20
_MOST_COUNT = 10**15


class Fault(Exception):
    """A copy that cannot begin or cannot go on; client/copying/errors.py has the words for each `kind`."""

    def __init__(self, kind: str, path: bytes, text: str | None = "") -> None:
        super().__init__(kind, path, text)
        self.kind = kind
        self.path = path
        self.text = text or "no reason given"


class CopyReport:
    """Counts, and the first names of each kind: the list of a million files is short.

    Attributes:
        kept_out: by reason ("pipe", "owner", ...), the number of entries and their first names.
        failed: the first entries that could not be copied, each with the cause.
        failures: number of all entries that could not be copied.
    """

    def __init__(self) -> None:
        self.kept_out: dict[str, tuple[int, list[bytes]]] = {}
        self.failed: list[tuple[bytes, str]] = []
        self.failures = 0
        self.files = 0
        self.bytes = 0
        self.fault: Fault | None = None

    def add(self, reason: str, path: bytes) -> None:
        count, names = self.kept_out.setdefault(reason, (0, []))
        if len(names) < MOST_NAMES:
            names.append(path)
        self.kept_out[reason] = (count + 1, names)

    def fail(self, path: bytes, text: str | None) -> None:
        self.failures += 1
        if len(self.failed) < MOST_NAMES:
            self.failed.append((path, text or "no reason given"))

    def merge(self, other: CopyReport) -> None:
        """Add the notes of the other end, without its counts of files and bytes."""
        for reason, (count, names) in other.kept_out.items():
            before, mine = self.kept_out.get(reason, (0, []))
            self.kept_out[reason] = (before + count, (mine + names)[:MOST_NAMES])
        self.failed = (self.failed + other.failed)[:MOST_NAMES]
        self.failures += other.failures
        self.fault = self.fault or other.fault

    def render(self) -> bytes:
        """Return bytes that `parse` reads: records that end in NUL. No path contains NUL."""
        records = [b"total\t%d\t%d\t%d" % (self.files, self.bytes, self.failures)]
        for reason, (count, names) in self.kept_out.items():
            records.append(b"kind\t%d\t%s" % (count, reason.encode()))
            records += [b"name\t" + name for name in names]
        records += [b"failed\t%s\t%s" % (text.encode(errors="replace"), path) for path, text in self.failed]
        if self.fault is not None:
            kind, text = self.fault.kind.encode(), self.fault.text.encode(errors="replace")
            records.append(b"fault\t%s\t%s\t%s" % (kind, text.replace(b"\t", b" "), self.fault.path))
        return MARK + b"".join(record + b"\0" for record in records)


#: The report begins here. Text before the mark is from the interpreter or the shell.
MARK = b"\0bough copy\0"


def parse(said: bytes) -> tuple[CopyReport | None, bytes]:
    """Return the notes in the other end's standard error, and the text before them.

    Raises:
        ValueError, KeyError: `render` did not make these notes.
    """
    before, mark, report = said.partition(MARK)
    if not mark:
        return None, before
    notes = CopyReport()
    reason = ""
    for record in report.split(b"\0")[:-1]:
        word, _, rest = record.partition(b"\t")
        if word == b"total":
            notes.files, notes.bytes, notes.failures = map(_parse_count, rest.split(b"\t"))
        elif word == b"kind":
            count, _, name = rest.partition(b"\t")
            reason = name.decode("ascii")
            notes.kept_out[reason] = (_parse_count(count), [])
        elif word == b"name":
            notes.kept_out[reason][1].append(rest)
        elif word == b"failed":
            text, _, path = rest.partition(b"\t")
            notes.failed.append((path, text.decode(errors="replace")))
        elif word == b"fault":
            kind, text, path = rest.split(b"\t", 2)
            notes.fault = Fault(kind.decode("ascii"), path, text.decode(errors="replace"))
        else:
            raise ValueError("unknown record")
    notes.failures = max(notes.failures, len(notes.failed))
    return notes, before


def _parse_count(text: bytes) -> int:
    number = int(text)
    if not 0 <= number < _MOST_COUNT or not text.isdigit():
        raise ValueError("not a count")
    return number
