"""One port of the switch: two sockets, a bounded queue, and counters."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bough.networks.switch.settings import Member, format_mac
from bough.networks.switch_port import NIC_SOCKET, SWITCH_SOCKET

#: Added to the size of each waiting frame, so that small frames count with their memory use.
FRAME_COST_BYTES = 128
#: How long a port without a QEMU is left alone before the next frame looks for one.
_LOOK_AGAIN_S = 0.05
#: Room for some frames of 64 KiB in the kernel, before a queue here is used.
_SEND_BUFFER_BYTES = 1 << 20

#: Reasons for dropped frames, beside those of guard.py.
QUEUE_FULL = "queue_full"
NO_MACHINE = "no_machine"
TOO_LARGE = "too_large"


class Port:
    """A port, below the current directory.

    Frames wait here while QEMU does not read, up to `queue_bytes`. No other port waits for these frames.

    Attributes:
        receiver: the socket to which QEMU sends.
        dropped: reason -> number of frames.
        drained: called when no frame waits any more.
    """

    def __init__(self, member: Member, poll: select.epoll, queue_bytes: int) -> None:
        self.member = member
        self.name = member.port
        self.mac = member.mac
        self.received_frames = self.received_bytes = self.sent_frames = self.sent_bytes = 0
        self.dropped: Counter[str] = Counter()
        self.drained: Callable[[], None] = lambda: None
        self._poll = poll
        self._most_bytes = queue_bytes
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._sender: socket.socket | None = None
        self._looked = 0.0
        self.receiver = _bind(Path(member.port, SWITCH_SOCKET))

    @property
    def label(self) -> str:
        """Return the name of the port's machine: equal in each run, unlike the name of the port."""
        return self.member.names[0] if self.member.names else self.name

    @property
    def is_busy(self) -> bool:
        """Return whether so many frames wait that a sender that can wait has to."""
        return self._queued_bytes > self._most_bytes // 4

    @property
    def sender_number(self) -> int | None:
        """Return the descriptor that becomes writable when QEMU reads again."""
        return None if self._sender is None else self._sender.fileno()

    def send(self, frame: bytes) -> None:
        """Send a frame to the machine, or queue it, or drop it. Never waits."""
        if self._queue:
            self._enqueue(frame)
            return
        if self._sender is None and not self._connect():
            self.dropped[NO_MACHINE] += 1
            return
        try:
            self._sender.send(frame)  # type: ignore[union-attr]
        except BlockingIOError:
            self._enqueue(frame)
            self._poll.modify(self._sender, select.EPOLLOUT)  # type: ignore[arg-type]
        except OSError:
            self._send_anew(frame)
        else:
            self.sent_frames += 1
            self.sent_bytes += len(frame)

    def send_all(self, frames: Iterable[bytes]) -> None:
        """Send frames that have waited elsewhere. All of them may wait here once more: no bound applies."""
        most, self._most_bytes = self._most_bytes, sys.maxsize
        for frame in frames:
            self.send(frame)
        self._most_bytes = most

    def drain(self) -> None:
        """Send what waits, until QEMU does not read any more."""
        sender, queue = self._sender, self._queue
        while sender is not None and queue:
            try:
                sender.send(queue[0])
            except BlockingIOError:
                return
            except OSError:
                self.disconnect()
                return
            frame = queue.popleft()
            self._queued_bytes -= len(frame) + FRAME_COST_BYTES
            self.sent_frames += 1
            self.sent_bytes += len(frame)
        if sender is not None:
            self._poll.modify(sender, 0)
        self.drained()

    def disconnect(self) -> None:
        """Drop the frames for an ended QEMU. The next frame looks for another QEMU."""
        if self._sender is not None:
            self._poll.unregister(self._sender)
            self._sender.close()
            self._sender = None
        self.dropped[NO_MACHINE] += len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        self.drained()

    def close(self) -> None:
        self.disconnect()
        self.receiver.close()
        with contextlib.suppress(OSError):
            Path(self.name, SWITCH_SOCKET).unlink()

    def describe(self) -> dict[str, Any]:
        """Return the counters. `received` counts frames from the machine, `sent` frames to the machine."""
        return {
            "port": self.name,
            "mac": format_mac(self.mac),
            "received_frames": self.received_frames,
            "received_bytes": self.received_bytes,
            "sent_frames": self.sent_frames,
            "sent_bytes": self.sent_bytes,
            "queued_frames": len(self._queue),
            "queued_bytes": self._queued_bytes,
            "dropped": dict(self.dropped),
        }

    def _enqueue(self, frame: bytes) -> None:
        cost = len(frame) + FRAME_COST_BYTES
        if self._queued_bytes + cost > self._most_bytes:
            self.dropped[QUEUE_FULL] += 1
            return
        self._queue.append(frame)
        self._queued_bytes += cost

    def _send_anew(self, frame: bytes) -> None:
        """Send a frame after an error: to the machine's next QEMU, if any."""
        self.disconnect()
        self._looked = 0.0
        if self._connect() and self._sender is not None:
            try:
                self._sender.send(frame)
            except OSError:
                self.disconnect()
            else:
                self.sent_frames += 1
                self.sent_bytes += len(frame)
                return
        self.dropped[NO_MACHINE] += 1

    def _connect(self) -> bool:
        now = time.monotonic()
        if now < self._looked + _LOOK_AGAIN_S:
            return False
        self._looked = now
        self._sender = _connect(Path(self.name, NIC_SOCKET))
        if self._sender is None:
            return False
        self._poll.register(self._sender, 0)
        return True


def _bind(path: Path) -> socket.socket:
    """Return the socket at `path`, which replaces the socket of an earlier switch at once.

    Raises:
        OSError: the directory is missing or not writable.
    """
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        receiver.setblocking(False)
        new = path.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        receiver.bind(str(new))
        # The directory alone decides who may send: QEMU may be another user.
        new.chmod(0o666)
        new.rename(path)
    except BaseException:
        receiver.close()
        raise
    return receiver


def _connect(path: Path) -> socket.socket | None:
    """Return a socket connected to QEMU's socket at `path`; None: QEMU cannot be reached.

    A connected socket tells when QEMU reads again (unix(7) has no such notice for others). QEMU owns the
    directory: a link or a file of another kind is not followed.
    """
    try:
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        if not stat.S_ISSOCK(os.fstat(place).st_mode):
            raise FileNotFoundError(path)
        sender.setblocking(False)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        sender.connect(f"/proc/self/fd/{place}")
    except OSError:
        sender.close()
        return None
    finally:
        os.close(place)
    return sender
