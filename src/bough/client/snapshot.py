"""The Python API's snapshot, and its forks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from bough.client.connection import Connection, path_of
from bough.client.machine import Machine
from bough.errors import BoughError, error_from_dict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bough.client.info import SnapshotInfo
    from bough.progress import Report

Identity = Literal["new", "keep"]


class Fork(NamedTuple):
    """One of many forks: the machine, or the reason why there is none."""

    machine: Machine | None
    error: BoughError | None


class Snapshot:
    """An immutable snapshot. Made by a Hypervisor or a Machine. Usable from several threads at once."""

    def __init__(self, api: Connection, snapshot_id: str, *, label: str | None = None) -> None:
        self._api = api
        self.id = snapshot_id
        self.label = label

    def __repr__(self) -> str:
        return f"<bough.Snapshot {self.label or self.id}>"

    def info(self) -> SnapshotInfo:
        from bough.client.info import SnapshotInfo

        return SnapshotInfo.from_dict(self._api.get(path_of("snapshots", self.id)))

    def verify(self, *, timeout: float | None = None) -> None:
        """Read the whole snapshot and compare checksums. Raises BoughError "snapshot-damaged"."""
        self._api.long_call("POST", path_of("snapshots", self.id, "verify"), {}, timeout=timeout)

    def delete(self) -> None:
        """Delete the snapshot. Forks and other snapshots keep the backing files that they need."""
        self._api.call("DELETE", path_of("snapshots", self.id))

    def keep_spares(self, count: int) -> None:
        """Keep `count` paused standby machines, forks of this snapshot; 0 stops keeping them.

        `fork` gets one of them within milliseconds, unless the fork is to keep its parent's identity. They
        are made in the background, have run for some seconds, and are discarded while the host is short of
        memory.

        Raises:
            InvalidInput: the snapshot has no memory, or its machine does not have bough's agent.
        """
        self._api.call("PUT", "/spares", {"snapshot": self.id, "count": count})

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
    ) -> Machine: ...
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
    ) -> list[Machine]: ...
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
    ) -> Machine | list[Machine]:
        """Make a new machine that continues from the snapshot. With `count`, make that many and return a
        list.

        Args:
            name: with `count` name-1, name-2, ...; None: a generated name.
            identity: "keep": the fork keeps its parent's identity (host name, keys, MAC address).
            cold: fork the disks alone; the fork is stopped.
            ephemeral: deleted when its `with` block or this program ends.

        Raises:
            BoughError: the error of the first fork that failed; the other forks stay (see `fork_each`).
        """
        return fork(self._api, self.id, name, count, identity, cold, ephemeral, timeout, progress)


def fork(
    api: Connection,
    source: str,
    name: str | None,
    count: int | None,
    identity: Identity,
    cold: bool,
    ephemeral: bool,
    timeout: float | None,
    progress: Report | None,
    now: bool = False,
) -> Machine | list[Machine]:
    made = fork_each(
        api,
        source,
        names=[name] if name else [],
        count=count or 1,
        identity=identity,
        cold=cold,
        ephemeral=ephemeral,
        timeout=timeout,
        progress=progress,
        now=now,
    )
    for one in made:
        if one.error is not None:
            raise one.error
    machines = [one.machine for one in made if one.machine is not None]
    return machines if count is not None else machines[0]


def fork_each(
    api: Connection,
    source: str,
    *,
    names: Sequence[str] = (),
    count: int | None = None,
    identity: Identity = "new",
    cold: bool = False,
    ephemeral: bool = False,
    timeout: float | None = None,
    progress: Report | None = None,
    now: bool = False,
) -> list[Fork]:
    """Make forks that succeed or fail independently. Raises only if the source cannot be forked."""
    body: dict[str, Any] = {
        "source": source,
        "names": list(names),
        "count": count,
        "identity": identity,
        "cold": cold,
        "ephemeral": ephemeral,
        "timeout_s": timeout,
        "now": now,
    }
    limit = None if timeout is None else timeout + 60
    answer = api.long_call("POST", "/forks", body, timeout=limit, progress=progress)
    return [_fork(api, one, ephemeral) for one in answer]


def _fork(api: Connection, data: dict[str, Any], ephemeral: bool) -> Fork:
    if "error" in data:
        return Fork(None, error_from_dict(data["error"]))
    machine = Machine(api, data["machine"]["id"], name=data["machine"]["name"], ephemeral=ephemeral)
    if ephemeral:
        machine.hold()
    return Fork(machine, None)
