"""A SOCKS5 server (RFC 1928) for one project: programs of this host reach its machines by their names.

Only CONNECT without authentication is served, as for `socks5h://`. Each connection goes through the agent of
the machine, so it needs no network of the machine. Other names and addresses are refused.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from bough.errors import BoughError, GuestRefused, NotFound

if TYPE_CHECKING:
    from bough.client.machine import Machine
    from bough.client.project import Project
    from bough.client.tunnel import Tunnel

VERSION = 5
_NO_AUTHENTICATION, _NO_METHOD = 0, 0xFF
_CONNECT = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_DONE, _FAILED, _NO_HOST, _REFUSED, _NO_COMMAND, _NO_ADDRESS_TYPE = 0, 1, 4, 5, 7, 8
_HANDSHAKE_S = 30.0
_MOST_CONNECTIONS = 256
_CHUNK = 64 * 1024


class Target(NamedTuple):
    """The other end that a client asks for: a name or an address, and a port."""

    host: str
    port: int


class SocksRefusal(Exception):
    """A request that gets a reply with an error. `code` is the reply of RFC 1928."""

    def __init__(self, code: int) -> None:
        super().__init__(f"SOCKS reply {code}")
        self.code = code


class SocksServer:
    """Listens when constructed; `serve` answers until `close`. Raises OSError: the address is in use."""

    def __init__(self, project: Project, host: str, port: int) -> None:
        self._project = project
        self._listener = socket.create_server((host, port))
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def serve(self) -> None:
        """Answer connections, each in a thread, until `close`."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            if not self._free.acquire(blocking=False):
                client.close()
                continue
            threading.Thread(target=self._answer, args=(client,), name="bough socks", daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _answer(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError):
                client.settimeout(_HANDSHAKE_S)
                try:
                    tunnel = self._dial(read_request(client))
                except SocksRefusal as refusal:
                    client.sendall(_reply(refusal.code))
                    return
                with tunnel:
                    client.sendall(_reply(_DONE))
                    client.settimeout(None)
                    _relay(client, tunnel)
        finally:
            self._free.release()

    def _dial(self, target: Target) -> Tunnel:
        try:
            return find_machine(self._project, target.host).tunnel(target.port)
        except NotFound:
            raise SocksRefusal(_NO_HOST) from None
        except GuestRefused:
            raise SocksRefusal(_REFUSED) from None
        except BoughError:
            raise SocksRefusal(_FAILED) from None


def find_machine(project: Project, host: str) -> Machine:
    """Return the machine that has the name, or the address, on a network of the project. Raises NotFound."""
    name = host.lower().rstrip(".")
    machines = project.machines
    if name in machines:
        return machines[name]
    for network in project.info().networks:
        for one in project.network(network["name"]).info().machines:
            if name in (*one["names"], one["ipv4"], one["ipv6"]):
                for machine in machines.values():
                    if machine.name == one["machine"]:
                        return machine
    raise NotFound(f"project '{project.name}' has no machine '{host}'", name=host)


def read_request(client: socket.socket) -> Target:
    """Read a client's greeting and request.

    Raises:
        SocksRefusal: the request cannot be served. ConnectionError: the client speaks no SOCKS5, or left.
    """
    version, count = _read(client, 2)
    methods = _read(client, count)
    if version != VERSION:
        raise ConnectionError("not SOCKS5")
    if _NO_AUTHENTICATION not in methods:
        client.sendall(bytes((VERSION, _NO_METHOD)))
        raise ConnectionError("the client insists on authentication")
    client.sendall(bytes((VERSION, _NO_AUTHENTICATION)))
    version, command, _, kind = _read(client, 4)
    if version != VERSION:
        raise ConnectionError("not SOCKS5")
    host = _read_host(client, kind)
    (port,) = struct.unpack(">H", _read(client, 2))
    if command != _CONNECT:
        raise SocksRefusal(_NO_COMMAND)
    return Target(host, port)


def _read_host(client: socket.socket, kind: int) -> str:
    if kind == _NAME:
        return _read(client, _read(client, 1)[0]).decode("ascii", errors="replace")
    if kind in (_IPV4, _IPV6):
        return str(ip_address(_read(client, 4 if kind == _IPV4 else 16)))
    raise SocksRefusal(_NO_ADDRESS_TYPE)


def _read(client: socket.socket, size: int) -> bytes:
    """Return exactly `size` bytes. Raises ConnectionError at an early end."""
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        if not more:
            raise ConnectionError("the client has left")
        data += more
    return data


def _reply(code: int) -> bytes:
    """Return a reply. The bound address is not known to this side: 0.0.0.0:0."""
    return bytes((VERSION, code, 0, _IPV4, 0, 0, 0, 0, 0, 0))


def _relay(client: socket.socket, tunnel: Tunnel) -> None:
    def inward() -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_CHUNK):
                tunnel.sendall(data)
            tunnel.shutdown_write()

    sending = threading.Thread(target=inward, name="bough socks, inward", daemon=True)
    sending.start()
    while data := tunnel.recv(_CHUNK):
        client.sendall(data)
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)
    sending.join()
