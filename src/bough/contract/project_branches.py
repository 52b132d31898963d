"""Requests about snapshots and forks of projects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from bough.contract.request import Request, Route, stream

if TYPE_CHECKING:
    from bough.contract.answers import ProjectSnapshotInfo
    from bough.contract.checks import FORK_NAMES, FORK_WAIT_S, FORKS, Length


class TakeProjectSnapshot(Request):
    """Take a snapshot of all machines of a project at one moment.

    A running machine is included with its memory, unless `memory` is false. `now`: also of guests that are
    still booting.
    """

    route = Route("POST", "/projects/{reference}/snapshots", "long", body_optional=True)
    answer: ClassVar[ProjectSnapshotInfo]
    reference: str
    label: str | None = None
    message: Annotated[str, Length(most=10_000)] = ""
    memory: bool = True
    now: bool = False


class ListProjectSnapshots(Request):
    """List the snapshots of projects, the oldest first."""

    route = Route("GET", "/project-snapshots")
    answer: ClassVar[list[ProjectSnapshotInfo]]


class GetProjectSnapshot(Request):
    """Return a snapshot of a project."""

    route = Route("GET", "/project-snapshots/{reference}")
    answer: ClassVar[ProjectSnapshotInfo]
    reference: str


class DeleteProjectSnapshot(Request):
    """Delete a snapshot of a project with all its parts. Forks and other snapshots are unaffected."""

    route = Route("DELETE", "/project-snapshots/{reference}")
    reference: str


class ForkProject(Request):
    """Make forks of a project or of a project's snapshot. The answer has for each fork, in order:
    {"project": ...} or {"error": ...}.

    `names`: a name for each fork; with `count`, one name to be numbered, or none to generate names. `now`:
    also fork guests that are still booting.
    """

    route = Route("POST", "/project-forks", "long")
    answer: ClassVar[list[dict[str, Any]]]
    source: str
    names: Annotated[Sequence[str], FORK_NAMES] = ()
    count: Annotated[int | None, FORKS] = None
    ephemeral: bool = False
    now: bool = False
    timeout_s: Annotated[float | None, FORK_WAIT_S] = None


class RestoreProject(Request):
    """Rewind all machines of a project to a snapshot. `keep`: take a snapshot of the present state first."""

    route = Route("POST", "/projects/{reference}/restore", "long")
    reference: str
    snapshot: str
    keep: bool = False


class SuspendProject(Request):
    """Write the memory of all running machines of a project to disk, and end their QEMUs."""

    route = Route("POST", "/projects/{reference}/suspend", "long")
    reference: str


class ResumeProject(Request):
    """Let all suspended and paused machines of a project run again."""

    route = Route("POST", "/projects/{reference}/resume", "long")
    reference: str


class RemoveProject(Request):
    """Delete an ephemeral project with its machines, disks and networks. Other projects: see DownProject."""

    route = Route("DELETE", "/projects/{reference}")
    reference: str


class HoldProject(Request):
    """Keep an ephemeral project alive while the WebSocket is open."""

    route = stream("/projects/{reference}/hold")
    reference: str
