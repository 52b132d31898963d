"""What a machine may send to the outside: a program between QEMU and passt.

    QEMU ── a stream of frames, each after its length (4 bytes) ── this ── the same ── passt

passt opens a socket of the host to wherever a frame says it goes. An honest guest never sends a frame to
127.0.0.1; a hostile one does, and the passt of 2023 then connects to the host's loopback, --no-map-gw or
not. So nothing but ARP, IPv4 and IPv6 gets through here, and no packet to a loopback or unspecified
address. The other way everything does. DNS queries are answered here (uplink_dns.py).

The guest's address is the same on every host and in every network (see _ADDRESSES), so that nothing of the
guest changes when its host joins another network, or was offline when the machine started. A passt that ends
is started again. This ends when the guest's side does.

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
import time

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    from uplink_dns import RESOLVER, Forwarder  # type: ignore[import-not-found]
else:
    from bough.networks.uplink_dns import RESOLVER, Forwarder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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
#: Those of QEMU's user network, which is used where there is no passt. IPv6 addresses are the host's.
_ADDRESSES = ("-a", "10.0.2.15", "-n", "24", "-g", "10.0.2.2", "-D", RESOLVER, "-M", "52:55:0a:00:02:02")
#: Where the host has no route to anywhere passt needs an interface to look at.
_OFFLINE = ("-i", "lo")
#: Of a route in use (linux/route.h).
_RTF_UP = 1
#: A passt that ends at once is not started as fast as we can.
_BETWEEN_STARTS_S = 1.0


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


class Frames:
    """Cuts a stream into whole frames, each after its length."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        """What of `data`, and of what came before, is complete.

        Raises:
            ValueError: it is no stream of frames.
        """
        rest = self._rest
        rest += data
        end = 0
        while len(rest) - end >= 4:
            length = int.from_bytes(rest[end : end + 4], "big")
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            if end + 4 + length > len(rest):
                break
            end += 4 + length
        with memoryview(rest) as view:
            whole = bytes(view[:end])
        del rest[:end]
        return whole


class Sieve(Frames):
    """Keeps a stream's allowed frames. Queries that `forwarder` takes are not among them."""

    def __init__(self, forwarder: Forwarder | None = None) -> None:
        super().__init__()
        self._forwarder = forwarder

    def feed(self, data: bytes) -> bytes:
        """As of Frames, and only what is kept."""
        view = memoryview(super().feed(data))
        kept = []
        at = 0
        while at < len(view):
            end = at + 4 + int.from_bytes(view[at : at + 4], "big")
            if self._keeps(view[at + 4 : end]):
                kept.append(view[at:end])
            at = end
        return b"".join(kept)

    def _keeps(self, frame: memoryview) -> bool:
        return is_allowed(frame) and not (self._forwarder is not None and self._forwarder.take(frame))


class Ended(Exception):
    """The guest's side was closed."""


class Uplink:
    """One machine's, from its beginning to its end.

    Args:
        start: makes what carries frames to the outside, and returns our end of it.
    """

    def __init__(self, guest: _socket.socket, start: Callable[[], _socket.socket]) -> None:
        self._guest = guest
        self._start = start
        self._forwarder = Forwarder()
        self._sieve = Sieve(self._forwarder)
        self._for_guest = bytearray()
        guest.setblocking(False)

    def run(self) -> None:
        """Until the guest's side is closed. Raises ValueError, OSError for a broken one."""
        try:
            while True:
                # It is started when the guest has something to say: a fork that is never used has none.
                first = self._carry(None, b"")
                self._carry(self._start(), first)
                time.sleep(_BETWEEN_STARTS_S)
        except Ended:
            pass
        finally:
            self._forwarder.close()

    def _carry(self, outside: _socket.socket | None, first: bytes) -> bytes:
        """Until the outside ends; without one: until the guest sends something, which is returned.

        Raises: Ended, ValueError, OSError.
        """
        frames, for_outside = Frames(), bytearray(first)
        if outside is not None:
            outside.setblocking(False)
        while outside is not None or not for_outside:
            if not self._carry_once(outside, frames, for_outside):
                break
        return bytes(for_outside)

    def _carry_once(self, outside: _socket.socket | None, frames: Frames, for_outside: bytearray) -> bool:
        """Whether the outside is still there."""
        guest, dns = self._guest, self._forwarder.sockets()
        readers = [guest, *dns] if len(for_outside) < _MAX_QUEUED_BYTES else dns
        writers = [guest] if self._for_guest else []
        if outside is not None:
            readers += [outside] if len(self._for_guest) < _MAX_QUEUED_BYTES else []
            writers += [outside] if for_outside else []
        readable, _, _ = select.select(readers, writers, [], self._forwarder.wait_s())
        if guest in readable:
            data = guest.recv(_CHUNK_BYTES)
            if not data:
                raise Ended
            for_outside += self._sieve.feed(data)
        self._for_guest += self._forwarder.answers(readable)
        if outside is not None and not self._read_outside(outside, readable, frames):
            return False
        _send(guest, self._for_guest)
        if outside is not None and for_outside:
            try:
                _send(outside, for_outside)
            except OSError:
                return False
        return True

    def _read_outside(self, outside: _socket.socket, readable: list[_socket.socket], frames: Frames) -> bool:
        if outside not in readable:
            return True
        try:
            data = outside.recv(_CHUNK_BYTES)
        except OSError:
            return False
        # Whole frames only: one that is cut off would cost the guest all that follow.
        self._for_guest += frames.feed(data)
        return bool(data)


def _send(end: _socket.socket, queued: bytearray) -> None:
    """What `end` takes at the moment. Raises OSError."""
    if queued:
        try:
            sent = end.send(queued)
        except BlockingIOError:
            return
        del queued[:sent]


def _give_up_root(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


class Passt:
    """The passt of one machine, started again after each end."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._pidfd: int | None = None

    def start(self) -> _socket.socket:
        """Start passt and return this side of its socket. passt ends when that side is closed."""
        self.kill()
        ours, theirs = _socket.socketpair()
        os.set_inheritable(theirs.fileno(), True)
        options = ["--foreground", "--quiet", "--fd", str(theirs.fileno()), *_FORWARD_NOTHING]
        ignored_here = (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGCHLD)
        words = [self._program, *options, *_find_addresses()]
        pid = os.posix_spawn(self._program, words, os.environ, setsigdef=ignored_here)
        try:  # noqa: SIM105 - contextlib is slow to load
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            pass  # passt has ended already
        theirs.close()
        return ours

    def kill(self) -> None:
        """End passt: the version of 2023 was seen to spin for ever after its socket had closed."""
        if self._pidfd is None:
            return
        try:  # noqa: SIM105
            _signal.pidfd_send_signal(self._pidfd, _signal.SIGKILL)
        except OSError:
            pass  # passt has ended by itself
        os.close(self._pidfd)
        self._pidfd = None


def _find_addresses() -> tuple[str, ...]:
    """A host with IPv6 alone gives its own, and its resolvers: passt takes no IPv4 address there."""
    if has_default_route("/proc/net/route"):
        return _ADDRESSES
    return () if has_default_route("/proc/net/ipv6_route") else _ADDRESSES + _OFFLINE


def has_default_route(path: str) -> bool:
    """In the kernel's table of IPv4's routes, or of IPv6's."""
    try:
        with open(path, "rb") as table:  # noqa: PTH123
            lines = [line.split() for line in table]
    except OSError:
        return False
    if path.endswith("ipv6_route"):
        # destination, its prefix, source, its prefix, next hop, ..., flags, interface
        return any(line[1] == b"00" and line[-1] != b"lo" and not int(line[0], 16) for line in lines)
    return any(line[1] == line[7] == b"00000000" and int(line[3], 16) & _RTF_UP for line in lines[1:])


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
    outside = Passt(passt)
    try:
        Uplink(guest, outside.start).run()
    finally:
        outside.kill()


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
