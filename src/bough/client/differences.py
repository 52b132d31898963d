"""The Python API's comparison of two systems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from bough.client.connection import Connection
    from bough.contract.answers import SystemDifferences
    from bough.progress import Report


class Named(Protocol):
    """A machine or a snapshot."""

    @property
    def id(self) -> str: ...


def diff(
    api: Connection, after: Named | str, before: Named | str | None, *, progress: Report | None = None
) -> SystemDifferences:
    """Return what differs; see `Hypervisor.diff`."""
    from bough.contract.answers import SystemDifferences
    from bough.contract.differences import CompareSystems

    request = CompareSystems(after=_name(after), before=None if before is None else _name(before))
    return SystemDifferences.from_dict(api.send_long(request, timeout=None, progress=progress))


def _name(system: Named | str) -> str:
    return system if isinstance(system, str) else system.id
