"""`export` and `import` of projects: all machines of one moment in one file."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from ipaddress import IPv6Network
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bough.bundle import Source
from bough.errors import BadBundle, BoughError
from bough.hypervisor.half_made import HalfMade
from bough.hypervisor.projects.forks import ProjectForks
from bough.hypervisor.projects.registry import Projects
from bough.hypervisor.projects.snapshots import Parts, ProjectSnapshots
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.images.agent_disk.store import AgentDiskStore
from bough.images.store import ImageStore
from bough.machines.record import now
from bough.machines.saved_state import SavedState
from bough.networks.record import NetworkRecord
from bough.progress import Report, about
from bough.project_bundle import Member, read_project_manifest, write_member, write_project_bundle
from bough.projects.record import ProjectRecord
from bough.projects.snapshot import ProjectSnapshot, new_project_snapshot_id
from bough.snapshots.export import exported, snapshot_subject
from bough.snapshots.imports import open_bundle, taken_up
from bough.spec import check_name
from bough.spec.subnet import LEAST_MTU, MOST_MTU, check_subnet, parse_subnet
from bough.version import __version__

_MOST_MACHINES = 256
_MOST_NETWORKS = 64
#: Locally administered, no group address.
_MAC = re.compile(r"[0-9a-f][26ae](:[0-9a-f]{2}){5}")
_LOCAL6 = IPv6Network("fd00::/8")


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class BundleNetwork(_Told):
    name: str = Field(max_length=63)
    subnet: str = Field(max_length=32)
    prefix6: IPv6Network
    switch_mac: str = Field(pattern=_MAC.pattern)
    mtu: int = Field(ge=LEAST_MTU, le=MOST_MTU)
    internal: bool = True


class ProjectBundleManifest(_Told):
    """The description of the project in a bundle.

    Attributes:
        machines: the roles, in the order of the members.
        spec, applied: as in ProjectRecord.
    """

    version: int = 1
    created: str = Field(max_length=64)
    bough: str = Field(max_length=64)
    name: str = Field(max_length=63)
    domain: str = Field(max_length=63)
    spec: dict[str, Any]
    applied: dict[str, dict[str, Any]] = Field(default_factory=dict)
    machines: tuple[str, ...] = Field(min_length=1, max_length=_MOST_MACHINES)
    networks: tuple[BundleNetwork, ...] = Field(default=(), max_length=_MOST_NETWORKS)


class ProjectBundles:
    def __init__(
        self,
        projects: Projects,
        snapshots: ProjectSnapshots,
        forks: ProjectForks,
        keeper: SnapshotKeeper,
        images: ImageStore,
        agent_disks: AgentDiskStore,
        half_made: HalfMade,
    ) -> None:
        self._projects = projects
        self._snapshots = snapshots
        self._forks = forks
        self._keeper = keeper
        self._images = images
        self._agent_disks = agent_disks
        self._half_made = half_made

    def knows(self, reference: str) -> bool:
        """Return whether there is a project, or a project's snapshot, of that name."""
        return self._projects.store.named(reference) is not None or self._snapshots.store.knows(reference)

    async def export(
        self, reference: str, *, thin: bool, report: Report
    ) -> AsyncGenerator[Iterator[bytes], None]:
        """Yield iterators over the pieces of the file, one after the other, for a thread to read.

        A running project runs on. Args: thin: as in `exported`.

        Raises:
            NotFound, Conflict, WrongState, ...: as a snapshot.
        """
        project = self._projects.store.named(reference)
        with self._half_made.working():
            if project is None:
                snapshot = self._snapshots.store.find(reference)
                async for pieces in self._write(snapshot, self._snapshots.parts_of(snapshot), thin, report):
                    yield pieces
                return
            snapshot, parts = await self._snapshots.take_passing(project, now=False, report=report)
            try:
                async for pieces in self._write(snapshot, parts, thin, report):
                    yield pieces
            finally:
                self._snapshots.release(parts)

    async def _write(
        self, snapshot: ProjectSnapshot, parts: Parts, thin: bool, report: Report
    ) -> AsyncGenerator[Iterator[bytes], None]:
        project, tree = snapshot.project, self._keeper.tree
        manifest = ProjectBundleManifest(
            created=now(),
            bough=__version__,
            name=project.name,
            domain=project.domain,
            spec=project.spec,
            applied=project.applied,
            machines=tuple(parts),
            networks=tuple(_told(network) for network in snapshot.networks),
        )
        with self._snapshots.used(parts):
            yield iter([write_project_bundle(manifest.model_dump(mode="json"))])
            for role, part in parts.items():
                saved = await tree.saved_state(part)
                accelerator = saved.accelerator if saved is not None else None
                subject = snapshot_subject(part, tree.store, saved, accelerator)
                told = about(role, report)
                async with exported(subject, self._images, format="bough", thin=thin, report=told) as pieces:
                    yield write_member(pieces)

    async def import_bundle(
        self,
        source: Source,
        *,
        name: str | None,
        cold: bool,
        force: bool,
        accelerator: str,
        timeout_s: float | None,
        report: Report,
    ) -> ProjectRecord:
        """Create the project of a bundle, whose MAGIC was read. Machines run if the bundle has their memory.

        Args: as Bundles.import_bundle.

        Raises:
            BadBundle, BeyondHost, NotFound (an image), NameTaken, NoSpace, MachineFailed: nothing is left.
        """
        manifest = parse_manifest(await asyncio.to_thread(read_project_manifest, source))
        self._forks.check_name(name or manifest.name, manifest.machines)
        parts: Parts = {}
        saved: dict[str, SavedState | None] = {}
        tree = self._keeper.tree
        with contextlib.ExitStack() as used:
            with self._half_made.working():
                for role in manifest.machines:
                    async with taken_up(
                        partial(open_bundle, Member(source)),
                        self._images,
                        self._agent_disks,
                        cold=cold,
                        force=force,
                        accelerator=accelerator,
                        report=about(role, report),
                    ) as arrival:
                        if arrival.agent_disk is not None:
                            used.enter_context(self._agent_disks.using(*arrival.agent_disk))
                        made = await arrival.read()
                        used.enter_context(self._keeper.used_in_background(arrival.manifest))
                        tree.store.add(made, arrival.manifest)
                        parts[role], saved[role] = arrival.manifest, arrival.saved
                if await asyncio.to_thread(source.read, 1):
                    raise BadBundle("the bundle was altered: data follows its end")
            return await self._forks.make_from(
                _snapshot_of(manifest, parts), parts, saved, name or manifest.name, timeout_s, report
            )


def parse_manifest(data: dict[str, Any]) -> ProjectBundleManifest:
    """Parse the manifest, and check all names and addresses in it. Raises BadBundle."""
    try:
        manifest = ProjectBundleManifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        raise BadBundle(f"the manifest of the bundle is not valid: {place}: {first['msg'][:200]}") from error
    except RecursionError:
        raise BadBundle("the manifest of the bundle is not valid") from None
    networks = [network.name for network in manifest.networks]
    if len({*manifest.machines}) != len(manifest.machines) or len({*networks}) != len(networks):
        raise BadBundle("the manifest of the bundle is not valid: a name is there twice")
    try:
        for name in (manifest.name, manifest.domain, *manifest.machines, *networks):
            check_name(name)
        subnets = [parse_subnet(network.subnet) for network in manifest.networks]
        for number, subnet in enumerate(subnets):
            check_subnet(subnet, subnets[:number])
    except BoughError as error:
        raise BadBundle(f"the manifest of the bundle is not valid: {error.message}") from error
    for network in manifest.networks:
        if network.prefix6.prefixlen != 64 or not network.prefix6.subnet_of(_LOCAL6):
            raise BadBundle(f"the bundle describes network '{network.name}', which bough does not support")
    return manifest


def _told(network: NetworkRecord) -> BundleNetwork:
    return BundleNetwork(
        name=network.name,
        subnet=str(network.subnet),
        prefix6=network.prefix6,
        switch_mac=network.switch_mac,
        mtu=network.mtu,
        internal=network.internal,
    )


def _snapshot_of(manifest: ProjectBundleManifest, parts: Parts) -> ProjectSnapshot:
    """Return the moment of the bundle, as a fork continues from it."""
    project = ProjectRecord(
        id="",
        name=manifest.name,
        domain=manifest.domain,
        spec=manifest.spec,
        applied=manifest.applied,
        loopback="",
        created=manifest.created,
    )
    networks = [
        NetworkRecord(
            id="",
            name=network.name,
            domain=manifest.domain,
            subnet=parse_subnet(network.subnet),
            prefix6=network.prefix6,
            switch_mac=network.switch_mac,
            mtu=network.mtu,
            internal=network.internal,
            created=manifest.created,
        )
        for network in manifest.networks
    ]
    return ProjectSnapshot(
        id=new_project_snapshot_id(),
        created=manifest.created,
        project=project,
        machines={role: part.id for role, part in parts.items()},
        networks=tuple(networks),
    )
