"""Faults of links: frames that are lost, late, doubled, damaged, or held back.

A fault affects frames between machines, and between a machine and the outside if the fault is about a machine
and all others. The switch's own answers (ARP, DHCP, DNS) are not affected.

All times are of the monotonic clock. The loop of the process wakes for a late frame with the precision of
epoll: 1 ms. Random decisions come from generators of their own: one for each fault, link, direction and word,
seeded by the fault's seed and the names of both machines. So the n-th frame of a link has the same fate in
each run.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Protocol

from bough.networks.switch.guard import HEADER_BYTES
from bough.networks.switch.link_fault import DROP, HOLD, LinkFault, Words
from bough.networks.switch.port import FRAME_COST_BYTES

#: Bounds of the frames that wait: from one machine, and in all. A flood fills the share of its sender alone.
MOST_BYTES = 8 << 20
MOST_TOTAL_BYTES = 256 << 20
_BITS_NS = 8 * 10**9
#: Reasons for dropped frames, counted at the sender's port.
LOST = "fault"
FULL = "fault_queue_full"


class End(Protocol):
    """An end of a link: the port of a machine, or the machine's way to the outside.

    Attributes:
        label: equal in each run, unlike the name of a port.
    """

    name: str
    dropped: Counter[str]

    @property
    def label(self) -> str: ...

    def send(self, frame: bytes) -> None: ...

    def send_all(self, frames: Iterable[bytes]) -> None: ...


class Faults:
    """All faults of a network's links.

    Args:
        now_ns: the monotonic clock.
    """

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._faults: tuple[LinkFault, ...] = ()
        self._links: dict[tuple[End, End], Link] = {}
        self._chances: dict[tuple[str, str, str, str], Chance] = {}
        #: Late frames: when due, number, link, frame.
        self._late: list[tuple[int, int, Link, bytes]] = []
        self._numbers = 0
        self._room = Room()

    @property
    def are_set(self) -> bool:
        return bool(self._faults)

    def replace(self, faults: Sequence[LinkFault]) -> None:
        """Replace all faults. Frames that wait on a changed link are delivered now, unless its new faults
        hold them.
        """
        self._faults = tuple(faults)
        present = {fault.id for fault in faults}
        self._chances = {key: chance for key, chance in self._chances.items() if key[0] in present}
        before, self._links = self._links, {}
        changed = set()
        for ends, link in before.items():
            own = self._faults_of(*ends)
            if own == link.faults:
                self._links[ends] = link
            else:
                changed.add(link)
        self._deliver_of(changed)
        for ends, link in before.items():
            if link in changed:
                self._pass_on(link, self._link(*ends))

    def send(self, frame: bytes, source: End, target: End) -> None:
        """Carry a frame between two machines, as the faults have it. Never waits."""
        link = self._links.get((source, target)) or self._link(source, target)
        if not link.faults:
            target.send(frame)
            return
        if link.is_cut:
            link.drop(frame)
            return
        for copy in link.fates(frame):
            self._keep(link, copy)

    def wait_s(self) -> float | None:
        """Return the time until the next late frame is due; None: no frame is late."""
        return max(0.0, (self._late[0][0] - self._now_ns()) / 1e9) if self._late else None

    def deliver(self) -> None:
        """Send the frames that are due."""
        late, now = self._late, self._now_ns()
        while late and late[0][0] <= now:
            _, _, link, frame = heapq.heappop(late)
            link.waiting -= 1
            self._room.leave(link.source, frame)
            link.target.send(frame)

    def forget(self, port: End) -> None:
        """Drop the frames for a detached port. Frames that it had sent are delivered now."""
        ended = {link for ends, link in self._links.items() if port in ends}
        self._links = {ends: link for ends, link in self._links.items() if link not in ended}
        self._deliver_of(ended, but_not_to=port)
        for link in ended:
            for frame in link.held:
                self._room.leave(link.source, frame)
            if link.target is not port:
                link.target.send_all(link.held)
        self._room.forget(port)

    def describe(self) -> list[dict[str, Any]]:
        """Return what each fault has done to how many frames."""
        return [{"id": fault.id, **self._count(fault)} for fault in self._faults]

    def _count(self, fault: LinkFault) -> dict[str, int]:
        count: Counter[str] = Counter()
        for (owner, word, _, _), chance in self._chances.items():
            if owner == fault.id:
                count[word] += chance.count
        links = [link for link in self._links.values() if fault in link.faults]
        if fault.words.cut == DROP:
            count["loss"] = sum(link.dropped for link in links)
        count["waiting"] = sum(len(link.held) + link.waiting for link in links)
        return dict(count)

    def _link(self, source: End, target: End) -> Link:
        link = self._links.get((source, target))
        if link is None:
            link = Link(source, target, self._faults_of(source, target), self._chance)
            self._links[source, target] = link
        return link

    def _faults_of(self, source: End, target: End) -> tuple[LinkFault, ...]:
        return tuple(fault for fault in self._faults if fault.has(source.name, target.name))

    def _chance(self, fault: LinkFault, word: str, percent: float, source: End, target: End) -> Chance:
        key = (fault.id, word, source.name, target.name)
        chance = self._chances.get(key)
        if chance is None:
            seed = f"{fault.seed}/{source.label}/{target.label}/{word}"
            chance = self._chances[key] = Chance(percent, fault.words.correlation, seed)
        return chance

    def _keep(self, link: Link, frame: bytes) -> None:
        """Send a frame now, or keep it until it is due or its link is whole again."""
        now = self._now_ns()
        due = None if link.holds else link.due_ns(now, len(frame))
        if due is not None and due <= now and (not link.waiting or due < link.last_due):
            link.target.send(frame)
            return
        if not self._room.enter(link.source, frame):
            link.source.dropped[FULL] += 1
            return
        if due is None:
            link.held.append(frame)
            return
        self._numbers += 1
        link.waiting += 1
        heapq.heappush(self._late, (due, self._numbers, link, frame))

    def _deliver_of(self, links: set[Link], *, but_not_to: End | None = None) -> None:
        """Send the late frames of these links now, in order."""
        if not links:
            return
        theirs = sorted(one for one in self._late if one[2] in links)
        self._late = [one for one in self._late if one[2] not in links]
        heapq.heapify(self._late)
        frames: dict[End, list[bytes]] = {}
        for _, _, link, frame in theirs:
            link.waiting -= 1
            self._room.leave(link.source, frame)
            frames.setdefault(link.target, []).append(frame)
        for target, some in frames.items():
            if target is not but_not_to:
                target.send_all(some)

    def _pass_on(self, before: Link, after: Link) -> None:
        if after.holds:
            after.held += before.held
            return
        for frame in before.held:
            self._room.leave(before.source, frame)
        before.target.send_all(before.held)


class Link:
    """Frames from one port to another one.

    Attributes:
        faults: the faults of this link and direction.
        held: frames that are kept until the link is whole again.
        waiting: number of late frames.
        last_due: when the latest of them is due: later frames do not overtake it.
    """

    def __init__(
        self,
        source: End,
        target: End,
        faults: tuple[LinkFault, ...],
        chance: Callable[[LinkFault, str, float, End, End], Chance],
    ) -> None:
        self.source, self.target, self.faults = source, target, faults
        self.held: list[bytes] = []
        self.waiting = self.last_due = self.dropped = 0
        self._free_ns = 0
        words: dict[str, tuple[LinkFault, Any]] = {}
        for fault in faults:
            words |= {word: (fault, value) for word, value in fault.words.given.items()}

        def of(word: str) -> Chance | None:
            if word not in words:
                return None
            fault, percent = words[word]
            return chance(fault, word, percent, source, target)

        self._loss, self._duplicate = of("loss"), of("duplicate")
        self._corrupt, self._reorder, self._jitter = of("corrupt"), of("reorder"), of("jitter")
        values = Words(**{word: value for word, (_, value) in words.items()})
        self.is_cut, self.holds = values.cut == DROP, values.cut == HOLD
        self._delay_ns, self._jitter_ns = round(values.delay * 1e9), round(values.jitter * 1e9)
        self._rate = values.rate

    def drop(self, frame: bytes) -> None:
        self.dropped += 1
        self.source.dropped[LOST] += 1

    def fates(self, frame: bytes) -> list[bytes]:
        """Return the frame as often as it arrives, damaged or not. A doubled frame that is lost arrives
        once.
        """
        copies = 1
        if self._duplicate is not None and self._duplicate.happens():
            copies += 1
        if self._loss is not None and self._loss.happens():
            copies -= 1
        if not copies:
            self.drop(frame)
        corrupt = self._corrupt
        if corrupt is None:
            return [frame] * copies
        return [corrupt.damage(frame) if corrupt.happens() else frame for _ in range(copies)]

    def due_ns(self, now: int, size: int) -> int:
        """Return when a frame arrives."""
        due = now
        if self._rate:
            self._free_ns = due = max(now, self._free_ns) + size * _BITS_NS // self._rate
        if self._reorder is not None and self._reorder.happens():
            return now
        due += self._delay_ns
        if self._jitter is not None:
            due += round(self._jitter_ns * self._jitter.spread())
        self.last_due = due = max(due, self.last_due)
        return due


class Chance:
    """A random decision about each frame of a link. With a correlation, a part of the frames has the fate of
    the frame before; the share of the fates stays as given.
    """

    def __init__(self, percent: float, correlation: float, seed: str) -> None:
        self.count = 0
        self._part = percent / 100
        self._correlation = correlation / 100
        self._random = Random(seed)
        self._last: float | None = None

    def happens(self) -> bool:
        happens = self._next() < self._part
        self.count += happens
        return happens

    def spread(self) -> float:
        """Return a number between -1 and 1."""
        return 2 * self._next() - 1

    def damage(self, frame: bytes) -> bytes:
        """Return the frame with one wrong bit behind the Ethernet header."""
        if len(frame) <= HEADER_BYTES:
            return frame
        at = self._random.randrange(HEADER_BYTES, len(frame))
        return frame[:at] + bytes((frame[at] ^ 1 << self._random.randrange(8),)) + frame[at + 1 :]

    def _next(self) -> float:
        random = self._random.random
        if self._last is None or not self._correlation or random() >= self._correlation:
            self._last = random()
        return self._last


class Room:
    """The memory of all frames that wait."""

    def __init__(self) -> None:
        self._total = 0
        self._of: Counter[End] = Counter()

    def enter(self, source: End, frame: bytes) -> bool:
        """Count a frame. Return False if there is no room."""
        cost = len(frame) + FRAME_COST_BYTES
        if self._of[source] + cost > MOST_BYTES or self._total + cost > MOST_TOTAL_BYTES:
            return False
        self._of[source] += cost
        self._total += cost
        return True

    def leave(self, source: End, frame: bytes) -> None:
        cost = len(frame) + FRAME_COST_BYTES
        self._of[source] -= cost
        self._total -= cost

    def forget(self, port: End) -> None:
        if not self._of[port]:
            del self._of[port]
