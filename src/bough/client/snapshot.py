"""The Python API's snapshot of a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, overload

from bough.client.forks import M, fork

if TYPE_CHECKING:
    from bough.client.connection import Connection
    from bough.contract.answers import SnapshotInfo
    from bough.contract.snapshots import Identity
    from bough.progress import Report


class SnapshotOf(Generic[M]):
    """An immutable snapshot of a machine. Forks of the snapshot are of the class `M`."""

    def __init__(self, api: Connection, snapshot_id: str, *, label: str | None = None) -> None:
        self._api = api
        self.id = snapshot_id
        self.label = label

    def __repr__(self) -> str:
        return f"<bough.Snapshot {self.label or self.id}>"

    def info(self) -> SnapshotInfo:
        """Return the snapshot's description. Raises NotFound."""
        from bough.contract.answers import SnapshotInfo
        from bough.contract.snapshots import GetSnapshot

        return SnapshotInfo.from_dict(self._api.send(GetSnapshot(reference=self.id)))

    def verify(self, *, timeout: float | None = None, progress: Report | None = None) -> None:
        """Read the whole snapshot and compare the checksums. Raises SnapshotDamaged."""
        from bough.contract.snapshots import VerifySnapshot

        self._api.send_long(VerifySnapshot(reference=self.id), timeout=timeout, progress=progress)

    def delete(self) -> None:
        """Delete the snapshot. Forks and other snapshots keep their backing files."""
        from bough.contract.snapshots import DeleteSnapshot

        self._api.send(DeleteSnapshot(reference=self.id))

    def keep_standby(self, count: int) -> None:
        """Keep `count` paused standby machines, forks of this snapshot; 0 stops keeping them.

        `fork` gets a standby machine within milliseconds, unless the fork keeps the parent's identity. bough
        makes standby machines in the background, runs them for some seconds, and discards them while the
        host is short of memory.

        Raises:
            InvalidInput: the snapshot has no memory, or its machine does not have bough's agent.
        """
        from bough.contract.host import KeepStandby

        self._api.send(KeepStandby(snapshot=self.id, count=count))

    @overload
    def fork(
        self,
        name: str | None = None,
        *,
        count: None = None,
        identity: Identity = "new",
        cold: bool = False,
        ephemeral: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> M: ...
    @overload
    def fork(
        self,
        name: str | None = None,
        *,
        count: int,
        identity: Identity = "new",
        cold: bool = False,
        ephemeral: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> list[M]: ...
    def fork(
        self,
        name: str | None = None,
        *,
        count: int | None = None,
        identity: Identity = "new",
        cold: bool = False,
        ephemeral: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> M | list[M]:
        """Make a new machine that continues from the snapshot. With `count`, make several machines and return
        a list.

        Args:
            name: name of the machine; with `count`, the machines are name-1, name-2, ...; None: generated.
            count: number of machines.
            identity: "keep": the fork keeps its parent's identity (host name, keys, MAC address).
            cold: fork the disks alone; the fork is stopped.
            ephemeral: delete the fork when its `with` block or this program ends.

        Raises:
            BoughError: the error of the first fork that failed; the other forks stay (see `fork_each`).
        """
        return fork(
            self._api,
            self._machine,
            self.id,
            name,
            count,
            identity=identity,
            cold=cold,
            ephemeral=ephemeral,
            timeout=timeout,
            progress=progress,
        )

    def _machine(self, reference: str, *, name: str | None = None, ephemeral: bool = False) -> M:
        raise NotImplementedError
