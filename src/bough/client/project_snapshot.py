"""The Python API's snapshots and forks of projects. `P` is the class of the projects that are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, overload

from bough.contract import project_branches as contract
from bough.errors import BoughError, error_from_dict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bough.client.connection import Connection
    from bough.contract.answers import ProjectSnapshotInfo
    from bough.progress import Report

#: Seconds that a call may take beyond the service's own timeout: forks are made one after the other.
_GRACE_S = 60.0


class Held(Protocol):
    """The part of a project that its maker uses."""

    def hold(self) -> None: ...


P = TypeVar("P", bound=Held)
P_co = TypeVar("P_co", bound=Held, covariant=True)


class MakeProject(Protocol[P_co]):
    """Makes the client's object of a project."""

    def __call__(self, name: str, *, ephemeral: bool) -> P_co: ...


class ProjectFork(NamedTuple, Generic[P]):
    """One of many forks: the project, or the reason why there is none. `raw` is the service's answer."""

    project: P | None
    error: BoughError | None
    raw: dict[str, Any]


class ProjectSnapshotOf(Generic[P]):
    """One moment of all machines of a project. Usable from several threads at once."""

    def __init__(
        self, api: Connection, snapshot_id: str, make: MakeProject[P], *, label: str | None = None
    ) -> None:
        self._api = api
        self._make = make
        self.id = snapshot_id
        self.label = label

    def __repr__(self) -> str:
        return f"<bough.ProjectSnapshot {self.label or self.id}>"

    def info(self) -> ProjectSnapshotInfo:
        """Return the snapshot's description. Raises NotFound."""
        from bough.contract.answers import ProjectSnapshotInfo

        return ProjectSnapshotInfo.from_dict(self._api.send(contract.GetProjectSnapshot(reference=self.id)))

    def delete(self) -> None:
        """Delete the snapshot with all its parts. Forks and other snapshots are unaffected."""
        self._api.send(contract.DeleteProjectSnapshot(reference=self.id))

    @overload
    def fork(
        self,
        name: str | None = None,
        *,
        count: None = None,
        ephemeral: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> P: ...
    @overload
    def fork(
        self,
        name: str | None = None,
        *,
        count: int,
        ephemeral: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> list[P]: ...
    def fork(
        self,
        name: str | None = None,
        *,
        count: int | None = None,
        ephemeral: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> P | list[P]:
        """Return a new project that continues from the snapshot; see Project.fork."""
        names = [name] if name else []
        given: dict[str, Any] = {"ephemeral": ephemeral, "timeout": timeout}
        made = fork_projects(
            self._api, self._make, self.id, names=names, count=count, progress=progress, **given
        )
        return all_made(made) if count is not None else all_made(made)[0]


def fork_projects(
    api: Connection,
    make: MakeProject[P],
    source: str,
    *,
    names: Sequence[str] = (),
    count: int | None = None,
    ephemeral: bool = False,
    now: bool = False,
    timeout: float | None = None,
    progress: Report | None = None,
) -> list[ProjectFork[P]]:
    """Make forks that succeed or fail independently. Raises only if the source cannot be forked."""
    request = contract.ForkProject(
        source=source, names=names, count=count, ephemeral=ephemeral, now=now, timeout_s=timeout
    )
    limit = None if timeout is None else timeout + _GRACE_S
    answers = api.send_long(request, timeout=limit, progress=progress)
    made = [_made(make, answer, ephemeral=ephemeral) for answer in answers]
    for one in made:
        if one.project is not None and ephemeral:
            one.project.hold()
    return made


def all_made(made: Sequence[ProjectFork[P]]) -> list[P]:
    """Return the projects. Raises BoughError: the error of the first fork that failed; the others stay."""
    for one in made:
        if one.error is not None:
            raise one.error
    return [one.project for one in made if one.project is not None]


def _made(make: MakeProject[P], answer: dict[str, Any], *, ephemeral: bool) -> ProjectFork[P]:
    if "error" in answer:
        return ProjectFork(None, error_from_dict(answer["error"]), answer)
    return ProjectFork(make(answer["project"]["name"], ephemeral=ephemeral), None, answer)
