"""The faults in a machine's QEMU or guest, which its snapshots must not contain."""

from __future__ import annotations

from typing import Protocol

from bough.errors import Conflict


class Host(Protocol):
    """The parts of a machine that PresentFaults uses."""

    @property
    def name(self) -> str: ...


class PresentFaults:
    """The present faults of one machine: id -> summary."""

    def __init__(self, machine: Host) -> None:
        self._machine = machine
        self.found: dict[str, str] = {}

    def check_none(self, doing: str) -> None:
        """Raise Conflict if there is a fault. A fork would have the fault without a way to undo it."""
        for fault, summary in self.found.items():
            name = self._machine.name
            raise Conflict(
                f"machine '{name}' has a fault ({summary}); {doing} would contain the fault",
                hint=f"bough fault heal {fault}",
                machine=name,
                fault=fault,
            )
