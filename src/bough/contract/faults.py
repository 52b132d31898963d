"""Requests about faults: what is broken on purpose, in links and machines.

All requests that make a lasting fault have these fields:

    held     the fault ends when no client holds the fault (HoldFault); a client has 30 s to begin
    for_s    the fault ends after this time, in seconds
    seed     repeats the choices of a random fault
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from bough.contract.request import Request, Route, stream

if TYPE_CHECKING:
    from bough.contract.answers import FaultInfo, MachineInfo
    from bough.contract.checks import COMMAND_S, SEED

Direction = Literal["to", "from", "both"]
Mode = Literal["drop", "slow", "hold"]
CutPattern = Literal["groups", "isolate", "bridge", "majorities-ring"]


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
    pattern: CutPattern = "groups"
    groups: Sequence[Sequence[str]] = ()
    machines: Sequence[str] = ()
    network: str | None = None
    mode: Mode = "drop"
    held: bool = False
    for_s: Annotated[float | None, COMMAND_S] = None
    seed: Annotated[int | None, SEED] = None


class PullCable(Request):
    """Pull the cable of a machine's network card: the guest sees that the link is down.

    `network` names the card: a network, or "uplink". Default: the only card on a network.
    """

    route = Route("POST", "/faults/cable")
    answer: ClassVar[FaultInfo]
    machine: str
    network: str | None = None
    held: bool = False
    for_s: Annotated[float | None, COMMAND_S] = None


class AddPause(Request):
    """Pause a machine's vCPUs until the fault ends."""

    route = Route("POST", "/faults/pause")
    answer: ClassVar[FaultInfo]
    machine: str
    held: bool = False
    for_s: Annotated[float | None, COMMAND_S] = None


class FailDisk(Request):
    """Let reads, writes or flushes of a disk fail.

    `disk` is its number; 0 is the root disk. `once`: only the next request fails. `start` and `end` bound
    the area, in bytes. `rate`: percentage of the blocks of 4 KiB of the area that fail, chosen by the seed.
    """

    route = Route("POST", "/faults/disk")
    answer: ClassVar[FaultInfo]
    machine: str
    operation: Literal["read", "write", "flush"]
    disk: int = 0
    error: str = "EIO"
    once: bool = False
    rate: float | None = None
    start: int | None = None
    end: int | None = None
    held: bool = False
    for_s: Annotated[float | None, COMMAND_S] = None
    seed: Annotated[int | None, SEED] = None


class ThrottleDisk(Request):
    """Slow a disk down: `bytes_per_s` and `iops` bound reads and writes together; 0 is no bound."""

    route = Route("POST", "/faults/throttle")
    answer: ClassVar[FaultInfo]
    machine: str
    disk: int = 0
    bytes_per_s: int = 0
    iops: int = 0
    held: bool = False
    for_s: Annotated[float | None, COMMAND_S] = None


class SetClockWrong(Request):
    """Set a guest's clock wrong, and stop the services that would set it right.

    `jump_s`: seconds ahead; negative: behind. `to`: the time, as Unix time. `drift_ppm`: how much too fast
    the clock runs, in parts per million; negative: too slow.
    """

    route = Route("POST", "/faults/clock", "long")
    answer: ClassVar[FaultInfo]
    machine: str
    jump_s: float = 0.0
    to: float | None = None
    drift_ppm: float = 0.0
    held: bool = False
    for_s: Annotated[float | None, COMMAND_S] = None


class AddPressure(Request):
    """Use the processors, the memory, or the free space of a file system in a guest: one of the three.

    `loops`: number of busy processes; 0: one for each vCPU. `memory_bytes`: memory to use. `full`: a
    directory, whose file system is filled.
    """

    route = Route("POST", "/faults/pressure", "long")
    answer: ClassVar[FaultInfo]
    machine: str
    loops: int | None = None
    memory_bytes: int | None = None
    full: str | None = None
    held: bool = False
    for_s: Annotated[float | None, COMMAND_S] = None


class ArmPowerCut(Request):
    """Make a machine ready for a power cut that loses what the guest has not flushed."""

    route = Route("POST", "/faults/arm", "long")
    answer: ClassVar[FaultInfo]
    machine: str
    held: bool = False
    for_s: Annotated[float | None, COMMAND_S] = None


class StrikeMachine(Request):
    """Break a machine at once.

    `how` "crash": QEMU is killed, and the machine fails. "power-cut": the machine is stopped at once.
    "reset": the guest boots. "panic": the guest's kernel panics. `lose_unsynced`: an armed machine loses
    what the guest has not flushed; the seed, if given, chooses a part that stays.
    """

    route = Route("POST", "/faults/strike", "long")
    answer: ClassVar[MachineInfo]
    machine: str
    how: Literal["crash", "reset", "panic", "power-cut"]
    lose_unsynced: bool = False
    seed: Annotated[int | None, SEED] = None


class KillInGuest(Request):
    """Send a signal to a systemd unit or to all processes of a name in a guest."""

    route = Route("POST", "/faults/kill", "long")
    machine: str
    unit: str | None = None
    process: str | None = None
    signal: str = "KILL"


class HealFaults(Request):
    """Undo faults, and answer with them.

    `faults`: by id. `network`, `machine`: all faults there. Without any of the three, all faults.
    """

    route = Route("POST", "/faults/heal", "long")
    answer: ClassVar[list[FaultInfo]]
    faults: Sequence[str] = ()
    network: str | None = None
    machine: str | None = None


class HoldFault(Request):
    """Keep a held fault while this WebSocket is open."""

    route = stream("/faults/{fault}/hold")
    fault: str
