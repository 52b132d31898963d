"""Replacement for ssh that sshfs runs: passes sshfs's end of the stream to the agent, and ends.

    python3 -I -S agent_connect.py TAG ...arguments that sshfs has for ssh...

Standard input is a socket of sshfs. The agent gets the same socket, so no other process is between sshfs and
the port.
"""

from __future__ import annotations

import _socket
import sys

#: The agent's socket (agent_door.py), in a directory that only root can enter.
DOOR = "/run/bough/mounts.sock"


def main() -> int:
    tag = sys.argv[1].encode()
    descriptor = (0).to_bytes(4, sys.byteorder)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM, 0)
    try:
        sock.connect(DOOR)
        sock.sendmsg([tag], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor)])
    except OSError:
        return 1  # no agent: the stream of sshfs ends, and sshfs reports EIO
    return 0


if __name__ == "__main__":
    sys.exit(main())
