"""Requests about projects: machines and networks that one file describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from bough.contract.request import Request, Route

if TYPE_CHECKING:
    from bough.contract.answers import ProjectInfo, ProjectPlan
    from bough.contract.checks import DEADLINE_S, WAIT_S, Length


class ListProjects(Request):
    """List all projects, the oldest first."""

    route = Route("GET", "/projects")
    answer: ClassVar[list[ProjectInfo]]


class PlanProject(Request):
    """Return what `UpProject` with the same fields would do. Nothing is changed."""

    route = Route("POST", "/projects/plan")
    answer: ClassVar[ProjectPlan]
    spec: dict[str, Any]
    name: str | None = None
    machines: Sequence[str] = ()
    profiles: Sequence[str] = ()
    recreate: bool = False
    remove_orphans: bool = False


class UpProject(Request):
    """Bring a project up, and change only what differs. Return when all machines are healthy.

    `spec`: content of the project's file. `name`: of the project in the home; default: the name in the file.
    `machines`: only these, with all that they depend on. `recreate`: delete machines, with their disks, that
    cannot change otherwise. `remove_orphans`: delete machines that the file does not name any more.
    `ephemeral`: delete the project when no client holds it (HoldProject); a client has 30 s to begin.
    """

    route = Route("POST", "/projects/up", "long")
    answer: ClassVar[ProjectInfo]
    spec: dict[str, Any]
    name: str | None = None
    file: Annotated[str | None, Length(most=4096)] = None
    machines: Sequence[str] = ()
    profiles: Sequence[str] = ()
    recreate: bool = False
    remove_orphans: bool = False
    ephemeral: bool = False
    cold: bool = False
    force: bool = False
    timeout_s: Annotated[float | None, WAIT_S] = None


class GetProject(Request):
    """Return a project. With `look`, run the health check of each running machine once."""

    route = Route("GET", "/projects/{reference}")
    answer: ClassVar[ProjectInfo]
    reference: str
    look: bool = False


class GetProjectSpec(Request):
    """Return the content of the project's file at the last `up`."""

    route = Route("GET", "/projects/{reference}/spec")
    reference: str


class DownProject(Request):
    """Stop the machines of a project. Its disks and networks stay, unless `volumes` deletes all of it."""

    route = Route("POST", "/projects/{reference}/down", "long", body_optional=True)
    reference: str
    volumes: bool = False
    force: bool = False
    deadline_s: Annotated[float | None, DEADLINE_S] = None


class RestartProject(Request):
    """Restart machines of a project, in the order of their dependence. Default: all."""

    route = Route("POST", "/projects/{reference}/restart", "long", body_optional=True)
    answer: ClassVar[ProjectInfo]
    reference: str
    machines: Sequence[str] = ()
    deadline_s: Annotated[float | None, DEADLINE_S] = None
