"""Guest memory, written as QEMU sees it: what it has translated of that is forgotten.

Over QEMU's server for debuggers, the one way in that writes physical memory (docs/system/gdb.rst), in the
protocol of gdb's remote targets: `$` packet `#` sum, each answered by `+` and a packet.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from bough.errors import MachineFailed

_TIMEOUT_S = 20.0
_MOST_ANSWER_BYTES = 64 << 10
#: Half of a packet of QEMU's (PacketSize), in hex, with room for the address.
WRITE_BYTES = 1024


def write_physical(connection: socket.socket, pieces: Iterable[tuple[int, bytes]]) -> None:
    """Each (guest-physical address, at most WRITE_BYTES). The vCPUs stand still. Blocks.

    Raises MachineFailed: it refuses, or says nothing.
    """
    connection.settimeout(_TIMEOUT_S)
    session = _Session(connection)
    session.ask(b"qSupported:")
    session.demand(b"Qqemu.PhyMemMode:1")
    for address, content in pieces:
        session.demand(b"M%x,%x:%s" % (address, len(content), content.hex().encode()))


class _Session:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._read = b""

    def demand(self, command: bytes) -> None:
        answer = self.ask(command)
        if answer != b"OK":
            raise MachineFailed(f"QEMU does not write its guest's memory: {answer[:100]!r}")

    def ask(self, command: bytes) -> bytes:
        try:
            self._connection.sendall(b"$%s#%02x" % (command, sum(command) & 0xFF))
            while (end := self._read.find(b"#")) < 0 or len(self._read) < end + 3:
                data = self._connection.recv(_MOST_ANSWER_BYTES)
                if not data or len(self._read) > _MOST_ANSWER_BYTES:
                    raise MachineFailed("QEMU's server for debuggers ended in the middle of an answer")
                self._read += data
            packet, self._read = self._read[:end], self._read[end + 3 :]
            self._connection.sendall(b"+")
        except OSError as error:
            raise MachineFailed(f"QEMU's server for debuggers does not answer: {error}") from error
        return packet.rpartition(b"$")[2]
