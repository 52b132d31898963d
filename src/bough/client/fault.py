"""The Python API's fault: a defect of a link or a machine, made on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bough.contract.faults import HealFaults, HoldFault, ListFaults
from bough.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bough.client.connection import Connection
    from bough.contract.answers import FaultInfo


class Fault:
    """A fault of a link or a machine. Made by a Network, a Machine or a Hypervisor.

    As a context manager, the fault ends with the block. A fault that this program has made also ends when
    the program ends in any way.
    """

    def __init__(self, api: Connection, data: dict[str, Any]) -> None:
        from bough.contract.answers import FaultInfo

        self._api = api
        self._info = info = FaultInfo.from_dict(data)
        self.id = info.id
        self._hold = None
        if info.held:
            from bough.client.hold import Hold

            self._hold = Hold(api, HoldFault(fault=info.id), f"hold fault {info.id}")

    def __repr__(self) -> str:
        return f"<bough.Fault {self.id}: {self.summary}>"

    @property
    def kind(self) -> str:
        return self._info.kind

    @property
    def summary(self) -> str:
        """Return what the fault does, in words."""
        return self._info.summary

    @property
    def seed(self) -> int | None:
        """Return the seed of a random fault. The same seed repeats the same choices."""
        return self._info.seed

    def is_present(self) -> bool:
        """Return whether the fault has not ended yet."""
        return any(one.id == self.id for one in list_faults(self._api))

    def heal(self) -> None:
        """End the fault. Does nothing if the fault has ended."""
        try:
            self._api.send_long(HealFaults(faults=[self.id]))
        except NotFound:
            pass
        finally:
            if self._hold is not None:
                self._hold.release()

    def __enter__(self) -> Fault:
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()


def list_faults(api: Connection) -> list[FaultInfo]:
    return read_faults(api.send(ListFaults()))


def read_faults(answer: Iterable[dict[str, Any]]) -> list[FaultInfo]:
    from bough.contract.answers import FaultInfo

    return [FaultInfo.from_dict(data) for data in answer]
