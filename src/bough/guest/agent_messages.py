"""Messages between an agent and its keeper: bytes and descriptors over a Unix socket."""

from __future__ import annotations

import _socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    Socket = _socket.socket

MESSAGE_BYTES = 65536
_MAX_FDS = 4


def send(sock: Socket, data: bytes, fds: list[int]) -> None:
    more = []
    if fds:
        packed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        more = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
    sock.sendmsg([data], more)


def receive(sock: Socket) -> tuple[bytes, list[int]]:
    """Receive a message and the descriptors with it; empty at the end."""
    space = _socket.CMSG_SPACE(4 * _MAX_FDS)
    data, more, _, _ = sock.recvmsg(MESSAGE_BYTES, space, _socket.MSG_CMSG_CLOEXEC)
    fds = []
    for level, kind, content in more:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            cuts = range(0, len(content) - 3, 4)
            fds += [int.from_bytes(content[at : at + 4], sys.byteorder) for at in cuts]
    return data, fds
