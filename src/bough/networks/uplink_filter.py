"""What a machine may send to the outside: run as a program between QEMU and passt.

    QEMU ── a stream of frames, each after its length (4 bytes) ── this ── the same ── passt

passt opens a socket of the host to wherever a frame says it goes. An honest guest never sends a frame to
127.0.0.1; a hostile one does, and the passt of 2023 then connects to the host's loopback, --no-map-gw or
not. So nothing but ARP, IPv4 and IPv6 gets through here, and no packet to a loopback or unspecified
address. The other way everything does. It ends when either side does.

Run by path, without bough's package or site-packages: standard library only.
"""

from __future__ import annotations

# Not socket: it takes as long to load as the interpreter, for each machine.
import _socket
import os
import select
import sys

_ARP = b"\x08\x06"
_IPV4 = b"\x08\x00"
_IPV6 = b"\x86\xdd"

#: 64 KiB, and a little: QEMU's largest frame. A longer one is no frame.
MAX_FRAME_BYTES = 0x10000 + 256
_CHUNK_BYTES = 1 << 18
#: Kept for one direction while the other side does not read.
_MAX_QUEUED_BYTES = 1 << 20


def is_allowed(frame: memoryview) -> bool:
    """Whether a guest may send it. False for what is too short to say where it goes."""
    kind = bytes(frame[12:14])
    if kind == _IPV4:
        # 0.0.0.0/8 and 127.0.0.0/8: this host.
        return len(frame) >= 34 and frame[30] not in (0, 127)
    if kind == _IPV6:
        # ::/96 has :: and ::1; ::ffff:0:0/96 has IPv4 addresses in disguise.
        destination = bytes(frame[38:54])
        hidden = destination[:10] == bytes(10) and destination[10:12] in (b"\0\0", b"\xff\xff")
        return len(destination) == 16 and not hidden
    return kind == _ARP


class Sieve:
    """Keeps a stream's allowed frames, with their lengths."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        """What of `data`, and of what came before, is complete and allowed.

        Raises:
            ValueError: it is no stream of frames.
        """
        self._rest += data
        kept = []
        position = 0
        with memoryview(self._rest) as view:
            while len(view) - position >= 4:
                length = int.from_bytes(view[position : position + 4], "big")
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"a frame of {length} bytes")
                end = position + 4 + length
                if end > len(view):
                    break
                with view[position + 4 : end] as frame:
                    if is_allowed(frame):
                        kept.append(bytes(view[position:end]))
                position = end
        del self._rest[:position]
        return b"".join(kept)


def relay(guest: _socket.socket, outside: _socket.socket) -> None:
    """Until one of them is closed. Raises ValueError, OSError for a broken one."""
    sieve = Sieve()
    queued = {guest: bytearray(), outside: bytearray()}
    peers = {guest: outside, outside: guest}
    for end in peers:
        end.setblocking(False)
    while True:
        readers = [end for end, peer in peers.items() if len(queued[peer]) < _MAX_QUEUED_BYTES]
        writers = [end for end in peers if queued[end]]
        readable, writable, _ = select.select(readers, writers, [])
        for end in readable:
            data = end.recv(_CHUNK_BYTES)
            if not data:
                return
            queued[peers[end]] += sieve.feed(data) if end is guest else data
        for end in writable or [end for end in peers if queued[end]]:
            try:
                sent = end.send(queued[end])
            except BlockingIOError:
                continue
            del queued[end][:sent]


def _give_up_root(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def main() -> None:
    """Arguments: descriptors of the machine's and of passt's socket; a user id, or "-"; the machine's id."""
    if sys.argv[3] != "-":
        _give_up_root(int(sys.argv[3]))
    guest, outside = (_socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    try:
        relay(guest, outside)
    except (OSError, ValueError):
        # The machine, passt, or both are gone; QEMU tells its own end of it.
        return


if __name__ == "__main__":
    main()
