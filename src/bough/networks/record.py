"""The record of a network: networks/<id>.json."""

from __future__ import annotations

import secrets
from ipaddress import IPv4Network, IPv6Network

from pydantic import BaseModel, ConfigDict

from bough.networks.addresses import NetworkAddresses
from bough.paths import NetworkPaths
from bough.storage import write_atomically

#: As the uplink's: a larger frame of a machine with an uplink would be lost on its way outside.
DEFAULT_MTU = 1500


class NetworkRecord(BaseModel):
    """Attributes:
    project: id of the network's project, or None.
    domain: name that DNS names end with, beside the network's name: the project's name in its file.
    switch_mac: MAC address of the switch's own services.
    mtu: bytes of a frame's payload.
    internal: no frame leaves the network; otherwise the network has an uplink.
    """

    # A record of a newer bough may have more fields; a rewrite keeps them.
    model_config = ConfigDict(extra="allow")

    version: int = 1
    id: str
    name: str
    project: str | None = None
    domain: str | None = None
    subnet: IPv4Network
    prefix6: IPv6Network
    switch_mac: str
    mtu: int = DEFAULT_MTU
    internal: bool = True
    created: str

    @property
    def addresses(self) -> NetworkAddresses:
        return NetworkAddresses(self.subnet, self.prefix6, self.switch_mac)

    def write(self, paths: NetworkPaths) -> None:
        write_atomically(paths.record, self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def read(cls, paths: NetworkPaths) -> NetworkRecord:
        """Read the record. Raises OSError, ValueError: the record is missing, damaged, or
        another network's.
        """
        record = cls.model_validate_json(paths.record.read_bytes())
        if record.id != paths.record.stem:
            raise ValueError(f"it belongs to network {record.id[:80]!r}")
        return record


def new_network_id() -> str:
    return secrets.token_hex(6)
