"""The record of a machine: machine.json, rewritten at every change of state."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bough.machines.media import Media
from bough.machines.state import State
from bough.paths import MachinePaths
from bough.spec import MachineSpec
from bough.spec.container import Container
from bough.spec.values import MOST_HOSTNAME
from bough.storage import write_atomically


class _Kept(BaseModel):
    # A record of a newer bough may have more fields; a rewrite keeps them.
    model_config = ConfigDict(extra="allow")


class NicLink(_Kept):
    """The settings of a card on a network between machines, since the machine's last start.

    Attributes:
        ipv4, ipv6: the machine's addresses with their prefix lengths. The IPv4 address is chosen at the first
            start and kept.
        resolver: address that answers DNS.
        domains: names that the resolver alone knows end so.
        gateway: the switch, if the machine reaches the outside through this network. gateway6: also for IPv6,
            if the host has IPv6.
    """

    ipv4: IPv4Interface
    ipv6: IPv6Interface
    mtu: int
    resolver: IPv4Address
    domains: list[str]
    gateway: IPv4Address | None = None
    gateway6: IPv6Address | None = None


class Nic(_Kept):
    """A network card.

    Attributes:
        model: as in the spec ("virtio").
        place: 0: the first card's place on the PCI bus, which QEMU chooses. 1 and more: number of the card's
            own PCI port. A card keeps its place when another card is removed.
        announces: the card has a guest that continues elsewhere announce its place to its neighbours. No
            neighbour on bough's links needs an announcement; only machines of earlier versions have it.
        link: for a card on a network between machines.
    """

    mac: str
    link: NicLink | None = None
    model: str = "virtio"
    place: int = 0
    announces: bool = False


class Hardware(_Kept):
    """The hardware, chosen when the machine is created and constant for its whole life. An upgrade of QEMU
    must not change the guest's computer. Only the CPU model of "auto" changes, at a boot on the other
    accelerator.
    """

    arch: str
    machine_type: str
    cpu_model: str
    firmware: str
    uuid: str
    vmgenid: str
    nics: list[Nic]
    uid: int | None
    #: Number of ports of its virtio-serial device. QEMU's own number, which machines of earlier versions
    #: have, makes 64 queues. Each queue slows down every start and every pause.
    serial_ports: int = 31
    #: Queues of each disk. QEMU's default follows the number of vCPUs: a vCPU added later would change the
    #: device state. None: QEMU's default, for machines of earlier versions.
    disk_queues: int | None = None
    #: What the image needs, for a spec that leaves the choice open.
    disk_bus: str = "virtio"
    nic_model: str = "virtio"
    agent_port: str = "virtio"

    @property
    def announces(self) -> bool:
        return any(nic.announces for nic in self.nics)

    @property
    def mac_addresses(self) -> list[str]:
        return [nic.mac for nic in self.nics]

    @model_validator(mode="before")
    @classmethod
    def _from_one_card(cls, value: Any) -> Any:
        """Read a record of earlier versions, with one card or none."""
        if not isinstance(value, Mapping) or "mac" not in value or "nics" in value:
            return value
        rest = {name: one for name, one in value.items() if name not in ("mac", "announces")}
        card = {"mac": value["mac"], "announces": value.get("announces", True)}
        return {**rest, "nics": [] if value["mac"] is None else [card]}


class Failure(_Kept):
    """Why a machine is `failed`."""

    cause: str
    exit_status: int | None = None
    signal: str | None = None
    qemu_stderr: str = ""
    console: str = ""


class Restarts(_Kept):
    """Restarts after failures by the restart policy: number in a row, time of the next, last cause."""

    count: int = 0
    next: str | None = None
    cause: str | None = None


class PortForward(_Kept):
    """A forwarded port. `free`: bough has chosen the host's port, and may choose another one."""

    host: str = "127.0.0.1"
    host_port: int
    guest_port: int
    free: bool = False


class MachineDisk(_Kept):
    """A disk of a machine: the file with the machine's writes, and the backing files.

    Attributes:
        file: name below the machine's disks/.
        layers: backing files, read-only, relative to BOUGH_HOME, nearest first.
    """

    file: str
    size_bytes: int
    layers: list[str] = Field(default_factory=list)


class FirstBoot(_Kept):
    """Progress of the first boot's setup.

    Attributes:
        done: no more attempts before the next start, which tries failed steps again.
        error: description of the failures for the user, or None.
        failed: the failed steps.
        instance: the agent's id for this setup. A copy of the disk in another machine has another id.
    """

    done: bool = False
    error: str | None = None
    failed: list[str] = Field(default_factory=list)
    instance: str | None = None


class ProgramRun(_Kept):
    """The container program of a machine in its last boot.

    Attributes:
        state: "waits": bough starts the program when the guest is set up. "failed": it could not be started.
        boot: id of the guest's boot in which the program was started.
        code, signal: how the program ended; both None: it runs, or its end was not seen. A program that could
            not be started has the code of a shell: 127: not found, 126: any other reason.
        error: why the program could not be started.
        output: the end of its output, up to 4 KiB: untrusted.
    """

    state: Literal["waits", "runs", "ended", "failed"] = "waits"
    argv: list[str] = Field(default_factory=list)
    boot: str | None = None
    pid: int | None = None
    code: int | None = None
    signal: str | None = None
    error: str | None = None
    output: str = ""
    started: str | None = None
    ended: str | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ("ended", "failed")

    @property
    def has_failed(self) -> bool:
        """Return whether the end is a failure for the restart policy: no start, a signal, or a status."""
        return self.is_over and (self.state == "failed" or self.signal is not None or bool(self.code))

    @property
    def text(self) -> str:
        """Return what became of the program, to follow "its program"."""
        if self.state == "failed":
            return f"could not be started: {self.error}"
        if self.signal is not None:
            return f"was ended by signal {self.signal}"
        return f"ended with exit status {'unknown' if self.code is None else self.code}"


class Suspended(_Kept):
    """The saved memory of a suspended machine, below suspended/. While the record has this field, memory and
    disks match, even if a QEMU is loading the memory or fails.

    Attributes:
        accelerator, qemu_version: of the process from which the memory was saved.
        sha256: over extents, memory and devices.
    """

    since: str
    size_bytes: int
    stored_bytes: int
    sha256: str
    accelerator: str | None = None
    qemu_version: str | None = None


class Membership(NamedTuple):
    """A machine's place in a project: the id of the project, and the machine's role."""

    project: str
    role: str


class ClockFault(_Kept):
    """A clock that is wrong on purpose, since the host's time `since`.

    Attributes:
        jump_s: seconds ahead at that time.
        drift_ppm: parts per million by which the clock is too fast.
    """

    jump_s: float = 0.0
    drift_ppm: float = 0.0
    since: float

    def ahead_s(self, host_time: float) -> float:
        return self.jump_s + (host_time - self.since) * self.drift_ppm / 1e6


class MachineRecord(_Kept):
    version: int = 1
    id: str
    name: str
    spec: MachineSpec
    #: Suffix of the host name after the machine's name: the suffix of the machine's parent.
    domain: str | None = None
    #: Id of the project whose networks the machine sees.
    project: str | None = None
    #: The machine's key in the project's file, and name on the project's networks. A fork of a single machine
    #: of a project has no role.
    role: str | None = None
    image_digest: str
    image_agent: bool
    #: What the container image says about its program; None: the machine's image is none.
    container: Container | None = None
    #: The container program of the last boot. None: bough starts none, because the image has an init, or the
    #: machine was booted for the command of a `run`.
    program: ProgramRun | None = None
    #: Digest of the agent disk (images/agent_disk) at the machine's last boot. A boot attaches the newest
    #: agent disk; saved memory continues with this one. None: the machine has no agent disk.
    agent_disk: str | None = None
    hardware: Hardware
    created: str
    started: str | None = None
    state: State = State.STOPPED
    ephemeral: bool = False
    #: A standby machine (see forks/standby.py), not requested by a user yet.
    standby: bool = False
    accelerator: str | None = None
    #: Note for the user about the choice of the accelerator.
    accelerator_note: str | None = None
    jail: dict[str, Any] | None = None
    ports: list[PortForward] = Field(default_factory=list)
    first_boot: FirstBoot = Field(default_factory=FirstBoot)
    #: Id of the guest's last boot whose end was seen: all services have been started.
    booted_boot: str | None = None
    failure: Failure | None = None
    media: Media = Field(default_factory=Media)
    restarts: Restarts = Field(default_factory=Restarts)
    #: Boot of the host during which a user stopped the machine, or the guest powered off: no autostart in
    #: this boot.
    stopped_in_boot: str | None = None
    disks: list[MachineDisk] = Field(default_factory=list)
    #: During a snapshot: the disks before, needed if QEMU never switches to the new overlays.
    disks_before: list[MachineDisk] | None = None
    #: The latest snapshot of the machine's history: taken of it, restored, or forked from.
    snapshot: str | None = None
    forked_from: str | None = None
    #: A pre-warm or a self-test, which no user gets: its cards on networks lead nowhere.
    throw_away: bool = False
    #: What the guest still needs: a whole identity ("new"), the time ("clock"), nothing ("known").
    identity: Literal["known", "clock", "new"] = "known"
    #: Addresses of the cards in the guest's memory, in the order of the cards.
    macs_before: list[str] = Field(default_factory=list)
    #: The parts of the identity that the guest could not set.
    identity_error: str | None = None
    #: The guest's boot until whose end the identity lasts, because the guest's disk is read-only.
    identity_boot: str | None = None
    suspended: Suspended | None = None
    #: Of the running QEMU process.
    clock_fault: ClockFault | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, value: Any) -> Any:
        """Read a record of an earlier version, with other names of fields."""
        if not isinstance(value, Mapping):
            return value
        current = dict(value)
        if "mac_before" in current:
            before = current.pop("mac_before")
            current["macs_before"] = [] if before is None else [before]
        if "spare" in current:
            current["standby"] = current.pop("spare")
        return current

    @property
    def disk_bus(self) -> str:
        """Return the bus of the disks that name none."""
        return disk_bus_of(self.spec, self.hardware)

    @property
    def agent_port(self) -> str:
        """Return the kind of the agent's port: "virtio" or "serial"."""
        return agent_port_of(self.spec, self.hardware)

    @property
    def hostname(self) -> str:
        return self.spec.hostname or qualified(self.network_name, self.domain)

    @property
    def network_name(self) -> str:
        """Return the machine's name on the networks."""
        return self.role or self.name

    def write(self, paths: MachinePaths) -> None:
        # An ephemeral machine ends at a power loss, so the record needs no sync. A sync waits for the disk.
        content = self.model_dump_json(indent=1).encode() + b"\n"
        write_atomically(paths.record, content, durable=not self.ephemeral)

    @classmethod
    def read(cls, paths: MachinePaths) -> MachineRecord:
        """Read the record. Raises OSError, ValueError: the record is missing, damaged, or
        another machine's.
        """
        record = cls.model_validate_json(paths.record.read_bytes())
        if record.id != paths.root.name:
            raise ValueError(f"it belongs to machine {record.id[:80]!r}")
        return record


def disk_bus_of(spec: MachineSpec, hardware: Hardware) -> str:
    """Return the bus of the disks that name none."""
    return hardware.disk_bus if spec.disk_bus == "auto" else spec.disk_bus


def agent_port_of(spec: MachineSpec, hardware: Hardware) -> str:
    return hardware.agent_port if spec.agent_port == "auto" else spec.agent_port


def qualified(name: str, domain: str | None) -> str:
    """Return the host name of a machine in that domain; only the name if both together are too long."""
    whole = f"{name}.{domain}" if domain else name
    return whole if len(whole) <= MOST_HOSTNAME else name


def new_machine_id() -> str:
    return secrets.token_hex(6)


def new_uuid() -> str:
    return str(uuid.uuid4())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
