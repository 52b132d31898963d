"""Ports, and what happens to each frame."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from bough.networks.switch.faults import End, Faults
from bough.networks.switch.gateway import NO_UPLINK, Gateway, Outside
from bough.networks.switch.guard import HEADER_BYTES, TAG_BYTES, TAGS, Guard, skip_tags
from bough.networks.switch.link_fault import LinkFault
from bough.networks.switch.packets import link_local
from bough.networks.switch.port import TOO_LARGE, Port
from bough.networks.switch.services import Services
from bough.networks.switch.settings import Member, Settings
from bough.networks.switch.table import Table

#: Work for one port before the next port's turn: a frame, each copy of a frame, or an answer is about 1.
_TURN = 32
_ANSWER_COST = 8
#: A service that hangs must not stop a network for longer.
MOST_HOLD_S = 30.0
#: Room for two tags above the MTU, and one byte more. A valid frame leaves this byte free.
_OVERHEAD_BYTES = HEADER_BYTES + 2 * TAG_BYTES
_RUNT = "runt"
_SPOOFED_MAC = "spoofed_mac"


class Watcher(Protocol):
    """Sees all that happens on the network, for a capture."""

    def saw(self, port: Port | None, frame: bytes) -> None:
        """Take a frame after the checks, sent by a machine or by the switch (None)."""

    def met(self, members: Sequence[Member]) -> None:
        """Take the new list of members."""


class Fabric:
    """The ports of a network, below the current directory.

    Each port has a turn of bounded work, so a flood from one machine slows the neighbours by no more than one
    share.

    Attributes:
        watchers: the captures.

    Args:
        now_ns: the clock of late frames.
    """

    def __init__(
        self, settings: Settings, poll: select.epoll, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.settings = settings
        self.watchers: list[Watcher] = []
        self._poll = poll
        self._now_ns = now_ns
        #: None while no link has a fault.
        self._faults: Faults | None = None
        self._ports: dict[str, Port] = {}
        self._receivers: dict[int, Callable[[], None]] = {}
        #: Port -> the uplink process of the machine there.
        self._outsides: dict[Port, Outside] = {}
        self._table: Table[Port] = Table()
        self._owners: dict[bytes, str] = {}
        self._guard = Guard(self._owners)
        self._services = Services(settings, self._guard.used, self._pass_on)
        self._gateway = Gateway(settings)
        self._receive_bytes = settings.mtu + _OVERHEAD_BYTES + 1
        self._held_until: float | None = None
        self._own_addresses()

    def attach(self, member: Member) -> None:
        """Add a port, or change the settings of a port and keep its sockets and counters.

        Raises:
            ValueError: another port has the MAC address or an address.
            OSError: the port's directory is missing.
        """
        self._check_free(member)
        port = self._ports.get(member.port)
        if port is None:
            port = Port(member, self._poll, self.settings.queue_bytes)
            self._ports[port.name] = port
            self._receivers[port.receiver.fileno()] = partial(self.receive, port)
            self._poll.register(port.receiver, self._receive_events)
        self._table.forget(port)
        self._table.set(member.mac, port)
        port.member, port.mac = member, member.mac
        if not member.gateway:
            self._disconnect(port)
        self._own_addresses()

    def detach(self, name: str) -> bool:
        """Remove a port. Return whether the port existed."""
        port = self._ports.pop(name, None)
        if port is None:
            return False
        self._disconnect(port)
        self._poll.unregister(port.receiver)
        del self._receivers[port.receiver.fileno()]
        self._table.forget(port)
        if self._faults is not None:
            self._faults.forget(port)
        port.close()
        self._own_addresses()
        return True

    def connect(self, name: str, pid: int, end: socket.socket) -> None:
        """Connect the uplink process of a machine, in place of an earlier one.

        Args:
            end: a stream of frames to the process.

        Raises:
            ValueError: the port is missing, or its machine does not reach the outside through this network.
        """
        port = self._ports.get(name)
        if port is None or not port.member.gateway:
            raise ValueError(f"port {name} does not lead to the outside")
        self._disconnect(port)
        self._outsides[port] = Outside(port, pid, end, self._poll, self.settings.queue_bytes)
        port.drained = partial(self._follow_port, port)
        self._follow_port(port)

    def _disconnect(self, port: Port) -> None:
        outside = self._outsides.pop(port, None)
        if outside is not None:
            if self._faults is not None:
                self._faults.forget(outside)
            outside.close()

    def hold(self, most_s: float) -> None:
        """Carry no frame until `release`, at most for `most_s`. Frames wait in the sockets of the machines.

        Raises:
            ValueError: the time is out of range.
        """
        if not 0 < most_s <= MOST_HOLD_S:
            raise ValueError(f"frames are held for at most {MOST_HOLD_S:g} s, not {most_s:g} s")
        self._held_until = time.monotonic() + most_s
        self._follow_hold()

    def release(self) -> None:
        """Carry frames again."""
        if self._held_until is not None:
            self._held_until = None
            self._follow_hold()

    def release_if_due(self) -> float | None:
        """Carry frames again after the longest hold. Return the rest of a hold in s; None: no hold."""
        if self._held_until is None:
            return None
        left_s = self._held_until - time.monotonic()
        if left_s > 0:
            return left_s
        self.release()
        return None

    def ports(self) -> list[Port]:
        return list(self._ports.values())

    def describe(self) -> list[dict[str, Any]]:
        return [{**port.describe(), "uplink": self._uplink_of(port)} for port in self._ports.values()]

    def _uplink_of(self, port: Port) -> int | None:
        """Return the process id of a connected uplink."""
        outside = self._outsides.get(port)
        return None if outside is None else outside.pid

    def set_faults(self, faults: Sequence[LinkFault]) -> None:
        """Replace the faults of the links. Frames that an ended fault kept are delivered now."""
        self._faults = self._faults or Faults(self._now_ns)
        self._faults.replace(faults)
        if not faults:
            self._faults = None

    def describe_faults(self) -> list[dict[str, Any]]:
        return [] if self._faults is None else self._faults.describe()

    def wait_s(self) -> float | None:
        """Return the time until a hold ends or a late frame is due, in s; None: neither."""
        if self._held_until is not None and (left_s := self.release_if_due()) is not None:
            return left_s
        return None if self._faults is None else self._faults.wait_s()

    def deliver(self) -> None:
        """Deliver late frames that are due, except during a hold."""
        if self._faults is not None and self._held_until is None:
            self._faults.deliver()

    def owner_of(self, number: int, events: int = select.EPOLLIN) -> Callable[[], None] | None:
        """Return the handler of a ready descriptor; None: the descriptor belongs to no port."""
        receive = self._receivers.get(number)
        if receive is not None:
            return receive
        for port, outside in self._outsides.items():
            if outside.fileno() == number:
                return partial(self._serve_outside, port, outside, events)
        return next((p.drain for p in self._ports.values() if p.sender_number == number), None)

    def close(self) -> None:
        for name in list(self._ports):
            self.detach(name)

    @property
    def _receive_events(self) -> int:
        return select.EPOLLIN if self._held_until is None else 0

    def _follow_hold(self) -> None:
        for port in self._ports.values():
            self._poll.modify(port.receiver, self._receive_events)
            self._follow_port(port)

    def _follow_port(self, port: Port) -> None:
        """Receive frames from the outside while the machine reads them, except during a hold."""
        outside = self._outsides.get(port)
        if outside is not None:
            outside.read(self._held_until is None and not port.is_busy)

    def receive(self, port: Port) -> None:
        """Carry frames from a port until no more wait, or its turn is over."""
        receive, size, handle, left = port.receiver.recv, self._receive_bytes, self._handle, _TURN
        try:
            while left > 0:
                left -= handle(receive(size), port)
        except BlockingIOError:
            pass

    def _handle(self, frame: bytes, port: Port) -> int:
        """Carry, answer or drop one frame. Return the amount of work."""
        size = len(frame)
        port.received_frames += 1
        port.received_bytes += size
        why = self._refuses(frame, size, port)
        if why is not None:
            port.dropped[why] += 1
            return 1
        for watcher in self.watchers:
            watcher.saw(port, frame)
        target = self._table.find(frame[:6])
        if target is not None:
            if target is not port:
                self._carry(frame, port, target)
            return 1
        if port.member.gateway and self._gateway.leaves(frame, port.member):
            self._leave(frame, port)
            return 1
        answers = self._services.answer(frame, port.member)
        if answers is None:
            return 1 + self._flood(frame, port)
        for answer in answers:
            for watcher in self.watchers:
                watcher.saw(None, answer)
            port.send(answer)
        return _ANSWER_COST

    def _refuses(self, frame: bytes, size: int, port: Port) -> str | None:
        """Return why a frame is dropped; None: the frame passes."""
        if size < HEADER_BYTES:
            return _RUNT
        source = frame[6:12]
        if source != port.mac and not self._table.learn(source, port, port.member.learns):
            return _SPOOFED_MAC
        if size > self.settings.mtu + HEADER_BYTES:
            kind, at = skip_tags(frame)
            if size >= self._receive_bytes or kind in TAGS or size - at > self.settings.mtu:
                return TOO_LARGE
        return self._guard.refuses(frame, port.name)

    def _flood(self, frame: bytes, source: Port) -> int:
        """Send a frame to all other ports. Return their number."""
        for port in self._ports.values():
            if port is not source:
                self._carry(frame, source, port)
        return len(self._ports) - 1

    def _carry(self, frame: bytes, source: End, target: End) -> None:
        """Send a frame over a link, as its faults have it."""
        if self._faults is None:
            target.send(frame)
        else:
            self._faults.send(frame, source, target)

    # -- the outside ------------------------------------------------------------------------------

    def _leave(self, frame: bytes, port: Port) -> None:
        """Send a machine's frame to the outside."""
        outside = self._outsides.get(port)
        if outside is None:
            port.dropped[NO_UPLINK] += 1
        else:
            self._carry(frame, port, outside)

    def _pass_on(self, frame: bytes, member: Member) -> None:
        """Send a machine's DNS query to the resolver of the outside."""
        self._leave(frame, self._ports[member.port])

    def _serve_outside(self, port: Port, outside: Outside, events: int) -> None:
        """Send what waits for the outside, and carry the frames that come from there."""
        try:
            if events & select.EPOLLOUT:
                outside.flush()
            frames = outside.receive() if events & ~select.EPOLLOUT else []
        except (OSError, ValueError):  # the process has ended: the service starts another one
            self._disconnect(port)
            return
        for frame in frames:
            entering = self._gateway.enter(frame, port.member)
            if entering is not None:
                for watcher in self.watchers:
                    watcher.saw(None, entering)
                self._carry(entering, outside, port)
        self._follow_port(port)

    def _check_free(self, member: Member) -> None:
        for port in self._ports.values():
            if port.name == member.port:
                continue
            if port.mac == member.mac:
                raise ValueError(f"port {port.name} has the MAC address {member.mac.hex(':')}")
            if set(member.addresses) & set(port.member.addresses):
                raise ValueError(f"port {port.name} has an address of port {member.port}")
        own = {self.settings.address.ip.packed, self.settings.address6.ip.packed}
        if member.mac == self.settings.mac or own & set(member.addresses):
            raise ValueError(f"port {member.port} has an address of the switch")

    def _own_addresses(self) -> None:
        members = [port.member for port in self._ports.values()]
        # In place: the guard reads it.
        self._owners.clear()
        for member in members:
            self._owners.update(dict.fromkeys((*member.addresses, link_local(member.mac)), member.port))
        own = (self.settings.address.ip.packed, self.settings.address6.ip.packed)
        self._owners.update(dict.fromkeys((*own, link_local(self.settings.mac)), ""))
        self._guard.used.intersection_update(self._owners)
        self._services.know(members)
        for watcher in self.watchers:
            watcher.met(members)
