"""The record of a fault, and the file of all faults of a home."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bough.machines.record import now
from bough.storage import write_atomically


class FaultRecord(BaseModel):
    """A fault that lasts.

    Attributes:
        kind: "link", "partition", "cable", "disk", "clock", "pressure", "armed".
        summary: what the fault does, for people.
        network: id of the network of a link's fault.
        machines: ids of the machines that the fault names. A deleted machine is removed.
        pid: the QEMU process in which the fault is; the fault ends with this process. None: the fault is in
            the switch of its network, and lasts over restarts of machines.
        settings: what is needed to undo the fault, or to set it again.
        seed: of a random fault: the same seed repeats the same choices.
        held: a client holds the fault; the fault ends when the client disconnects.
        ends: Unix time of the end, or None.
    """

    model_config = ConfigDict(extra="allow")

    id: str
    kind: str
    summary: str
    network: str | None = None
    machines: list[str] = Field(default_factory=list)
    pid: int | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    held: bool = False
    ends: float | None = None
    created: str = Field(default_factory=now)


_RECORDS = TypeAdapter(list[FaultRecord])


def read_faults(path: Path) -> list[FaultRecord]:
    """Return the faults of the file; none if there is no file. Raises OSError, ValueError."""
    try:
        return _RECORDS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []


def write_faults(path: Path, faults: Sequence[FaultRecord]) -> None:
    """Replace the file of all faults. Raises NoSpace, OSError."""
    told = [fault.model_dump(mode="json") for fault in faults]
    write_atomically(path, json.dumps(told, indent=1).encode() + b"\n")


def new_fault_id() -> str:
    return secrets.token_hex(3)


def new_seed() -> int:
    return secrets.randbelow(1 << 31)
