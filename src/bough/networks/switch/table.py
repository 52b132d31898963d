"""MAC address -> port."""

from __future__ import annotations

from typing import Generic, TypeVar

P = TypeVar("P")


class Table(Generic[P]):
    """MAC addresses and their ports.

    An address set by the service stays at its port. Other addresses are learned from frames, up to a bound
    for each port, so that no machine fills the table or takes another machine's place.
    """

    def __init__(self) -> None:
        self._ports: dict[bytes, P] = {}
        self._set: set[bytes] = set()
        self._learned: dict[P, int] = {}
        #: Return the port of an address, or None.
        self.find = self._ports.get

    def set(self, mac: bytes, port: P) -> None:
        """Set the port of an address for good.

        Raises:
            ValueError: another port has the address.
        """
        if mac in self._set and self._ports[mac] is not port:
            raise ValueError(f"another port has the MAC address {mac.hex(':')}")
        if mac not in self._set and mac in self._ports:
            self._learned[self._ports[mac]] -= 1
        self._set.add(mac)
        self._ports[mac] = port

    def learn(self, mac: bytes, port: P, most: int) -> bool:
        """Return whether the address is at the port, after learning the address if the port may.

        Args:
            most: the number of addresses that the port may learn.
        """
        known = self._ports.get(mac)
        if known is port:
            return True
        if known is not None or mac[0] & 1 or self._learned.get(port, 0) >= most:
            return False
        self._learned[port] = self._learned.get(port, 0) + 1
        self._ports[mac] = port
        return True

    def forget(self, port: P) -> None:
        """Remove all addresses of a port."""
        for mac in [mac for mac, found in self._ports.items() if found is port]:
            del self._ports[mac]
            self._set.discard(mac)
        self._learned.pop(port, None)
