"""Forks, as a client requests them. `M` is the class of the machines that are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from bough.errors import BoughError, error_from_dict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bough.client.connection import Connection
    from bough.contract.snapshots import Identity
    from bough.progress import Report

#: Seconds that a call may take beyond the service's own timeout: forks are made several at a time.
_GRACE_S = 60.0


class Held(Protocol):
    """The part of a machine that its maker uses."""

    def hold(self) -> None: ...


M = TypeVar("M", bound=Held)
M_co = TypeVar("M_co", bound=Held, covariant=True)


class MakeMachine(Protocol[M_co]):
    """Makes the client's object of a machine."""

    def __call__(self, reference: str, *, name: str | None = None, ephemeral: bool = False) -> M_co: ...


class ForkOf(NamedTuple, Generic[M]):
    """One of many forks: the machine, or the reason why there is none. `raw` is the service's answer."""

    machine: M | None
    error: BoughError | None
    raw: dict[str, Any]


def fork(
    api: Connection, make: MakeMachine[M], source: str, name: str | None, count: int | None, **options: Any
) -> M | list[M]:
    """Return a fork; with `count`, a list of forks. `options` are those of `fork_each`.

    Raises:
        BoughError: the error of the first fork that failed; the other forks stay.
    """
    made = fork_each(api, make, source, names=[name] if name else [], count=count or 1, **options)
    for one in made:
        if one.error is not None:
            raise one.error
    machines = [one.machine for one in made if one.machine is not None]
    return machines if count is not None else machines[0]


def fork_each(
    api: Connection,
    make: MakeMachine[M],
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
) -> list[ForkOf[M]]:
    """Make forks that succeed or fail independently. Raises only if the source cannot be forked."""
    from bough.contract.snapshots import MakeForks

    request = MakeForks(
        source=source,
        names=names,
        count=count,
        identity=identity,
        cold=cold,
        ephemeral=ephemeral,
        timeout_s=timeout,
        now=now,
    )
    limit = None if timeout is None else timeout + _GRACE_S
    answer = api.send_long(request, timeout=limit, progress=progress)
    return [_fork(make, one, ephemeral) for one in answer]


def _fork(make: MakeMachine[M], data: dict[str, Any], ephemeral: bool) -> ForkOf[M]:
    if "error" in data:
        return ForkOf(None, error_from_dict(data["error"]), data)
    machine = make(data["machine"]["id"], name=data["machine"]["name"], ephemeral=ephemeral)
    if ephemeral:
        machine.hold()
    return ForkOf(machine, None, data)
