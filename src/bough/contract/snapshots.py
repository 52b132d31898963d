"""Requests about snapshots and forks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from bough.contract.request import Request, Route

if TYPE_CHECKING:
    from bough.contract.answers import Forked, MachineInfo, SnapshotInfo
    from bough.contract.checks import FORK_NAMES, FORK_WAIT_S, FORKS, Length


Identity = Literal["new", "keep"]


class ListSnapshots(Request):
    """List all snapshots, the oldest first."""

    route = Route("GET", "/snapshots")
    answer: ClassVar[list[SnapshotInfo]]


class TakeSnapshot(Request):
    """Take a snapshot of a running or stopped machine.

    A snapshot of a running machine includes the memory, unless `memory` is false. `now`: also of a guest that
    is still booting.
    """

    route = Route("POST", "/snapshots", "long")
    answer: ClassVar[SnapshotInfo]
    machine: str
    label: str | None = None
    message: Annotated[str, Length(most=10_000)] = ""
    memory: bool = True
    now: bool = False


class GetSnapshot(Request):
    """Return a snapshot's manifest."""

    route = Route("GET", "/snapshots/{reference}")
    answer: ClassVar[SnapshotInfo]
    reference: str


class DeleteSnapshot(Request):
    """Delete a snapshot. Forks and other snapshots are unaffected."""

    route = Route("DELETE", "/snapshots/{reference}")
    reference: str


class VerifySnapshot(Request):
    """Read a whole snapshot, and compare the checksums."""

    route = Route("POST", "/snapshots/{reference}/verify", "long")
    reference: str


class RestoreMachine(Request):
    """Rewind a machine to a snapshot. With `keep`, take a snapshot of the present state first."""

    route = Route("POST", "/machines/{reference}/restore", "long")
    answer: ClassVar[MachineInfo]
    reference: str
    snapshot: str
    keep: bool = False


class MakeForks(Request):
    """Make forks of a machine or a snapshot. The answer has for each fork, in order: {"machine": ...} or
    {"error": ...}.

    `names`: a name for each fork; with `count`, one name to be numbered, or none to generate names. `now`:
    also fork a machine whose guest is still booting.
    """

    route = Route("POST", "/forks", "long")
    answer: ClassVar[list[Forked]]
    source: str
    names: Annotated[Sequence[str], FORK_NAMES] = ()
    count: Annotated[int | None, FORKS] = None
    identity: Identity = "new"
    cold: bool = False
    ephemeral: bool = False
    wait: bool = True
    now: bool = False
    timeout_s: Annotated[float | None, FORK_WAIT_S] = None
