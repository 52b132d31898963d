"""What a look at the whole home found, and what is safe to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class Repair(StrEnum):
    """What `--repair` does about a finding. None of them deletes anything that could be of value."""

    #: Moved below lost+found/, under the path that it had.
    SET_ASIDE = "set-aside"
    #: A socket nobody listens on, a control group without processes, a write that was never finished.
    REMOVE = "remove"
    #: Its permissions are made what they should be.
    MODE = "mode"
    #: labels.json is written again, from the images that are there; the old one is set aside.
    LABELS = "labels"
    #: Clusters of a disk that are taken and not used are given back (`qemu-img check -r leaks`).
    LEAKS = "leaks"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: stable, for programs: "record-unreadable", "disk-damaged", "stray", ...
        problem: what is wrong, in a sentence.
        safe: what can be done about it without losing anything.
        repair: what `--repair` does; None where nothing is safe without a person's judgement.
        harmless: it costs some space and nothing else.
        mode: for Repair.MODE, what it should be.
        repaired: what was done, or why it could not be.
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
    """What was not looked at, and why."""

    what: str
    why: str

    def to_dict(self) -> dict[str, str]:
        return {"what": self.what, "why": self.why}
