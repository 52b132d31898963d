"""What is kept of a machine: machine.json, written whole at every change of state."""

from __future__ import annotations

import secrets
import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bough.machines.media import Media
from bough.paths import MachinePaths
from bough.spec import MachineSpec
from bough.spec.fields import MOST_HOSTNAME
from bough.storage import write_atomically


class State(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPING = "stopping"
    FAILED = "failed"


#: States in which a QEMU process belongs to the machine.
LIVE = frozenset({State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING})


class _Kept(BaseModel):
    # A record of a newer bough may hold more than this one knows; it is not lost by a rewrite.
    model_config = ConfigDict(extra="allow")


class Hardware(_Kept):
    """Chosen once, when the machine is created, and the same for its whole life: a guest must not
    find itself on another computer because QEMU was upgraded."""

    arch: str
    machine_type: str
    cpu_model: str
    firmware: str
    uuid: str
    vmgenid: str
    mac: str | None
    uid: int | None
    #: Its network card has the guest tell its neighbours where it is when it goes on elsewhere. No neighbour
    #: of ours has to be told; machines of earlier versions have it.
    announces: bool = True
    #: How many ports its virtio-serial device has room for. QEMU's own number, which machines of earlier
    #: versions have, makes 64 queues, each of which costs every start and every pause.
    serial_ports: int = 31
    #: Queues of each disk. QEMU's default follows the number of vCPUs: a vCPU added later would change the
    #: device state. None: QEMU's default, for machines of earlier versions.
    disk_queues: int | None = None


class Failure(_Kept):
    """Why a machine is `failed`."""

    cause: str
    exit_status: int | None = None
    signal: str | None = None
    qemu_stderr: str = ""
    console: str = ""


class Restarts(_Kept):
    """Starts after failures, by the machine's policy: how many in a row, when the next is, and why."""

    count: int = 0
    next: str | None = None
    cause: str | None = None


class PortForward(_Kept):
    host: str = "127.0.0.1"
    host_port: int
    guest_port: int


class MachineDisk(_Kept):
    """A disk of a machine: the file that it writes, and what that stands on.

    Attributes:
        file: name below the machine's disks/.
        layers: read-only files below it, relative to BOUGH_HOME, nearest first.
    """

    file: str
    size_bytes: int
    layers: list[str] = Field(default_factory=list)


class FirstBoot(_Kept):
    """How far the first boot's set-up came.

    Attributes:
        done: nothing is tried before the next start, which tries again what failed.
        error: what failed, for the user; None: nothing.
        failed: the steps that failed.
        instance: what the agent knows this set-up by. A copy of the disk in another machine has another one.
    """

    done: bool = False
    error: str | None = None
    failed: list[str] = Field(default_factory=list)
    instance: str | None = None


class Suspended(_Kept):
    """The memory of a machine that was suspended, below its suspended/. As long as the record has this, the
    memory and the disks belong together: whatever becomes of a QEMU that is taking it up.

    Attributes:
        accelerator, machine_type, qemu_version: of the process that it was taken of.
        sha256: over extents, memory and devices.
    """

    since: str
    size_bytes: int
    stored_bytes: int
    sha256: str
    accelerator: str | None = None
    qemu_version: str | None = None


class MachineRecord(_Kept):
    version: int = 1
    id: str
    name: str
    spec: MachineSpec
    #: What follows its name in its host name: that of the machine that it was forked from.
    domain: str | None = None
    image_digest: str
    image_agent: bool
    hardware: Hardware
    created: str
    started: str | None = None
    state: State = State.STOPPED
    ephemeral: bool = False
    #: It stands by for a run (see snapshots/spares.py), and is nobody's.
    spare: bool = False
    accelerator: str | None = None
    #: What the user should know of that choice.
    accelerator_note: str | None = None
    process: dict[str, Any] | None = None
    uplink: dict[str, Any] | None = None
    jail: dict[str, Any] | None = None
    ports: list[PortForward] = Field(default_factory=list)
    first_boot: FirstBoot = Field(default_factory=FirstBoot)
    #: Id of the guest's boot whose end was seen: all that it starts is started.
    booted_boot: str | None = None
    failure: Failure | None = None
    media: Media = Field(default_factory=Media)
    restarts: Restarts = Field(default_factory=Restarts)
    #: Boot of the host in which somebody stopped it, or it powered itself off: no autostart in that one.
    stopped_in_boot: str | None = None
    disks: list[MachineDisk] = Field(default_factory=list)
    #: While a snapshot is taken: the disks of before, in case that QEMU never came to the switch.
    disks_before: list[MachineDisk] | None = None
    #: The last snapshot on its way: taken of it, restored to, or forked from.
    snapshot: str | None = None
    forked_from: str | None = None
    #: What the guest is still to be told: all that it is ("new"), or what time it is ("clock").
    identity: Literal["known", "clock", "new"] = "known"
    mac_before: str | None = None
    #: What the guest could not take of its identity.
    identity_error: str | None = None
    #: The boot of the guest in which its identity was set until its next boot only: its disk is read-only.
    identity_boot: str | None = None
    suspended: Suspended | None = None

    @property
    def hostname(self) -> str:
        return self.spec.hostname or qualified(self.name, self.domain)

    def write(self, paths: MachinePaths) -> None:
        # After a power cut nobody holds an ephemeral machine any more; each sync waits for the disk.
        content = self.model_dump_json(indent=1).encode() + b"\n"
        write_atomically(paths.record, content, durable=not self.ephemeral)

    @classmethod
    def read(cls, paths: MachinePaths) -> MachineRecord:
        """Raises OSError, ValueError: it is not there, is damaged, or is another machine's."""
        record = cls.model_validate_json(paths.record.read_bytes())
        if record.id != paths.root.name:
            raise ValueError(f"it is that of machine {record.id[:80]!r}")
        return record


def qualified(name: str, domain: str | None) -> str:
    """The host name of a machine in that domain; the name alone where both together are too long."""
    whole = f"{name}.{domain}" if domain else name
    return whole if len(whole) <= MOST_HOSTNAME else name


def new_machine_id() -> str:
    return secrets.token_hex(6)


def new_uuid() -> str:
    return str(uuid.uuid4())


def new_mac() -> str:
    """A random unicast address of QEMU's own prefix."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
