"""The Python API's project: machines and networks that one file describes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from bough.client.project_snapshot import ProjectFork, ProjectSnapshotOf, all_made, fork_projects
from bough.contract import project_branches as branches
from bough.contract import projects as contract
from bough.errors import InvalidInput, InvalidSpec, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike
    from pathlib import Path

    from bough.client.connection import Connection
    from bough.client.hold import Hold
    from bough.client.machine import Machine
    from bough.client.network import Network
    from bough.client.project_file import ProjectFile
    from bough.contract.answers import ProjectInfo, ProjectPlan
    from bough.progress import Report

T = TypeVar("T")


class Project:
    """A project of one home. Made by `Hypervisor.project`. Usable from several threads at once.

        project = hv.project("bough.toml")
        project.up()
        project["db"].exec("psql", "-c", "select 1")
        project.down(volumes=True)

    Every call except `up` raises NotFound if the project does not exist: `up` was not called, or the project
    was deleted.
    """

    def __init__(
        self, api: Connection, name: str, file: ProjectFile | None = None, *, ephemeral: bool = False
    ) -> None:
        self._api = api
        self._file = file
        self._hold: Hold | None = None
        self.name = name
        self.ephemeral = ephemeral

    def __repr__(self) -> str:
        return f"<bough.Project {self.name}>"

    # -- up and down ------------------------------------------------------------------------------

    def plan(
        self,
        machines: Sequence[str] = (),
        *,
        profiles: Sequence[str] = (),
        recreate: bool = False,
        remove_orphans: bool = False,
    ) -> ProjectPlan:
        """Return what `up` would do. Nothing is changed. Raises as `up`."""
        from bough.contract.answers import ProjectPlan

        request = contract.PlanProject(
            spec=self._spec(),
            name=self.name,
            machines=list(machines),
            profiles=list(profiles),
            recreate=recreate,
            remove_orphans=remove_orphans,
        )
        return ProjectPlan.from_dict(self.located(lambda: self._api.send(request)))

    def up(
        self,
        machines: Sequence[str] = (),
        *,
        profiles: Sequence[str] = (),
        recreate: bool = False,
        remove_orphans: bool = False,
        ephemeral: bool = False,
        cold: bool = False,
        force: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> ProjectInfo:
        """Bring the project up. Return when all machines have answered and are healthy. A repeated call
        changes only what differs from the file.

        Args:
            machines: roles to start, with all machines that they depend on; none: all without a profile, and
                those of `profiles`.
            recreate: delete machines, with their disks, that cannot change as the file has.
            remove_orphans: delete machines that the file does not name any more.
            ephemeral: delete the new project with all that belongs to it by `delete`, at the end of a `with`
                block of the project, and when this program ends in any way.
            cold: boot new machines instead of forking booted snapshots.
            force: allow more memory, disk or vCPUs than the host has.
            timeout: seconds; None: as long as each guest makes progress.

        Raises:
            InvalidSpec: the file has mistakes, or `up` would lose data; nothing was changed.
            ProjectFailed: machines did not come up; `failures` has the error of each. What was made stays.
            Conflict: another call changes the project just now, or a changed network is in use, or a project
                that is to be ephemeral is kept.
        """
        from bough.contract.answers import ProjectInfo

        request = contract.UpProject(
            spec=self._spec(),
            name=self.name,
            file=str(self._file.path) if self._file is not None else None,
            machines=list(machines),
            profiles=list(profiles),
            recreate=recreate,
            remove_orphans=remove_orphans,
            ephemeral=ephemeral,
            cold=cold,
            force=force,
            timeout_s=timeout,
        )
        done = self.located(lambda: self._api.send_long(request, progress=progress))
        if ephemeral:
            self.ephemeral = True
            self.hold()
        return ProjectInfo.from_dict(done)

    def down(
        self,
        *,
        volumes: bool = False,
        force: bool = False,
        deadline: float | None = None,
        progress: Report | None = None,
    ) -> None:
        """Stop the machines, each after the machines that depend on it. Suspended machines stay as they are.

        Args:
            volumes: delete the machines with their disks, the networks and the project.
            force: cut the power.
            deadline: seconds after which the power is cut; None: see Machine.stop.

        Raises:
            InUse: a fork of a machine uses the project's networks; nothing was changed.
        """
        request = contract.DownProject(reference=self.name, volumes=volumes, force=force, deadline_s=deadline)
        self._api.send_long(request, progress=progress)

    def restart(
        self,
        machines: Sequence[str] = (),
        *,
        deadline: float | None = None,
        progress: Report | None = None,
    ) -> None:
        """Restart machines in the order of their dependence; none: all. Raises ProjectFailed."""
        request = contract.RestartProject(reference=self.name, machines=list(machines), deadline_s=deadline)
        self._api.send_long(request, progress=progress)

    # -- snapshots and forks ----------------------------------------------------------------------

    def snapshot(
        self,
        label: str | None = None,
        *,
        message: str = "",
        memory: bool = True,
        now: bool = False,
        progress: Report | None = None,
    ) -> ProjectSnapshot:
        """Take a snapshot of all machines at one moment. The machines run on, after a pause of some ms.

        Args:
            memory: include the memory of the machines that run.
            now: do not wait for the end of the guests' boots.

        Raises:
            NameTaken, Conflict, WrongState, HostLacks, NoSpace, MachineFailed: there is no snapshot, and each
                machine is as before.
        """
        request = branches.TakeProjectSnapshot(
            reference=self.name, label=label, message=message, memory=memory, now=now
        )
        data = self._api.send_long(request, progress=progress)
        return project_snapshot(self._api, data["id"], data["label"])

    @overload
    def fork(
        self,
        name: str | None = None,
        *,
        count: None = None,
        ephemeral: bool = False,
        now: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> Project: ...
    @overload
    def fork(
        self,
        name: str | None = None,
        *,
        count: int,
        ephemeral: bool = False,
        now: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> list[Project]: ...
    def fork(
        self,
        name: str | None = None,
        *,
        count: int | None = None,
        ephemeral: bool = False,
        now: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> Project | list[Project]:
        """Make a project whose machines continue from the present state. This project runs on.

        The machines have the same addresses, names and keys, on networks of their own. Connections between
        them go on. Connections to other hosts end. The ports are published on another loopback address.

        As a context manager, an `ephemeral` fork is deleted with its machines, disks and networks at the end
        of the block. Such a fork is also deleted when this program ends in any way.

        Args:
            count: return a list of forks of one moment: NAME-1, NAME-2, ...

        Raises: as `snapshot`. NameTaken
        """
        given: dict[str, Any] = {"ephemeral": ephemeral, "now": now, "timeout": timeout}
        names = [name] if name else []
        made = fork_projects(
            self._api, self._project, self.name, names=names, count=count, progress=progress, **given
        )
        return all_made(made) if count is not None else all_made(made)[0]

    def restore(
        self, snapshot: ProjectSnapshot | str, *, keep: bool = False, progress: Report | None = None
    ) -> None:
        """Rewind all machines to a snapshot of this project.

        Args:
            keep: take a snapshot of the present state first. Otherwise the present state is lost.

        Raises:
            NotFound. Conflict: the snapshot is another project's, or has other machines.
        """
        reference = snapshot if isinstance(snapshot, str) else snapshot.id
        request = branches.RestoreProject(reference=self.name, snapshot=reference, keep=keep)
        self._api.send_long(request, progress=progress)

    def export(
        self, path: str | PathLike[str], *, without_image: bool = False, progress: Report | None = None
    ) -> None:
        """Export all machines of one moment to one bundle, a file *.bough. `Hypervisor.import_project`
        continues the project on another host. The project runs on.

        Args:
            without_image: leave out the content of the images, which the other host must have.
        """
        from bough.client.bundle import export_file

        export_file(self._api, self.name, path, without_image=without_image, progress=progress)

    def suspend(self, *, progress: Report | None = None) -> None:
        """Write the memory of all running machines to disk, and end their processes."""
        self._api.send_long(branches.SuspendProject(reference=self.name), progress=progress)

    def resume(self, *, progress: Report | None = None) -> None:
        """Let all suspended and paused machines run again. Return when they have answered."""
        self._api.send_long(branches.ResumeProject(reference=self.name), progress=progress)

    def hold(self) -> None:
        """Keep an ephemeral project alive until `delete`, or until this program ends."""
        if self._hold is None:
            from bough.client.hold import Hold

            self._hold = Hold(self._api, branches.HoldProject(reference=self.name), f"hold {self.name}")

    def delete(self) -> None:
        """Delete the project with its machines, disks and networks."""
        if self.ephemeral:
            with contextlib.suppress(NotFound):
                self._api.send(branches.RemoveProject(reference=self.name))
        else:
            self.down(volumes=True, force=True)
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        if self.ephemeral:
            self.delete()

    def _project(self, name: str, *, ephemeral: bool) -> Project:
        return Project(self._api, name, ephemeral=ephemeral)

    # -- what there is ----------------------------------------------------------------------------

    def info(self, *, look: bool = False) -> ProjectInfo:
        """Return the project's description. With `look`, run each health check once."""
        from bough.contract.answers import ProjectInfo

        return ProjectInfo.from_dict(self._api.send(contract.GetProject(reference=self.name, look=look)))

    def ps(self) -> list[dict[str, Any]]:
        """Return a description of each machine, as `info` has it, with the result of its health check."""
        return self.info(look=True).machines

    def config(self) -> dict[str, Any]:
        """Return the content of the file: as it is now, or of the last `up` for a project without a file."""
        return self._spec()

    @property
    def machines(self) -> dict[str, Machine]:
        """Return role -> machine."""
        from bough.client.machine import Machine

        found = self.info().machines
        return {one["role"]: Machine(self._api, one["id"], name=one["name"]) for one in found}

    def __getitem__(self, role: str) -> Machine:
        """Return the machine of a role. Raises NotFound."""
        machines = self.machines
        if role not in machines:
            known = ", ".join(machines) or "none"
            raise NotFound(
                f"project '{self.name}' has no machine '{role}'", hint=f"its machines: {known}", name=role
            )
        return machines[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self.machines)

    def network(self, name: str) -> Network:
        """Return a network of the project. Raises NotFound."""
        from bough.client.network import Network

        for one in self.info().networks:
            if one["name"] == name:
                return Network(self._api, one["id"], name=name)
        raise NotFound(f"project '{self.name}' has no network '{name}'", name=name)

    def logs(self, machines: Sequence[str] = (), *, tail_bytes: int = 64 * 1024) -> dict[str, str]:
        """Return the end of the console of each machine, by role. Unfiltered output: unsafe for a terminal.

        Args:
            machines: roles; none: all machines.
        """
        found = self.machines
        chosen = {role: self[role] for role in machines} if machines else found
        return {role: machine.logs(tail_bytes=tail_bytes) for role, machine in chosen.items()}

    def _spec(self) -> dict[str, Any]:
        if self._file is not None:
            return self._file.data
        return dict(self._api.send(contract.GetProjectSpec(reference=self.name)))

    def located(self, call: Callable[[], T]) -> T:
        """Make a call. An error about the project's file gets the lines of the file."""
        try:
            return call()
        except InvalidSpec as error:
            if self._file is None:
                raise
            raise self._file.locate(error) from None


#: A snapshot of a project.
ProjectSnapshot: TypeAlias = ProjectSnapshotOf[Project]


def fork_each(api: Connection, source: str, **options: Any) -> list[ProjectFork[Project]]:
    """Fork a project or a project's snapshot. The forks succeed or fail independently; see fork_projects."""

    def make(name: str, *, ephemeral: bool) -> Project:
        return Project(api, name, ephemeral=ephemeral)

    return fork_projects(api, make, source, **options)


def project_snapshot(api: Connection, snapshot_id: str, label: str | None) -> ProjectSnapshot:
    """Return the snapshot of a project, without a request."""

    def make(name: str, *, ephemeral: bool) -> Project:
        return Project(api, name, ephemeral=ephemeral)

    return ProjectSnapshotOf(api, snapshot_id, make, label=label)


def read_name(path: Path) -> str:
    """Return the name of the project that a file describes. Its variables need not be set.

    Raises:
        NotFound: no such file. InvalidInput: the file is not TOML.
    """
    from bough.spec.project.document import as_project, project_name
    from bough.spec.toml import load_toml

    given = as_project(load_toml(path)).get("name")
    return str(given or project_name(path.absolute().parent.name) or "project")


def open_project(api: Connection, reference: str, name: str | None) -> Project:
    """Return the project of a file, of a directory with a bough.toml, or of a name in the home.

    Raises:
        NotFound: no such file, and no such project. InvalidInput, InvalidSpec: the file cannot be read.
    """
    from pathlib import Path

    path = Path(reference).expanduser()
    if path.suffix == ".toml" or "/" in reference or path.is_dir():
        from bough.client.project_file import load_project

        file = load_project(path)
        return Project(api, name or file.name, file)
    if name is not None:
        raise InvalidInput("a name is for a project's file", hint='hv.project("bough.toml", name="shop-2")')
    return find_project(api, reference)


def find_project(api: Connection, reference: str) -> Project:
    """Return the project with that name or id. Raises NotFound."""
    return Project(api, api.send(contract.GetProject(reference=reference))["name"])
