"""The Python API's hypervisor: the service of one BOUGH_HOME."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Literal

from bough.client.connection import Connection, path_of, report_progress
from bough.client.machine import Machine
from bough.client.service import find_service
from bough.errors import ServiceUnavailable
from bough.paths import Home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bough.client.info import Event, ImageInfo
    from bough.client.network import Network
    from bough.client.snapshot import Snapshot
    from bough.progress import Report


def connect(home: str | os.PathLike[str] | None = None, *, start: bool = True) -> Hypervisor:
    """Connect to the hypervisor of `home` (default: $BOUGH_HOME, else the user's own).

    Starts the service if none runs and `start` is true. The service goes on when this program ends.

    Raises:
        ServiceUnavailable: no service answers, and it may not or could not be started. The error carries the
            end of the service's log.
    """
    place = Home.at(home) if home is not None else Home.from_environment()
    connection, version = find_service(place, start=start)
    return Hypervisor(place, connection, version)


class Hypervisor:
    """The hypervisor of one home. Made by `connect()`. Usable from several threads at once.

    Every call raises errors of bough.errors, as the service raised them.

    Attributes:
        home: the directory of machines and images.
        api: the HTTP API, for calls without a method here.
    """

    def __init__(self, home: Home, connection: Connection, version: dict[str, Any]) -> None:
        self.home = home
        self.api = connection
        self._version = version

    def __repr__(self) -> str:
        return f"<bough.Hypervisor {self.home.root}>"

    def version(self) -> dict[str, Any]:
        """Return facts about the service: version, api, pid, home, started."""
        return dict(self._version)

    # -- machines ---------------------------------------------------------------------------------

    def run(
        self,
        image: str,
        *,
        name: str | None = None,
        keep: bool = False,
        force: bool = False,
        cold: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
        **spec: Any,
    ) -> Machine:
        """Return a new machine whose agent has answered.

        The first run of an image on given hardware boots the image and keeps a snapshot. Later runs fork that
        snapshot.

        As a context manager, the machine is deleted with its disks at the end of the block, unless it has a
        `name` or `keep` is true. A machine without both is also deleted when this program ends in any way.

        Args:
            cold: boot the machine, even if there is a booted snapshot.
            timeout: seconds for the machine's start, without the time to build a missing image; None: as long
                as the guest makes progress.
            spec: settings as in a spec file: memory="512MiB", vcpus=2, ports=["8080:80"], ...

        Raises:
            InvalidSpec, BeyondHost, NotFound, NameTaken, BuildFailed, NoSpace, HostLacks: nothing was made.
            MachineFailed, AgentTimeout: the machine did not come up. It is deleted unless it has a `name` or
                `keep` is true.
        """
        from bough.client.spec_files import resolve_sources

        body: dict[str, Any] = {
            "spec": resolve_sources({"image": image, **spec}),
            "force": force,
            "cold": cold,
        }
        body["timeout_s"] = timeout
        if keep or name is not None:
            data = self.api.long_call("POST", "/machines/run", {**body, "name": name}, progress=progress)
            return Machine(self.api, data["id"], name=data["name"])
        return self._run_held(body, progress)

    def _run_held(self, body: dict[str, Any], progress: Report | None) -> Machine:
        """Run a machine that lives as long as this call's connection."""
        from bough.client.process import read_status

        socket = self.api.websocket("/run")
        try:
            socket.send_text(json.dumps(body))
            while isinstance(message := socket.receive(), str):
                told = json.loads(message)
                if "machine" in told:
                    data = told["machine"]
                    machine = Machine(self.api, data["id"], name=data["name"], ephemeral=True)
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

    def keep_spares(self, image: str, count: int, **spec: Any) -> None:
        """Keep `count` standby machines of that spec; 0 stops keeping them.

        A `run` of the same spec gets one of them within milliseconds. They are made in the background, and
        discarded while the host is short of memory.

        Raises:
            InvalidSpec: also if such a machine cannot be a standby machine, for example with files of its
                own.
        """
        self.api.call("PUT", "/spares", {"spec": {"image": image, **spec}, "count": count})

    def spares(self) -> list[dict[str, Any]]:
        """Return the requested standby machines: "spec" or "snapshot" (its id), "count", and how many are
        "ready".

        "trouble" says why none can be made.
        """
        return list(self.api.get("/spares"))

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
        """Create a stopped machine, which is kept until it is deleted. A missing image is built first.

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

        body = {"spec": resolve_sources(spec), "name": name, "force": force, "ephemeral": ephemeral}
        data = self.api.long_call("POST", "/machines", body, timeout=timeout, progress=progress)
        return Machine(self.api, data["id"], name=data["name"], ephemeral=ephemeral)

    def machine(self, reference: str) -> Machine:
        """Return the machine with that name, id, or unique beginning (4 or more digits) of an id.

        Raises:
            NotFound: the hint names the most similar machine.
        """
        data = self.api.get(path_of("machines", reference))
        return Machine(self.api, data["id"], name=data["name"], ephemeral=data.get("ephemeral", False))

    def machines(self) -> list[Machine]:
        """Return all, the oldest first."""
        return [Machine(self.api, data["id"], name=data["name"]) for data in self.api.get("/machines")]

    # -- snapshots --------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """Return all, the oldest first."""
        from bough.client.snapshot import Snapshot

        return [Snapshot(self.api, data["id"], label=data["label"]) for data in self.api.get("/snapshots")]

    def snapshot(self, reference: str) -> Snapshot:
        """Return a snapshot by label, id, or unique beginning (4 or more digits) of an id.
        Raises NotFound.
        """
        from bough.client.snapshot import Snapshot

        data = self.api.get(path_of("snapshots", reference))
        return Snapshot(self.api, data["id"], label=data["label"])

    def import_bundle(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        identity: Literal["keep", "new"] = "keep",
        cold: bool = False,
        force: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> Machine:
        """Create the machine of a bundle. The machine continues if the bundle has its memory.

        Args:
            identity: "keep": the machine keeps the identity of the exported one; "new": a new identity.
            cold: import the disks alone.
            force: also if the machine is larger than this host.

        Raises:
            BadBundle: the bundle is cut off or altered, or cannot continue here; nothing was made.
            BeyondHost, NoSpace, NameTaken: likewise.
        """
        from bough.client.bundle import import_stream

        with open(path, "rb") as stream:  # noqa: PTH123 (a str stays one)
            data = import_stream(
                self.api,
                stream,
                name=name,
                identity=identity,
                cold=cold,
                force=force,
                timeout=timeout,
                progress=progress,
            )
        return Machine(self.api, data["id"], name=data["name"])

    # -- networks ---------------------------------------------------------------------------------

    def networks(self) -> list[Network]:
        """Return all, the oldest first."""
        from bough.client.network import Network

        return [Network(self.api, data["id"], name=data["name"]) for data in self.api.get("/networks")]

    def network(self, reference: str) -> Network:
        """Return the network with that name or id. Raises NotFound."""
        from bough.client.network import Network

        data = self.api.get(path_of("networks", reference))
        return Network(self.api, data["id"], name=data["name"])

    def create_network(self, name: str, *, subnet: str | None = None, mtu: int | None = None) -> Network:
        """Create a private Ethernet segment between machines: nics=["uplink", name] puts a machine on it.

        Args:
            subnet: an IPv4 network like "10.1.0.0/24"; None: derived from the name.
            mtu: bytes of a frame's payload, up to 65,520; None: 1500.

        Raises:
            NameTaken, InvalidInput
            Conflict: the subnet overlaps with another network's.
        """
        from bough.client.network import Network

        data = self.api.post("/networks", {"name": name, "subnet": subnet, "mtu": mtu})
        return Network(self.api, data["id"], name=data["name"])

    # -- images -----------------------------------------------------------------------------------

    def images(self) -> list[ImageInfo]:
        from bough.client.info import ImageInfo

        return [ImageInfo.from_dict(data) for data in self.api.get("/images")]

    def build_image(
        self,
        reference: str,
        *,
        arch: str | None = None,
        rebuild: bool = False,
        mirror: str | None = None,
        security_mirror: str | None = None,
        lock: dict[str, Any] | None = None,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> ImageInfo:
        """Build "debian:12" and the like from packages, unless the store has the image. `rebuild` builds
        anyway.

        Args:
            security_mirror: "none" takes no security updates.
            lock: versions of packages, from `lock_image`.

        Raises:
            NotFound: no such recipe; BuildFailed, HostLacks, NoSpace: nothing half-made is left.
        """
        from bough.client.info import ImageInfo

        how = {"rebuild": rebuild, "mirror": mirror, "security_mirror": security_mirror, "lock": lock}
        body = {"ref": reference, "arch": arch, **how}
        answer = self.api.long_call("POST", "/images/build", body, timeout=timeout, progress=progress)
        return ImageInfo.from_dict(answer)

    def build_recipe(
        self,
        recipe: dict[str, Any],
        *,
        label: str,
        arch: str | None = None,
        rebuild: bool = False,
        mirror: str | None = None,
        security_mirror: str | None = None,
        lock: dict[str, Any] | None = None,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> ImageInfo:
        """Build the image of a recipe: a base, packages, files, users, commands (docs/images.md).

        Args:
            arch: instead of the recipe's, or the host's.

        Raises:
            InvalidSpec: with every problem; BuildFailed: with the output of the failed command. Nothing is
                kept.
        """
        from bough.client.info import ImageInfo
        from bough.client.spec_files import resolve_recipe

        how = {"rebuild": rebuild, "mirror": mirror, "security_mirror": security_mirror, "lock": lock}
        body = {"recipe": resolve_recipe(recipe), "label": label, "arch": arch, **how}
        answer = self.api.long_call("POST", "/images/recipe", body, timeout=timeout, progress=progress)
        return ImageInfo.from_dict(answer)

    def lock_image(self, reference: str) -> dict[str, Any]:
        """Return the versions of all packages in an image, for `lock` of a later build."""
        return dict(self.api.get(path_of("images", reference, "lock")))

    def import_image(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        timeout: float | None = None,
        progress: Report | None = None,
        **more: Any,
    ) -> ImageInfo:
        """Import a disk image: a file, or an http(s) address; see `bough image import --help`.

        Args:
            more: format, arch, firmware, sha256, os, version, disk, max_size (bytes), cloud_init, agent
                (whether the disk is of a machine with bough's agent; bough's own exports state this).

        Raises:
            BadImage, DownloadFailed, NotFound, NoSpace: nothing is left except the part of a download that
                can be resumed.
        """
        from bough.client.info import ImageInfo

        place = os.fspath(source)
        if "://" not in place:
            place = os.path.abspath(os.path.expanduser(place))  # noqa: PTH100, PTH111 (a str stays one)
        body = {"source": place, "name": name, **more}
        answer = self.api.long_call("POST", "/images/import", body, timeout=timeout, progress=progress)
        return ImageInfo.from_dict(answer)

    def pull_image(
        self,
        name: str,
        *,
        arch: str | None = None,
        label: str | None = None,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> ImageInfo:
        """Fetch an image of the catalogue, like "fedora:44", and check it, unless the store has it.

        Raises:
            NotFound: no such image; BadImage: the image is not the one that its publisher states;
                DownloadFailed.
        """
        from bough.client.info import ImageInfo

        body = {"ref": name, "arch": arch, "name": label}
        answer = self.api.long_call("POST", "/images/pull", body, timeout=timeout, progress=progress)
        return ImageInfo.from_dict(answer)

    def delete_image(self, reference: str) -> None:
        """Delete an image. Raises InUse while machines use it as a backing file."""
        self.api.call("DELETE", path_of("images", reference))

    def prune_images(self) -> dict[str, Any]:
        """Delete the images that no machine uses and no label names: {"deleted": digests, "freed_bytes"}."""
        return dict(self.api.post("/images/prune", timeout=None))

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
        path = path_of("doctor", probe=probe, arch=arch)
        return dict(self.api.long_call("GET", path, timeout=timeout, progress=progress))

    def doctor_store(self, *, repair: bool = False, progress: Report | None = None) -> dict[str, Any]:
        """Check everything in BOUGH_HOME. Return "clean", "findings", "skipped".

        Args:
            repair: make the safe repairs. Nothing is deleted; damaged files go to lost+found/.
        """
        body = {"repair": repair}
        return dict(self.api.long_call("POST", "/doctor/store", body, timeout=None, progress=progress))

    def events(self, since: str | None = None) -> Iterator[Event]:
        """Yield the events of machines as they happen, without end.

        Args:
            since: ISO 8601; begin with the events since then, as far as the service remembers them.
        """
        import json

        from bough.client.info import Event

        with self.api.websocket(path_of("events", since=since)) as socket:
            while (message := socket.receive()) is not None:
                yield Event.from_dict(json.loads(message))

    def shutdown(self) -> None:
        """End the service. Machines go on. The next command starts a new service, which adopts them."""
        from bough.client.service import end_service

        end_service(self.api)

    def close(self) -> None:
        """Close the connections to the service. The service and its machines go on."""
        self.api.close()

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
