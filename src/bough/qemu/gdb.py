"""Write guest memory through QEMU, so that QEMU drops the code translated from this memory.

Only QEMU's debugger server does so (docs/system/gdb.rst). The protocol is gdb's remote protocol:
`$` packet `#` sum, answered by `+` and a packet.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from bough.errors import MachineFailed

_TIMEOUT_S = 20.0
_MOST_ANSWER_BYTES = 64 << 10
#: QEMU reads on only after writing the answer. The answer needs room.
_MOST_UNANSWERED = 32
#: Half of QEMU's packet size in hex, with room for the address.
WRITE_BYTES = 1024


def write_physical(connection: socket.socket, pieces: Iterable[tuple[int, bytes]]) -> None:
    """Write each (guest-physical address, at most WRITE_BYTES). The vCPUs must be paused. Blocks.

    Raises MachineFailed: QEMU refuses or does not answer.
    """
    session = _Session(connection, physical=True)
    asked = 0
    for address, content in pieces:
        session.send(b"M%x,%x:%s" % (address, len(content), content.hex().encode()))
        asked += 1
        if asked > _MOST_UNANSWERED:
            session.confirm()
            asked -= 1
    for _ in range(asked):
        session.confirm()


def write_back(connection: socket.socket, places: Iterable[tuple[int, int, int]]) -> None:
    """Read and write back the bytes at each (vCPU, virtual address, length). The vCPUs must be paused.
    Blocks.

    Raises MachineFailed: QEMU refuses or does not answer.
    """
    session = _Session(connection, physical=False)
    for vcpu, address, size in places:
        session.demand(b"Hg%x" % (vcpu + 1))
        session.send(b"m%x,%x" % (address, size))
        content = session.answer()
        if len(content) != 2 * size:
            raise MachineFailed(f"QEMU does not read its guest's memory: {content[:100]!r}")
        session.demand(b"M%x,%x:%s" % (address, size, content))


class _Session:
    def __init__(self, connection: socket.socket, *, physical: bool) -> None:
        connection.settimeout(_TIMEOUT_S)
        self._connection = connection
        self._read = b""
        self.send(b"qSupported:")
        self.answer()
        self.demand(b"Qqemu.PhyMemMode:%d" % physical)  # QEMU keeps the mode across connections

    def demand(self, command: bytes) -> None:
        self.send(command)
        self.confirm()

    def confirm(self) -> None:
        answer = self.answer()
        if answer != b"OK":
            raise MachineFailed(f"QEMU does not write its guest's memory: {answer[:100]!r}")

    def send(self, command: bytes) -> None:
        """Send a packet, with the `+` for the previous answer."""
        try:
            self._connection.sendall(b"+$%s#%02x" % (command, sum(command) & 0xFF))
        except OSError as error:
            raise _silent(error) from error

    def answer(self) -> bytes:
        while (end := self._read.find(b"#")) < 0 or len(self._read) < end + 3:
            try:
                data = self._connection.recv(_MOST_ANSWER_BYTES)
            except OSError as error:
                raise _silent(error) from error
            if not data or len(self._read) > _MOST_ANSWER_BYTES:
                raise MachineFailed("QEMU's server for debuggers ended in the middle of an answer")
            self._read += data
        packet, self._read = self._read[:end], self._read[end + 3 :]
        return packet.rpartition(b"$")[2]


def _silent(error: OSError) -> MachineFailed:
    return MachineFailed(f"QEMU's server for debuggers does not answer: {error}")
