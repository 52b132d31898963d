"""The networks of projects: made and changed by `up`, deleted with their project."""

from __future__ import annotations

from bough.errors import Conflict
from bough.hypervisor.networks import Networks
from bough.hypervisor.projects.registry import Projects
from bough.machines.state import LIVE
from bough.networks.record import NetworkRecord
from bough.projects.record import ProjectRecord
from bough.spec.project.model import ProjectNetwork, ProjectSpec


class ProjectNetworks:
    def __init__(self, projects: Projects, networks: Networks) -> None:
        self._projects = projects
        self._networks = networks

    def of(self, record: ProjectRecord | None) -> dict[str, NetworkRecord]:
        """Return name -> network; nothing for a project that does not exist yet."""
        return {one.name: one for one in self._projects.networks(record)} if record is not None else {}

    def changed(self, record: ProjectRecord | None, spec: ProjectSpec) -> dict[str, list[str]]:
        """Return the existing networks that the file has changed -> names of the settings."""
        found = {name: _changes(network, spec.networks[name]) for name, network in self._known(record, spec)}
        return {name: changes for name, changes in found.items() if changes}

    def check_changes(self, record: ProjectRecord | None, spec: ProjectSpec) -> None:
        """Raise Conflict if a network changes that a running machine uses."""
        for name, settings in self.changed(record, spec).items():
            network = self.of(record)[name]
            running = [one.name for one in self._networks.users(network) if one.state in LIVE]
            if running:
                what = f"{' and '.join(settings)} of network '{name}'"
                raise Conflict(
                    f"the file changes {what}, and {running[0]} runs on it",
                    hint="stop the project first, then start it again: bough down, bough up",
                    machines=running,
                )

    async def make(self, record: ProjectRecord, spec: ProjectSpec) -> None:
        """Create missing networks, and change the others as the file says.

        Raises:
            Conflict: a subnet overlaps with a network of the home, or a changed network is in use.
        """
        self.check_changes(record, spec)
        for name in self.changed(record, spec):
            wanted = spec.networks[name]
            await self._networks.change(
                self.of(record)[name], subnet=wanted.subnet, mtu=wanted.mtu, internal=wanted.internal
            )
        known = self.of(record)
        for name, wanted in spec.networks.items():
            if name not in known:
                self._networks.create(
                    name, subnet=wanted.subnet, mtu=wanted.mtu, internal=wanted.internal, project=record
                )
        self._projects.settle(record)

    async def delete_unused(self, record: ProjectRecord, kept: ProjectSpec | None) -> None:
        """Delete the networks that no machine uses and the file does not name; without a file, all."""
        for name, network in self.of(record).items():
            wanted = kept is not None and name in kept.networks
            if not wanted and not self._networks.users(network):
                await self._networks.delete(network.id)
        self._projects.settle(record)

    def _known(self, record: ProjectRecord | None, spec: ProjectSpec) -> list[tuple[str, NetworkRecord]]:
        return [(name, one) for name, one in self.of(record).items() if name in spec.networks]


def _changes(network: NetworkRecord, wanted: ProjectNetwork) -> list[str]:
    """Return the settings that the file gives and the network has not. A subnet or an MTU left out stays."""
    subnet = wanted.subnet is not None and wanted.subnet != str(network.subnet)
    mtu = wanted.mtu is not None and wanted.mtu != network.mtu
    internal = wanted.internal != network.internal
    found = (("subnet", subnet), ("mtu", mtu), ("internal", internal))
    return [name for name, differs in found if differs]
