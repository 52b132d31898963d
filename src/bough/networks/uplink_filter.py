"""Filter of a machine's outgoing frames: a program between QEMU and passt.

    QEMU ── a stream of frames, each after its length (4 bytes) ── this ── the same ── passt

passt opens a socket of the host to the destination in a frame. A well-behaved guest sends no frame to
127.0.0.1, but a hostile guest does. The passt of 2023 then connects to the host's loopback, even with
--no-map-gw. So only ARP, IPv4 and IPv6 pass the filter, without packets to loopback or unspecified addresses.
Incoming frames all pass. The filter answers DNS queries itself (uplink_dns.py).

The guest's address is the same on every host and in every network (see CARD). So the guest keeps its
settings when the host joins another network, or was offline when the machine started. If passt ends, the
filter restarts passt. The filter ends when the guest's socket is closed.

A machine without a card on the uplink may reach the outside through a network. Then the switch of the network
is in QEMU's place, and passt gets the machine's address on the network and the switch's address as gateway.

The service runs this program once, and requests a process for each machine. The process is a fork of this
program, which takes 1 ms; a new interpreter takes 15 ms. passt starts when the guest sends its first frame.

The program is run by path, without bough's package or site-packages: standard library only.
"""

from __future__ import annotations

# Not `socket` or `signal`: importing one takes as long as starting the interpreter.
import _signal  # type: ignore[import-not-found]
import _socket
import os
import select
import sys
import time

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    from frame_stream import Frames  # type: ignore[import-not-found]
    from uplink_dns import RESOLVER, Forwarder  # type: ignore[import-not-found]
else:
    from bough.networks.frame_stream import Frames
    from bough.networks.uplink_dns import RESOLVER, Forwarder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ARP = b"\x08\x06"
_IPV4 = b"\x08\x00"
_IPV6 = b"\x86\xdd"

_CHUNK_BYTES = 1 << 18
#: Limit of queued data for one direction while the other side does not read.
_MAX_QUEUED_BYTES = 1 << 20

_MAX_REQUEST_BYTES = 1 << 14
_FORWARD_NOTHING = ("--no-map-gw", "-t", "none", "-u", "none")
#: Address of the guest, prefix length, gateway, resolver, and MAC address of the gateway, as in QEMU's user
#: network, which replaces passt if passt is missing. IPv6 uses the host's.
CARD = ("10.0.2.15", "24", "10.0.2.2", RESOLVER, "52:55:0a:00:02:02")
_OPTIONS = ("-a", "-n", "-g", "-D", "-M")
#: passt needs an interface as a model even if the host has no route.
_OFFLINE = ("-i", "lo")
#: Flag of a route in use (linux/route.h).
_RTF_UP = 1
#: Pause between starts, for a passt that ends at once.
_BETWEEN_STARTS_S = 1.0


def is_allowed(frame: memoryview) -> bool:
    """Return whether a guest may send the frame. A frame without a complete destination is not allowed."""
    kind = bytes(frame[12:14])
    if kind == _IPV4:
        # 0.0.0.0/8 and 127.0.0.0/8 mean this host.
        return len(frame) >= 34 and frame[30] not in (0, 127)
    if kind == _IPV6:
        # ::/96 contains :: and ::1; ::ffff:0:0/96 contains mapped IPv4 addresses.
        destination = bytes(frame[38:54])
        hidden = destination[:10] == bytes(10) and destination[10:12] in (b"\0\0", b"\xff\xff")
        return len(destination) == 16 and not hidden
    return kind == _ARP


class Sieve(Frames):  # type: ignore[misc]
    """Splitter for allowed frames only, without the DNS queries taken by `forwarder`."""

    def __init__(self, forwarder: Forwarder | None = None) -> None:
        super().__init__()
        self._forwarder = forwarder

    def feed(self, data: bytes) -> bytes:
        """Add `data`. Return the complete frames that are kept."""
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
    """The guest's socket was closed."""


class Uplink:
    """The uplink of one machine.

    Args:
        start: starts passt, and returns our end of its socket.
        resolver: the address at which the filter answers DNS.
    """

    def __init__(
        self, guest: _socket.socket, start: Callable[[], _socket.socket], resolver: str = RESOLVER
    ) -> None:
        self._guest = guest
        self._start = start
        self._forwarder = Forwarder(resolver)
        self._sieve = Sieve(self._forwarder)
        self._for_guest = bytearray()
        guest.setblocking(False)

    def run(self) -> None:
        """Carry frames until the guest's socket is closed.

        Raises:
            ValueError, OSError: the guest's side is broken.
        """
        try:
            while True:
                # passt starts with the guest's first frame. An unused fork sends no frame.
                first = self._carry(None, b"")
                self._carry(self._start(), first)
                time.sleep(_BETWEEN_STARTS_S)
        except Ended:
            pass
        finally:
            self._forwarder.close()

    def _carry(self, outside: _socket.socket | None, first: bytes) -> bytes:
        """Carry frames until passt ends. Without passt, wait for the guest's first frames and return them.

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
        """Carry what is ready. Return whether passt is still running."""
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
        # Pass on complete frames only: after a partial frame the guest could not read the following ones.
        self._for_guest += frames.feed(data)
        return bool(data)


def _send(end: _socket.socket, queued: bytearray) -> None:
    """Send as much as `end` accepts now, and remove it from `queued`.

    Raises:
        OSError: the other end is closed.
    """
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
    """The passt of one machine, started again after each end.

    Args:
        addresses: see CARD.
    """

    def __init__(self, program: str, addresses: tuple[str, ...]) -> None:
        self._program = program
        self._addresses = [word for pair in zip(_OPTIONS, addresses) for word in pair]  # noqa: B905 - as given
        self._pidfd: int | None = None

    def start(self) -> _socket.socket:
        """Start passt and return the filter's side of the socket. passt ends when the filter closes this
        side.
        """
        self.kill()
        ours, theirs = _socket.socketpair()
        os.set_inheritable(theirs.fileno(), True)
        options = ["--foreground", "--quiet", "--fd", str(theirs.fileno()), *_FORWARD_NOTHING]
        ignored_here = (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGCHLD)
        words = [self._program, *options, *self._choose_addresses()]
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

    def _choose_addresses(self) -> list[str]:
        """Return the address options of passt.

        On a host with only IPv6 the list is empty, because passt accepts no IPv4 address there. The guest
        then gets the host's addresses and resolvers.
        """
        if has_default_route("/proc/net/route"):
            return self._addresses
        return [] if has_default_route("/proc/net/ipv6_route") else [*self._addresses, *_OFFLINE]


def has_default_route(path: str) -> bool:
    """Return whether the kernel's table of IPv4 or IPv6 routes in `path` has a default route."""
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
    """Write to a kernel file. Errors are ignored: the machine and its control group have ended."""
    try:
        with open(path, "wb", buffering=0) as file:  # noqa: PTH123
            file.write(text.encode())
    except OSError:
        pass


def carry(guest: _socket.socket, uid: str, label: str, passt: str, *more: str) -> None:
    """Run one machine's uplink until the end.

    Args:
        more: the words of CARD, then the machine's control groups. uplink.py describes the others.
    """
    addresses, groups = more[: len(CARD)], more[len(CARD) :]
    for group in groups:
        _write(f"{group}/cgroup.procs", "0")
    _write("/proc/self/comm", label)
    if uid != "-":
        _give_up_root(int(uid))
    outside = Passt(passt, addresses)
    try:
        Uplink(guest, outside.start, addresses[CARD.index(RESOLVER)]).run()
    finally:
        outside.kill()


def serve(control: _socket.socket) -> None:
    """Serve requests until the service closes the control socket.

    A request consists of words, with NUL between them, and the guest's socket. The answer is a process id or
    an error message.
    """
    # Let the kernel reap the machines' processes. This program has no other children.
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
    """Run the uplink in the child process. Never returns."""
    try:
        control.close()
        os.setsid()
        carry(guest, *words)
    except (OSError, ValueError):
        pass  # the machine or passt has ended; QEMU reports the end of the connection itself
    finally:
        os._exit(0)


if __name__ == "__main__":
    serve(_socket.socket(fileno=int(sys.argv[1])))
