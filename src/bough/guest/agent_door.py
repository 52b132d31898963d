"""Streams of mounts: sshfs requests a stream at our socket, the host by DIAL. The first to come waits.

A mount outlives its streams. A stream ends with the handshake (a fork, another service). At the next access,
sshfs requests the next stream.
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: SIM105, PTH101, PTH103, PTH108

from __future__ import annotations

import _socket
import os
import select
import sys

from bough.guest.agent_connect import DOOR
from bough.guest.agent_connection import Connection
from bough.guest.agent_errors import Refused
from bough.guest.agent_session import first_credit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bough.guest.agent_session import Agent

_MAX_TAG = 64
_MAX_WAITING = 64


class Door:
    """The place where sshfs and the host meet, by the tag of the mount."""

    def __init__(self, agent: Agent) -> None:
        self._ends: dict[str, int] = {}
        self._streams: dict[str, MountStream] = {}
        os.makedirs(os.path.dirname(DOOR), mode=0o700, exist_ok=True)  # noqa: PTH120
        os.chmod(os.path.dirname(DOOR), 0o700)  # noqa: PTH120
        try:
            os.unlink(DOOR)
        except FileNotFoundError:
            pass
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
        self._socket.bind(DOOR)
        self._socket.setblocking(False)
        agent.watch(self._socket.fileno(), select.EPOLLIN, self._readable)

    def await_end(self, tag: str, stream: MountStream) -> None:
        end = self._ends.pop(tag, None)
        if end is not None:
            stream.begin(end)
        else:
            self._streams[tag] = stream

    def forget(self, stream: MountStream) -> None:
        self._streams = {tag: one for tag, one in self._streams.items() if one is not stream}

    def _readable(self, _events: int) -> None:
        try:
            data, more, _, _ = self._socket.recvmsg(_MAX_TAG, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        ends = [
            int.from_bytes(content[:4], sys.byteorder)
            for level, kind, content in more
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS
        ]
        if ends:
            self._offer(data.decode("ascii", "replace"), ends[0])

    def _offer(self, tag: str, end: int) -> None:
        stream = self._streams.pop(tag, None)
        if stream is not None:
            stream.begin(end)
            return
        # Only the latest stream of an sshfs counts.
        old = self._ends.pop(tag, -1)
        if old >= 0:
            os.close(old)
        if len(self._ends) < _MAX_WAITING:
            self._ends[tag] = end
        else:
            os.close(end)


_doors: list[Door] = []


def _door(agent: Agent) -> Door:
    if not _doors:
        _doors.append(Door(agent))
    return _doors[0]


class MountStream(Connection):
    """The bytes between an sshfs and the host. OPENED is sent when the sshfs requests the stream."""

    def __init__(self, agent: Agent, session_id: int, request: dict[str, object]) -> None:
        tag = request.get("mount")
        if not isinstance(tag, str) or not 0 < len(tag) <= _MAX_TAG:
            raise Refused("expected the tag of a mount")
        self.agent = agent
        self.id = session_id
        self._window = first_credit(request)
        self._inlet = None
        self._outlet = None
        self._begun = False
        # From now on a path may lead to a file system that only this process serves.
        agent.carries = True
        _door(agent).await_end(tag, self)

    def begin(self, end: int) -> None:
        self._begun = True
        self._socket = _socket.socket(fileno=end)
        self._socket.setblocking(False)
        self._connected(select.EPOLLOUT)

    def was_read(self) -> None:
        pass  # a socket pair has no acknowledgements

    def abandon(self) -> None:
        if self._begun:
            super().abandon()
        else:
            _door(self.agent).forget(self)
