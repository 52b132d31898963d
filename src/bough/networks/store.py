"""The records of networks, and the directories of machines' ports."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path

from bough.errors import Conflict, NotFound
from bough.networks.record import NetworkRecord
from bough.networks.switch_port import SwitchPort
from bough.paths import Home, make_private_directory
from bough.storage import is_unfinished_write, remove_tree, sync_directory

log = logging.getLogger("bough.networks")


class NetworkStore:
    """All networks of a home.

    Attributes:
        unreadable: id -> error of each record that could not be read.
    """

    def __init__(self, home: Home) -> None:
        self.unreadable: dict[str, str] = {}
        self._home = home
        self._records: dict[str, NetworkRecord] = {}

    def open(self) -> None:
        """Read all records."""
        for path in sorted(self._home.networks.glob("*.json")):
            if is_unfinished_write(path.name):
                continue
            try:
                record = NetworkRecord.read(self._home.network(path.stem))
            except (OSError, ValueError) as error:
                # A damaged record must not keep other networks from being used.
                log.error("the record of network %s cannot be read: %s", path.stem, error)
                self.unreadable[path.stem] = str(error)
            else:
                self._records[record.id] = record

    def __iter__(self) -> Iterator[NetworkRecord]:
        return iter(sorted(self._records.values(), key=lambda record: record.created))

    def names(self, project: str | None = None) -> Collection[str]:
        """Return the names of the networks that a machine of the project may use."""
        return [record.name for record in self if record.project in (None, project)]

    def look_up(self, name: str, project: str | None) -> NetworkRecord | None:
        """Return the network that a machine of the project means by a name: the project's own, else one
        of the home.
        """
        found = {record.project: record for record in self if record.name == name}
        return found.get(project) or found.get(None)

    def find(self, reference: str, project: str | None = None) -> NetworkRecord:
        """Return the network with that name or id.

        Args:
            project: id of the project that the reference comes from.

        Raises:
            NotFound: no network matches. Conflict: the network's record is damaged.
        """
        record = self.look_up(reference, project) or self._records.get(reference)
        if record is not None:
            return record
        if reference in self.unreadable:
            raise Conflict(
                f"the record of network {reference} cannot be read: {self.unreadable[reference][:300]}",
                hint=f"repair it by hand, or move it away: {self._home.network(reference).record}",
            )
        close = get_close_matches(reference, self.names(project), n=1)
        hint = f"did you mean '{close[0]}'?" if close else "bough network list shows all networks"
        raise NotFound(
            f"no network is called {reference[:80]!r}", hint=hint, kind="network", name=reference[:80]
        )

    def add(self, record: NetworkRecord) -> None:
        """Keep a new network. Raises NoSpace, OSError: nothing was made."""
        record.write(self._home.network(record.id))
        self._records[record.id] = record

    def remove(self, record: NetworkRecord) -> None:
        """Delete an unused network, and the sockets of its ended switch."""
        paths = self._home.network(record.id)
        paths.record.unlink(missing_ok=True)
        sync_directory(paths.record.parent)
        self._records.pop(record.id, None)
        remove_tree(paths.runtime)
        with contextlib.suppress(OSError):  # another network has a switch
            paths.runtime.parent.rmdir()

    def used_by(self, names: Collection[str], project: str | None) -> list[NetworkRecord]:
        """Return the networks that a machine of the project means by these names."""
        return [record for name in names if (record := self.look_up(name, project)) is not None]

    def port(self, network: str, machine_id: str, nic: str, project: str | None = None) -> SwitchPort:
        """Return where the port of a machine's card is. Raises NotFound."""
        record = self.find(network, project)
        return SwitchPort(str(self._home.network(record.id).port(port_name(machine_id, nic))))

    def make_port(self, record: NetworkRecord, port: str, gid: int | None) -> Path:
        """Make the directory where QEMU and the switch bind the sockets of a machine's port.

        Args:
            gid: group of the switch under a root service, otherwise None.

        Raises:
            HostLacks, OSError: the directory cannot be made.
        """
        paths = self._home.network(record.id)
        make_private_directory(paths.runtime.parent)
        make_switch_directory(paths.runtime)
        directory = paths.port(port)
        directory.mkdir(mode=0o700, exist_ok=True)
        if gid is not None:
            os.chown(directory, -1, gid, follow_symlinks=False)
            directory.chmod(0o770)  # for any umask
        return directory

    def keep_ports(self, record: NetworkRecord, ports: Collection[str]) -> None:
        """Remove the directories of all other ports: their QEMUs have ended."""
        root = self._home.network(record.id).runtime
        for path in root.iterdir() if root.is_dir() else ():
            if path.is_dir() and path.name not in ports:
                remove_tree(path)


def make_switch_directory(path: Path) -> None:
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    path.chmod(0o711)


def port_name(machine_id: str, nic: str) -> str:
    """Return the name of the port of a machine's card."""
    return f"{machine_id}-{nic}"
