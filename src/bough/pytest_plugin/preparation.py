"""The snapshots that a suite's forks start from: made once, kept, and found again by their keys.

A key is a digest of everything that the snapshot is made of: the digests of images, the file with the content
of the files that it names, and the source of the preparation. The label of the snapshot has the key. Another
suite, or another branch of the suite, has other keys; of one suite the last KEPT snapshots stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from bough.errors import BoughError, NotFound
from bough.pytest_plugin.locks import alone
from bough.pytest_plugin.options import Source
from bough.pytest_plugin.source_text import source_of

Prepare = Callable[[Any], object]
KEPT = 3
LABEL = "pytest-"


class Snapshot(Protocol):
    """The parts of a snapshot, of a machine or of a project, that this file uses."""

    @property
    def id(self) -> str: ...
    def info(self) -> Any: ...
    def delete(self) -> None: ...
    def fork(self, *, ephemeral: bool) -> Any: ...


S = TypeVar("S", bound=Snapshot)
S_co = TypeVar("S_co", bound=Snapshot, covariant=True)


class KeptSnapshot(NamedTuple):
    """A snapshot in the home: when it was created, and the message that this file gave it."""

    created: str
    id: str
    message: str


class Snapshots(Protocol[S_co]):
    """One kind of snapshots: of machines, or of projects."""

    def describe(self, source: Source) -> object:
        """Return all that a snapshot of the source is made of, as JSON has it. Raises BoughError."""

    def find(self, reference: str) -> S_co:
        """Return the snapshot with that label or id. Raises NotFound."""

    def make(self, source: Source, prepare: Prepare | None, label: str, message: str) -> S_co:
        """Boot, prepare and take the snapshot. Nothing else is left. Raises BoughError, or as `prepare`."""

    def list(self) -> list[KeptSnapshot]:
        """Return all snapshots of the home."""


class Prepared(Generic[S]):
    """Finds the prepared snapshots of one kind, and has them made.

    Args:
        home: the home's directory. `locks`: directory of the locks between processes.
        run: id of the run of the suite, the same in all its workers.
        fresh: make each snapshot anew that this run has not made.
    """

    def __init__(self, snapshots: Snapshots[S], home: Path, locks: Path, *, run: str, fresh: bool) -> None:
        self._snapshots = snapshots
        self._home = home
        self._locks = locks
        self._run = run
        self._fresh = fresh
        self._found: dict[str, S] = {}
        #: The digest of each source: files and images are read once in a run.
        self._digests: dict[str, str] = {}

    def find(self, source: Source, prepare: Prepare | None) -> S:
        """Return the snapshot. The first process that needs it makes it, while the others wait.

        Raises:
            BoughError: of the machines, or what `prepare` raises. Nothing half-made is left.
        """
        key = digest_of(self._digest(source), source_of(prepare))
        if key not in self._found:
            with alone(lock_of(self._locks, self._home, key)):
                self._found[key] = self._find(source, prepare, LABEL + key)
        return self._found[key]

    def _digest(self, source: Source) -> str:
        asked = digest_of(source.name, str(source.base), source.settings)
        if asked not in self._digests:
            self._digests[asked] = digest_of(self._snapshots.describe(source))
        return self._digests[asked]

    def fork(self, snapshot: S, source: Source, prepare: Prepare | None) -> Any:
        """Return an ephemeral fork of a snapshot that `find` has returned. Raises as `find`."""
        try:
            return snapshot.fork(ephemeral=True)
        except NotFound:
            self.forget(snapshot)
            return self.find(source, prepare).fork(ephemeral=True)

    def forget(self, snapshot: S) -> None:
        """Look again next time: another run has deleted the snapshot."""
        self._found = {key: one for key, one in self._found.items() if one.id != snapshot.id}

    def _find(self, source: Source, prepare: Prepare | None, label: str) -> S:
        suite = suite_of(source, prepare)
        message = f"prepared for tests of {source.name} (suite {suite}, run {self._run})"
        with contextlib.suppress(NotFound):
            snapshot = self._snapshots.find(label)
            if not self._fresh or snapshot.info().message == message:
                return snapshot
            snapshot.delete()
        made = self._snapshots.make(source, prepare, label, message)
        self._delete_old(suite, made)
        return made

    def _delete_old(self, suite: str, newest: S) -> None:
        """Delete the suite's oldest snapshots. Forks of them live on."""
        ours = [one for one in self._snapshots.list() if f"(suite {suite}, " in one.message]
        for old in sorted(ours)[:-KEPT]:
            if old.id != newest.id:
                with contextlib.suppress(BoughError):
                    self._snapshots.find(old.id).delete()


def lock_of(locks: Path, home: Path, key: str) -> Path:
    """Return the lock that a process holds while it makes the snapshot of that key."""
    return locks / f"{digest_of(str(home), key)}.lock"


def digest_of(*parts: object) -> str:
    """Return 16 hexadecimal digits that differ when a part differs."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def suite_of(source: Source, prepare: Prepare | None) -> str:
    """Return the name of a suite's snapshots: it stays while file and preparation change."""
    name = f"{prepare.__module__}.{prepare.__qualname__}" if prepare is not None else ""
    return digest_of(str(source.base), source.name, name)
