"""Requests about faults: what is broken on purpose, in links and machines.

All requests that make a lasting fault have these fields:

    held     the fault ends when no client holds the fault (HoldFault); a client has 30 s to begin
    for_s    the fault ends after this time, in seconds
    seed     repeats the fates of a random fault
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from bough.contract.request import Request, Route, stream

if TYPE_CHECKING:
    from bough.contract.answers import FaultInfo
    from bough.contract.checks import COMMAND_S, SEED

Direction = Literal["to", "from", "both"]
Mode = Literal["drop", "slow", "hold"]
Pattern = Literal["groups", "isolate", "bridge", "majorities-ring"]


class ListFaults(Request):
    """List all present faults, the oldest first."""

    route = Route("GET", "/faults")
    answer: ClassVar[list[FaultInfo]]


class AddLinkFault(Request):
    """Change what happens to the frames of a machine, or between a machine and its peers.

    `delay` and `jitter` in seconds; `loss`, `correlation`, `duplicate`, `corrupt` and `reorder` in percent;
    `rate` in bits per second.
    """

    route = Route("POST", "/faults/link")
    answer: ClassVar[FaultInfo]
    machine: str
    peers: Sequence[str] = ()
    network: str | None = None
    direction: Direction = "both"
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    correlation: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    rate: int = 0
    held: bool = False
    for_s: Annotated[float | None, COMMAND_S] = None
    seed: Annotated[int | None, SEED] = None


class AddPartition(Request):
    """Cut links between machines of a network.

    `pattern` "groups": no frame passes between two of the groups; "isolate": each of the machines is alone;
    "bridge": the one machine sees both groups; "majorities-ring": each machine sees another majority.
    `mode`: cut links drop their frames, hold the frames until the end, or are slow.
    """

    route = Route("POST", "/faults/partition")
    answer: ClassVar[FaultInfo]
    pattern: Pattern = "groups"
    groups: Sequence[Sequence[str]] = ()
    machines: Sequence[str] = ()
    network: str | None = None
    mode: Mode = "drop"
    held: bool = False
    for_s: Annotated[float | None, COMMAND_S] = None
    seed: Annotated[int | None, SEED] = None


class HealFaults(Request):
    """Undo faults, and answer with them.

    `faults`: by id. `network`, `machine`: all faults there. Without any of the three, all faults.
    """

    route = Route("POST", "/faults/heal")
    answer: ClassVar[list[FaultInfo]]
    faults: Sequence[str] = ()
    network: str | None = None
    machine: str | None = None


class HoldFault(Request):
    """Keep a held fault while this WebSocket is open."""

    route = stream("/faults/{fault}/hold")
    fault: str
