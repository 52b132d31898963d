"""What sshfs runs in ssh's place: gives the agent its end of the stream, and ends.

    python3 -I -S agent_connect.py TAG ...what sshfs would tell ssh...

Its standard input is a socket of sshfs. The agent gets that very socket, so that nothing but the agent
stands between sshfs and the port.
"""

from __future__ import annotations

import _socket
import sys

#: Of the agent (agent_door.py); in a directory that only root can enter.
DOOR = "/run/bough/mounts.sock"


def main() -> int:
    tag = sys.argv[1].encode()
    descriptor = (0).to_bytes(4, sys.byteorder)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM, 0)
    try:
        sock.connect(DOOR)
        sock.sendmsg([tag], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor)])
    except OSError:
        return 1  # no agent: sshfs sees its stream end, and tells EIO
    return 0


if __name__ == "__main__":
    sys.exit(main())
