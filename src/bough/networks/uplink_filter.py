"""What a machine may send to the outside: a program between QEMU and passt.

    QEMU ── a stream of frames, each after its length (4 bytes) ── this ── the same ── passt

passt opens a socket of the host to wherever a frame says it goes. An honest guest never sends a frame to
127.0.0.1; a hostile one does, and the passt of 2023 then connects to the host's loopback, --no-map-gw or
not. So nothing but ARP, IPv4 and IPv6 gets through here, and no packet to a loopback or unspecified
address. The other way everything does. It ends when either side does.

The service runs this once, and asks it for the process of each machine: a child of this is there in a
millisecond, where an interpreter takes 15 to start. passt is started when the guest has something to say.

Run by path, without bough's package or site-packages: standard library only.
"""

from __future__ import annotations

# Not socket, not signal: each takes as long to load as the interpreter.
import _signal  # type: ignore[import-not-found]
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

_MAX_REQUEST_BYTES = 1 << 14
_FORWARD_NOTHING = ("--no-map-gw", "-t", "none", "-u", "none")


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


def first_words(guest: _socket.socket, sieve: Sieve) -> bytes:
    """What the guest may send of what it sends first; nothing: it is gone. Raises ValueError, OSError."""
    while data := guest.recv(_CHUNK_BYTES):
        if allowed := sieve.feed(data):
            return allowed
    return b""


def relay(guest: _socket.socket, outside: _socket.socket, sieve: Sieve, first: bytes = b"") -> None:
    """Until one of them is closed. Raises ValueError, OSError for a broken one.

    Args:
        sieve: for what comes from the guest.
        first: is sent to the outside before that.
    """
    queued = {guest: bytearray(), outside: bytearray(first)}
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


def _start_passt(program: str) -> _socket.socket:
    """Our end of it; it ends when that is closed."""
    ours, theirs = _socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    words = [program, "--foreground", "--quiet", "--fd", str(theirs.fileno()), *_FORWARD_NOTHING]
    ignored_here = (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGCHLD)
    os.posix_spawn(program, words, os.environ, setsigdef=ignored_here)
    theirs.close()
    return ours


def _write(path: str, text: str) -> None:
    """Where it cannot be: the machine has ended, and its group with it."""
    try:
        with open(path, "wb", buffering=0) as file:  # noqa: PTH123
            file.write(text.encode())
    except OSError:
        pass


def carry(guest: _socket.socket, uid: str, label: str, passt: str, *groups: str) -> None:
    """One machine's uplink, from its beginning to its end: see uplink.py for what is given."""
    for group in groups:
        _write(f"{group}/cgroup.procs", "0")
    _write("/proc/self/comm", label)
    if uid != "-":
        _give_up_root(int(uid))
    sieve = Sieve()
    first = first_words(guest, sieve)
    if first:
        relay(guest, _start_passt(passt), sieve, first)


def serve(control: _socket.socket) -> None:
    """Until whoever asks is gone: each request is words, with NUL between them, and the guest's socket; each
    answer a process id, or what went wrong."""
    # Of the machines' processes: this has no others, and waits for none.
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
    while True:
        request, rights, _, _ = control.recvmsg(_MAX_REQUEST_BYTES, _socket.CMSG_SPACE(4))
        if not request:
            return
        guest = _socket.socket(fileno=int.from_bytes(rights[0][2][:4], sys.byteorder))
        try:
            pid = os.fork()
        except OSError as error:
            control.send(f"{error}".encode())
        else:
            if pid == 0:
                _be_uplink(control, guest, os.fsdecode(request).split("\0"))
            control.send(b"%d" % pid)
        guest.close()


def _be_uplink(control: _socket.socket, guest: _socket.socket, words: list[str]) -> None:
    """In a child; never returns."""
    try:
        control.close()
        os.setsid()
        carry(guest, *words)
    except (OSError, ValueError):
        pass  # the machine, passt, or both are gone; QEMU tells its own end of it
    finally:
        os._exit(0)


if __name__ == "__main__":
    serve(_socket.socket(fileno=int(sys.argv[1])))
