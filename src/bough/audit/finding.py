"""Findings of a check of the home, and safe repairs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class Repair(StrEnum):
    """The repairs of `--repair`. No repair deletes valuable data."""

    #: Move to lost+found/, below the former path.
    SET_ASIDE = "set-aside"
    #: Remove a socket without a listener, an empty control group, or the rest of an interrupted write.
    REMOVE = "remove"
    #: Correct the permissions.
    MODE = "mode"
    #: Write labels.json again from the existing images; set the old file aside.
    LABELS = "labels"
    #: Free allocated but unused clusters of a disk (`qemu-img check -r leaks`).
    LEAKS = "leaks"


@dataclass(frozen=True)
class Finding:
    """A problem in the home.

    Attributes:
        kind: stable, for programs: "record-unreadable", "disk-damaged", "stray", ...
        problem: the problem, in a sentence.
        safe: how a user can solve the problem without losing anything.
        repair: the repair by `--repair`; None if a user must decide.
        harmless: the problem only costs some space.
        mode: the correct mode, for Repair.MODE.
        repaired: the result of `--repair`.
        error: why the repair failed.
    """

    kind: str
    path: Path
    problem: str
    safe: str
    repair: Repair | None = None
    machine: str | None = None
    harmless: bool = False
    mode: int | None = None
    repaired: str | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "path": str(self.path),
            "problem": self.problem,
            "safe": self.safe,
            "repair": None if self.repair is None else str(self.repair),
            "machine": self.machine,
            "harmless": self.harmless,
            "repaired": self.repaired,
            "error": self.error,
        }


@dataclass(frozen=True)
class Skipped:
    """A part of the home that was not checked, and why."""

    what: str
    why: str

    def to_dict(self) -> dict[str, str]:
        return {"what": self.what, "why": self.why}
