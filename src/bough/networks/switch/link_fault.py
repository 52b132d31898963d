"""A fault of links between machines, as data: the links, and what happens to their frames.

The words are those of netem (tc-netem(8)). The service checks a fault with `problems_of`, and the switch
checks again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bough.networks.switch.settings import parse_port

#: What a cut link does with its frames.
DROP, HOLD = "drop", "hold"
_ID = re.compile(r"[0-9a-f]{4,32}")
_SHARES = ("loss", "duplicate", "corrupt", "reorder", "correlation")
MOST_DELAY_S = 600.0
MOST_ARCS = 4096
#: Bits per second: a modem of 1962, and more than the switch carries.
LEAST_RATE, MOST_RATE = 300, 10**12


@dataclass(frozen=True)
class Words:
    """What happens to the frames of a link. The default changes nothing.

    Attributes:
        cut: "drop": all frames are lost. "hold": frames are kept until the fault ends.
        delay, jitter: in seconds. A frame comes late by delay - jitter to delay + jitter. Frames keep their
            order.
        loss, duplicate, corrupt: percentage of the frames that are lost, come twice, or have a wrong bit.
        reorder: percentage of the frames that overtake delayed frames.
        correlation: percentage of the frames that have the fate of the frame before.
        rate: bits per second; 0: as fast as possible.
    """

    cut: str = ""
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    correlation: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    rate: int = 0

    @property
    def given(self) -> dict[str, Any]:
        """Return the words that change something."""
        return {name: value for name, value in vars(self).items() if value}

    @property
    def is_random(self) -> bool:
        return any((self.jitter, self.loss, self.duplicate, self.corrupt, self.reorder))


def problems_of(words: Mapping[str, Any]) -> list[str]:
    """Return all that is wrong with the words, a sentence each."""
    problems = []
    numbers = {name: words.get(name) or 0 for name in (*_SHARES, "delay", "jitter", "rate")}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return [f"{name} is a number"]
    for name in _SHARES:
        if not 0 <= numbers[name] <= 100:
            problems.append(f"{name} is between 0 and 100 percent, not {numbers[name]:g}")
    for name in ("delay", "jitter"):
        if not 0 <= numbers[name] <= MOST_DELAY_S:
            problems.append(f"{name} is between 0 and {MOST_DELAY_S:g} seconds, not {numbers[name]:g}")
    if numbers["rate"] and not LEAST_RATE <= numbers["rate"] <= MOST_RATE:
        problems.append(f"rate is at least {LEAST_RATE} bits per second, not {numbers['rate']:g}")
    if words.get("cut") not in (None, "", DROP, HOLD):
        problems.append(f"a cut link drops or holds its frames, not {str(words['cut'])[:40]!r}")
    return problems + _contradictions(numbers, is_cut=bool(words.get("cut")))


def _contradictions(numbers: Mapping[str, float], *, is_cut: bool) -> list[str]:
    problems = []
    if is_cut and any(numbers.values()):
        problems.append("no frame passes a cut link: leave out the other words")
    if numbers["jitter"] > numbers["delay"]:
        problems.append("jitter is at most the delay: a frame cannot come early")
    if numbers["reorder"] and not numbers["delay"]:
        problems.append("reorder needs a delay, which the other frames have")
    fates = ("jitter", "loss", "duplicate", "corrupt", "reorder")
    if numbers["correlation"] and not any(numbers[name] for name in fates):
        problems.append(f"correlation needs one of {', '.join(fates)}")
    return problems


@dataclass(frozen=True)
class Arc:
    """Links from some ports to some ports; None: all ports."""

    sources: frozenset[str] | None
    targets: frozenset[str] | None

    def has(self, source: str, target: str) -> bool:
        return (self.sources is None or source in self.sources) and (
            self.targets is None or target in self.targets
        )

    def meets(self, other: Arc) -> bool:
        """Return whether a link belongs to both."""
        return _meet(self.sources, other.sources) and _meet(self.targets, other.targets)

    def to_list(self) -> list[list[str] | None]:
        return [None if ports is None else sorted(ports) for ports in (self.sources, self.targets)]


def _meet(some: frozenset[str] | None, others: frozenset[str] | None) -> bool:
    return some is None or others is None or bool(some & others)


@dataclass(frozen=True)
class LinkFault:
    """Attributes:
    seed: with the same seed, the same frames of a link have the same fate.
    """

    id: str
    seed: int
    arcs: tuple[Arc, ...]
    words: Words

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LinkFault:
        """Raises ValueError, KeyError, TypeError: the data describes no fault."""
        words = dict(data["words"])
        if problems := problems_of(words):
            raise ValueError("; ".join(problems))
        if not _ID.fullmatch(data["id"]):
            raise ValueError("the id of a fault consists of hexadecimal digits")
        arcs = data["arcs"]
        if len(arcs) > MOST_ARCS:
            raise ValueError(f"a fault has at most {MOST_ARCS} groups of links")
        return cls(data["id"], int(data["seed"]), tuple(_arc(*arc) for arc in arcs), Words(**words))

    def to_dict(self) -> dict[str, Any]:
        arcs = [arc.to_list() for arc in self.arcs]
        return {"id": self.id, "seed": self.seed, "arcs": arcs, "words": self.words.given}

    def has(self, source: str, target: str) -> bool:
        return any(arc.has(source, target) for arc in self.arcs)

    def contradicts(self, other: LinkFault) -> list[str]:
        """Return the words that both faults set for one link. Two cuts of one kind are no contradiction."""
        if not any(one.meets(two) for one in self.arcs for two in other.arcs):
            return []
        own, others = self.words.given, other.words.given
        if "cut" in own and "cut" in others:
            return ["cut"] if own["cut"] != others["cut"] else []
        return [word for word in own if word in others and word != "correlation"]


def _arc(sources: Any, targets: Any) -> Arc:
    return Arc(_ports(sources), _ports(targets))


def _ports(names: Any) -> frozenset[str] | None:
    return None if names is None else frozenset(map(parse_port, names))
