"""The ladder of fork speed: how far a fork of a snapshot is prepared before a user requests the fork.

    level        what is ready                               what the request still does
    booted       a snapshot with memory                      start QEMU, load the state, identity
    pre-warmed   a process image of the snapshot             start from the image, identity
    loaded       a fork that has loaded its state            identity
    standby      a fork that has answered, paused            resume, set the clock
    running      a fork that has answered, its guest idle    nothing

Each level contains the levels before it. Every level from `pre-warmed` on is a cache: bough makes it in idle
time and deletes it at any time. Then the request starts one level lower, and takes longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    BOOTED = 0
    PREWARMED = 1
    LOADED = 2
    STANDBY = 3
    RUNNING = 4


@dataclass(frozen=True)
class Rule:
    """Limits for the things kept at one level.

    Attributes:
        most: this number of snapshots, standby machines: per request; those used last stay. The parts of a
            project's snapshot count as one.
        kept_s: time after the last use; None: until the host is short of memory.
        kept_unused_s: time after the creation, without a use; None: as `kept_s`.
    """

    most: int
    kept_s: float | None
    kept_unused_s: float | None = None


_DAY_S = 86400.0

#: A process image takes some 70 MiB of the host's memory, shared by its forks. A loaded fork takes little
#: memory and no processor time.
RULES: dict[Level, Rule] = {
    Level.BOOTED: Rule(most=8, kept_s=14 * _DAY_S),
    Level.PREWARMED: Rule(most=4, kept_s=1800.0, kept_unused_s=300.0),
    Level.LOADED: Rule(most=2, kept_s=60.0),
    Level.STANDBY: Rule(most=32, kept_s=None),
    Level.RUNNING: Rule(most=1, kept_s=None),
}
