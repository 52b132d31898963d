"""A project as frozen data, valid by construction (see `parse_project`)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from bough.spec.container import Container
from bough.spec.lock import PackageLock
from bough.spec.model import MachineSpec, PortSpec, Table
from bough.spec.problems import quote, told
from bough.spec.project.healthcheck import HealthCheckSpec, image_check
from bough.spec.recipe import RecipeSpec
from bough.spec.subnet import LEAST_MTU, MOST_MTU, check_subnet, parse_subnet

#: started: the machine has answered. healthy: its health check has passed.
#: completed: the machine has powered off by itself, after its first boot succeeded.
Condition = Literal["started", "healthy", "completed"]


def _subnet(value: Any) -> str:
    from bough.errors import BoughError

    if not isinstance(value, str):
        raise told(f"expected an IPv4 network like '10.1.0.0/24', got {quote(value)}")
    try:
        subnet = parse_subnet(value)
        check_subnet(subnet, ())
    except BoughError as error:
        raise told(error.message, error.hint) from None
    return str(subnet)


def _mtu(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not LEAST_MTU <= value <= MOST_MTU:
        raise told(f"expected {LEAST_MTU} to {MOST_MTU} bytes, got {quote(value)}")
    return value


def _internal(value: Any) -> bool:
    if not isinstance(value, bool):
        raise told(f"expected true or false, got {quote(value)}")
    return value


class ProjectNetwork(Table):
    """A network of a project.

    Attributes:
        subnet: an IPv4 network; None: bough chooses.
        mtu: bytes of a frame's payload; None: 1500.
        internal: no frame leaves the network; otherwise the network has an uplink.
    """

    subnet: Annotated[str, BeforeValidator(_subnet), WithJsonSchema({"type": "string"})] | None = Field(
        default=None, description="an IPv4 network; default: a /24 that derives from the names"
    )
    mtu: (
        Annotated[
            int,
            BeforeValidator(_mtu),
            WithJsonSchema({"type": "integer", "minimum": LEAST_MTU, "maximum": MOST_MTU}),
        ]
        | None
    ) = Field(default=None, description="bytes of a frame's payload; default: 1500")
    internal: Annotated[bool, BeforeValidator(_internal), WithJsonSchema({"type": "boolean"})] = Field(
        default=True,
        description="false: machines without a card on the uplink reach the outside through this network",
    )


class ProjectMachine(Table):
    """A machine of a project.

    Attributes:
        key: name of its table in the file. Machines of one table with `scale` share the key.
        spec: all settings of the machine itself; `nics` names the networks of the project.
        depends_on: role of each machine that starts earlier -> what is waited for.
        healthcheck: None: the container image's, if it has one; otherwise the machine is healthy when it has
            answered.
        unchecked: the container image's health check does not count.
        profiles: the machine runs only if one of these is requested; empty: always.
        build: the recipe of the image; `spec.image` is the label of the built image.
        lock: the package versions for the build; None: the present ones.
    """

    key: str
    spec: MachineSpec
    depends_on: dict[str, Condition] = Field(default_factory=dict)
    healthcheck: HealthCheckSpec | None = None
    unchecked: bool = False
    profiles: tuple[str, ...] = ()
    build: RecipeSpec | None = None
    lock: PackageLock | None = None

    def check_of(self, container: Container | None) -> HealthCheckSpec | None:
        """Return the health check of the machine: the file's, or else the container image's."""
        if self.healthcheck is not None or self.unchecked:
            return self.healthcheck
        return None if container is None else image_check(container)

    def published_on(self, loopback: str) -> MachineSpec:
        """Return the spec, whose ports without an address of their own are published on `loopback`."""
        moved = [_moved(port, loopback) for port in self.spec.ports]
        return self.spec.model_copy(update={"ports": tuple(moved)})


class ProjectSpec(Table):
    """A project: machines by role, and networks by name, in the order of the file."""

    name: str
    machines: dict[str, ProjectMachine]
    networks: dict[str, ProjectNetwork]

    def roles_of(self, key: str) -> list[str]:
        """Return the roles of the table [machines.<key>]: one, or `scale` many."""
        return [role for role, machine in self.machines.items() if machine.key == key]

    @property
    def keys(self) -> list[str]:
        """Return the names of the tables [machines.*], in the order of the file."""
        return list(dict.fromkeys(machine.key for machine in self.machines.values()))


def _moved(port: PortSpec, loopback: str) -> PortSpec:
    if "host" in port.model_fields_set:
        return port
    address: IPv4Address | IPv6Address = ip_address(loopback)
    return port.model_copy(update={"host": str(address)})
