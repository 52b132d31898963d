"""The Python API's hypervisor: the service of one BOUGH_HOME."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from bough.client.connection import Connection, report_progress
from bough.client.image_store import ImageStore
from bough.client.service import find_service
from bough.contract import machines as contract
from bough.contract.service import GetVersion
from bough.errors import ServiceUnavailable
from bough.paths import Home

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bough.client.machine import Fork, Machine, Snapshot
    from bough.client.network import Network
    from bough.client.project import Project, ProjectSnapshot
    from bough.contract.answers import (
        Event,
        FaultInfo,
        MachineInfo,
        NetworkInfo,
        ProjectInfo,
        ProjectSnapshotInfo,
        SnapshotInfo,
        SystemDifferences,
    )
    from bough.contract.snapshots import Identity
    from bough.progress import Report


def connect(home: str | os.PathLike[str] | None = None, *, start: bool = True) -> Hypervisor:
    """Connect to the hypervisor of `home` (default: $BOUGH_HOME, else the user's own).

    Starts the service if none runs and `start` is true. The service goes on when this program ends.

    Raises:
        ServiceUnavailable: no service answers, and it may not or could not be started. The error carries the
            end of the service's log.
    """
    place = Home.at(home) if home is not None else Home.from_environment()
    connection, _ = find_service(place, start=start)
    return Hypervisor(place, connection)


class Hypervisor(ImageStore):
    """The hypervisor of one home. Made by `connect()`. Usable from several threads at once.

    Every call raises errors of bough.errors, as the service raised them.

    Attributes:
        home: the directory of machines and images.
        api: the connection, for the requests of bough.contract that have no method here.
    """

    def __init__(self, home: Home, connection: Connection) -> None:
        super().__init__(connection)
        self.home = home
        self.api = connection

    def __repr__(self) -> str:
        return f"<bough.Hypervisor {self.home.root}>"

    def version(self) -> dict[str, Any]:
        """Return facts about the running service: version, api, pid, home, started.

        The service may be a later one than at `connect()`. Raises ServiceUnavailable: no service runs.
        """
        return dict(self.api.send(GetVersion()))

    # -- machines ---------------------------------------------------------------------------------

    def run(
        self,
        image: str,
        *,
        name: str | None = None,
        keep: bool = False,
        force: bool = False,
        cold: bool = False,
        program: bool = True,
        timeout: float | None = None,
        progress: Report | None = None,
        **spec: Any,
    ) -> Machine:
        """Return a new machine whose agent has answered.

        The first run of an image on given hardware boots the image and keeps a snapshot. Later runs fork that
        snapshot.

        As a context manager, the machine is deleted with its disks at the end of the block. A machine with a
        `name`, or with `keep` true, stays. A machine without both is also deleted when this program ends in
        any way.

        Args:
            cold: boot the machine, even if there is a booted snapshot.
            program: start the program of a container image (docs/containers.md).
            timeout: seconds for the machine's start, without the time to build a missing image; None: as long
                as the guest makes progress.
            spec: settings of the machine (docs/spec.md): memory="512MiB", vcpus=2, ports=["8080:80"], ...

        Raises:
            InvalidSpec, BeyondHost, NotFound, NameTaken, BuildFailed, NoSpace, HostLacks: nothing was made.
            MachineFailed, AgentTimeout: the machine did not come up. It is deleted unless it has a `name` or
                `keep` is true.
        """
        from bough.client.spec_files import resolve_sources

        given = resolve_sources({"image": image, **spec})
        if not keep and name is None:
            return self._run_held(given, force, cold, program, timeout, progress)
        return self.run_from(
            given, name=name, force=force, cold=cold, program=program, timeout=timeout, progress=progress
        )

    def run_from(
        self,
        spec: dict[str, Any],
        *,
        name: str | None = None,
        force: bool = False,
        cold: bool = False,
        program: bool = True,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> Machine:
        """Return a new machine whose agent has answered, from a whole spec. The machine is kept."""
        request = contract.RunMachine(
            spec=spec, name=name, force=force, cold=cold, program=program, timeout_s=timeout
        )
        data = self.api.send_long(request, progress=progress)
        return self._machine(data["id"], name=data["name"])

    def _run_held(
        self,
        spec: dict[str, Any],
        force: bool,
        cold: bool,
        program: bool,
        timeout: float | None,
        progress: Report | None,
    ) -> Machine:
        """Run a machine for as long as this call's connection is open."""
        import json

        from bough.client.process import read_status
        from bough.contract.commands import RunCommand, RunInMachine

        socket = self.api.open(RunInMachine())
        try:
            asked = RunCommand(spec=spec, force=force, cold=cold, program=program, timeout_s=timeout)
            socket.send_text(asked.render())
            while isinstance(message := socket.receive(), str):
                told = json.loads(message)
                if "machine" in told:
                    data = told["machine"]
                    machine = self._machine(data["id"], name=data["name"], ephemeral=True)
                    machine.hold(socket)
                    return machine
                if progress is not None:
                    report_progress(progress, told["progress"])
        except BaseException:
            socket.close()
            raise
        socket.close()
        if message:
            read_status(message[1:])
        raise ServiceUnavailable("the service ended before the machine was up", hint="try again")

    def keep_standby(self, image: str, count: int, **spec: Any) -> None:
        """Keep `count` standby machines of that spec; 0 stops keeping them.

        A `run` of the same spec gets a standby machine within milliseconds. bough makes standby machines in
        the background, and discards them while the host is short of memory.

        Raises:
            InvalidSpec: also if such a machine cannot be a standby machine, for example with files of its
                own.
        """
        self.keep_standby_of({"image": image, **spec}, count)

    def keep_standby_of(self, spec: dict[str, Any], count: int) -> None:
        """Keep standby machines as `keep_standby` does, of a whole spec."""
        from bough.client.spec_files import resolve_sources
        from bough.contract.host import KeepStandby

        self.api.send(KeepStandby(spec=resolve_sources(spec), count=count))

    def standby_machines(self) -> list[dict[str, Any]]:
        """Return the requested standby machines: "spec" or "snapshot" (its id), "count", and how many are
        "ready".

        "trouble" says why none can be made.
        """
        from bough.contract.host import ListStandby

        return list(self.api.send(ListStandby()))

    def create(
        self,
        image: str,
        *,
        name: str | None = None,
        force: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
        **spec: Any,
    ) -> Machine:
        """Create a stopped machine, which stays until `delete`. A missing image is built or pulled first.

        Args:
            force: allow more than the host has.
            timeout: seconds; after a timeout nothing was made.
            spec: settings as in a spec file: memory="512MiB", vcpus=2, ports=["8080:80"], ...

        Raises:
            InvalidSpec, BeyondHost, NotFound, NameTaken, BuildFailed, NoSpace, HostLacks: nothing was made.
        """
        return self._create({"image": image, **spec}, name, force, False, timeout, progress)

    def create_from(
        self,
        spec: dict[str, Any],
        *,
        name: str | None = None,
        force: bool = False,
        ephemeral: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> Machine:
        """Create a machine as `create` does, from a whole spec: the result of `bough.spec.load_toml`."""
        return self._create(spec, name, force, ephemeral, timeout, progress)

    def _create(
        self,
        spec: dict[str, Any],
        name: str | None,
        force: bool,
        ephemeral: bool,
        timeout: float | None,
        progress: Report | None,
    ) -> Machine:
        from bough.client.spec_files import resolve_sources

        request = contract.CreateMachine(
            spec=resolve_sources(spec), name=name, force=force, ephemeral=ephemeral
        )
        data = self.api.send_long(request, timeout=timeout, progress=progress)
        return self._machine(data["id"], name=data["name"], ephemeral=ephemeral)

    def machine(self, reference: str) -> Machine:
        """Return the machine with that name, id, or unique beginning (4 or more digits) of an id.

        Raises:
            NotFound: the hint names the most similar machine.
        """
        data = self.api.send(contract.GetMachine(reference=reference))
        return self._machine(data["id"], name=data["name"], ephemeral=data.get("ephemeral", False))

    def machine_at(self, reference: str) -> Machine:
        """Return the machine as `machine` does, without a request. Its calls raise NotFound."""
        return self._machine(reference)

    def _machine(self, reference: str, *, name: str | None = None, ephemeral: bool = False) -> Machine:
        # Imported at first use: `bough list` needs no Machine.
        from bough.client.machine import Machine

        return Machine(self.api, reference, name=name, ephemeral=ephemeral)

    def machines(self) -> list[Machine]:
        """Return all machines, the oldest first."""
        return [self._machine(info.id, name=info.name) for info in self.list_machines()]

    def list_machines(self) -> list[MachineInfo]:
        """Return the descriptions of all machines, the oldest first."""
        from bough.contract.answers import MachineInfo

        return [MachineInfo.from_dict(data) for data in self.api.send(contract.ListMachines())]

    # -- snapshots --------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """Return all snapshots, the oldest first."""
        from bough.client.machine import Snapshot

        return [Snapshot(self.api, info.id, label=info.label) for info in self.list_snapshots()]

    def list_snapshots(self) -> list[SnapshotInfo]:
        """Return the descriptions of all snapshots, the oldest first."""
        from bough.contract.answers import SnapshotInfo
        from bough.contract.snapshots import ListSnapshots

        return [SnapshotInfo.from_dict(data) for data in self.api.send(ListSnapshots())]

    def snapshot(self, reference: str) -> Snapshot:
        """Return a snapshot by label, id, or unique beginning (4 or more digits) of an id.
        Raises NotFound.
        """
        from bough.client.machine import Snapshot
        from bough.contract.snapshots import GetSnapshot

        data = self.api.send(GetSnapshot(reference=reference))
        return Snapshot(self.api, data["id"], label=data["label"])

    def snapshot_at(self, reference: str) -> Snapshot:
        """Return the snapshot as `snapshot` does, without a request. Its calls raise NotFound."""
        from bough.client.machine import Snapshot

        return Snapshot(self.api, reference)

    def fork_each(
        self,
        source: str,
        *,
        names: Sequence[str] = (),
        count: int | None = None,
        identity: Identity = "new",
        cold: bool = False,
        now: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> list[Fork]:
        """Fork a machine or a snapshot. The forks succeed or fail independently.

        Args:
            names: a name for each fork; with `count`, one name to be numbered, or none to generate names.

        Raises:
            NotFound: no such source; InvalidInput: also if a machine and a snapshot have that name.
        """
        from bough.client.forks import fork_each

        return fork_each(
            self.api,
            self._machine,
            source,
            names=names,
            count=count,
            identity=identity,
            cold=cold,
            now=now,
            timeout=timeout,
            progress=progress,
        )

    def diff(
        self,
        before: Machine | Snapshot | str,
        after: Machine | Snapshot | str,
        *,
        progress: Report | None = None,
    ) -> SystemDifferences:
        """Return what differs between two systems: machines, snapshots, or names of these or of images.

        Raises:
            NotFound, Conflict: a name means nothing, or several things ("snapshot:NAME" names the kind).
            InvalidInput: a system has no file system that bough can compare.
        """
        from bough.client.differences import diff

        return diff(self.api, after, before, progress=progress)

    def import_bundle(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        identity: Literal["keep", "new"] = "keep",
        cold: bool = False,
        force: bool = False,
        accelerator: Literal["auto", "kvm", "tcg"] = "auto",
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> Machine:
        """Create the machine of a bundle. The machine continues if the bundle has its memory.

        Args:
            path: a file, or a place in a registry: "docker://registry.example/team/web:1".
            identity: "keep": the machine keeps the identity of the exported one; "new": a new identity.
            cold: import the disks alone.
            force: allow more memory, disk or vCPUs than the host has.
            accelerator: "tcg": continue the memory of an emulated machine by emulation on a host with KVM.

        Raises:
            BadBundle: the bundle is cut off or altered, or cannot continue here; nothing was made.
            BeyondHost, NoSpace, NameTaken: likewise.
        """
        from bough.client.bundle import import_from

        data = import_from(
            self.api,
            path,
            name=name,
            identity=identity,
            cold=cold,
            force=force,
            accelerator=accelerator,
            timeout=timeout,
            progress=progress,
        )
        return self._machine(data["id"], name=data["name"])

    # -- networks ---------------------------------------------------------------------------------

    def networks(self) -> list[Network]:
        """Return all networks, the oldest first."""
        from bough.client.network import Network

        return [Network(self.api, info.id, name=info.name) for info in self.list_networks()]

    def list_networks(self) -> list[NetworkInfo]:
        """Return the descriptions of all networks, the oldest first."""
        from bough.contract.answers import NetworkInfo
        from bough.contract.networks import ListNetworks

        return [NetworkInfo.from_dict(data) for data in self.api.send(ListNetworks())]

    def network(self, reference: str) -> Network:
        """Return the network with that name or id. Raises NotFound."""
        from bough.client.network import Network
        from bough.contract.networks import GetNetwork

        data = self.api.send(GetNetwork(reference=reference))
        return Network(self.api, data["id"], name=data["name"])

    def create_network(
        self, name: str, *, subnet: str | None = None, mtu: int | None = None, internal: bool = True
    ) -> Network:
        """Create a private Ethernet segment between machines: nics=["uplink", name] puts a machine on it.

        Args:
            subnet: an IPv4 network like "10.1.0.0/24"; None: derived from the name.
            mtu: bytes of a frame's payload, up to 65,520; None: 1500.
            internal: no frame leaves the network; False: machines without a card on the uplink reach the
                outside through this network.

        Raises:
            NameTaken, InvalidInput
            Conflict: the subnet overlaps with another network's.
        """
        from bough.client.network import Network
        from bough.contract.networks import CreateNetwork

        data = self.api.send(CreateNetwork(name=name, subnet=subnet, mtu=mtu, internal=internal))
        return Network(self.api, data["id"], name=data["name"])

    # -- projects ---------------------------------------------------------------------------------

    def project(self, reference: str | os.PathLike[str], *, name: str | None = None) -> Project:
        """Return the project of a file ("bough.toml", or its directory), or the project with that name or id.

        Args:
            name: name in this home of a file's project; default: the name in the file.

        Raises:
            NotFound: no such file, and no such project.
            InvalidSpec: files that the file names cannot be read, or variables are not set.
        """
        from bough.client.project import open_project

        return open_project(self.api, os.fspath(reference), name)

    def projects(self) -> list[Project]:
        """Return all projects, the oldest first."""
        from bough.client.project import Project

        return [Project(self.api, info.name) for info in self.list_projects()]

    def import_project(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        force: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> Project:
        """Create the project of a bundle. Its machines continue where they were, with their connections.

        Raises:
            BadBundle, BeyondHost, NoSpace, NameTaken: nothing was made.
        """
        from bough.client.bundle import import_stream

        with open(path, "rb") as stream:  # noqa: PTH123 (a str stays one)
            data = import_stream(self.api, stream, name=name, force=force, timeout=timeout, progress=progress)
        return self.project_at(data["name"])

    def project_at(self, name: str) -> Project:
        """Return the project as `project` does, without a request. Its calls raise NotFound."""
        from bough.client.project import Project

        return Project(self.api, name)

    def project_snapshot(self, reference: str) -> ProjectSnapshot:
        """Return a project's snapshot by label, id, or unique beginning (4 or more digits) of an id.
        Raises NotFound.
        """
        from bough.client.project import project_snapshot
        from bough.contract.project_branches import GetProjectSnapshot

        data = self.api.send(GetProjectSnapshot(reference=reference))
        return project_snapshot(self.api, data["id"], data["label"])

    def list_project_snapshots(self) -> list[ProjectSnapshotInfo]:
        """Return the descriptions of all snapshots of projects, the oldest first."""
        from bough.contract.answers import ProjectSnapshotInfo
        from bough.contract.project_branches import ListProjectSnapshots

        return [ProjectSnapshotInfo.from_dict(data) for data in self.api.send(ListProjectSnapshots())]

    def list_projects(self) -> list[ProjectInfo]:
        """Return the descriptions of all projects, the oldest first."""
        from bough.contract.answers import ProjectInfo
        from bough.contract.projects import ListProjects

        return [ProjectInfo.from_dict(data) for data in self.api.send(ListProjects())]

    # -- faults -----------------------------------------------------------------------------------

    def faults(self) -> list[FaultInfo]:
        """Return the present faults of all links and machines, the oldest first."""
        from bough.client.fault import list_faults

        return list_faults(self.api)

    def heal(self, *faults: str) -> list[FaultInfo]:
        """End the faults with these ids; without ids, all faults. Return them. Raises NotFound."""
        from bough.client.fault import read_faults
        from bough.contract.faults import HealFaults

        return read_faults(self.api.send_long(HealFaults(faults=faults)))

    # -- the rest ---------------------------------------------------------------------------------

    def doctor(
        self,
        *,
        arch: str | None = None,
        probe: bool = True,
        timeout: float | None = 300.0,
        progress: Report | None = None,
    ) -> dict[str, Any]:
        """Return what the host has and lacks: "checks", "accelerators" (proven by running a guest), "jail".

        Args:
            arch: processor architecture of the machines, if not the host's.
        """
        from bough.contract.host import CheckHost

        request = CheckHost(probe=probe, arch=arch)
        return dict(self.api.send_long(request, timeout=timeout, progress=progress))

    def doctor_store(self, *, repair: bool = False, progress: Report | None = None) -> dict[str, Any]:
        """Check everything in BOUGH_HOME. Return "clean", "findings", "skipped".

        Args:
            repair: make the safe repairs. Nothing is deleted; damaged files go to lost+found/.
        """
        from bough.contract.host import AuditStore

        return dict(self.api.send_long(AuditStore(repair=repair), progress=progress))

    def events(self, since: str | None = None) -> Iterator[Event]:
        """Yield the events of machines as they happen, without end.

        Args:
            since: ISO 8601; begin with the events since then, as far as the service remembers them.
        """
        import json

        from bough.contract.answers import Event
        from bough.contract.host import WatchEvents

        with self.api.open(WatchEvents(since=since)) as socket:
            while (message := socket.receive()) is not None:
                yield Event.from_dict(json.loads(message))

    def shutdown(self) -> None:
        """End the service. Machines run on. The next command starts a service, which adopts the machines."""
        from bough.client.service import end_service

        end_service(self.api)

    def close(self) -> None:
        """Close the connections to the service. The service and its machines run on."""
        self.api.close()

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
