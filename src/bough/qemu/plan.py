"""Plan of the next start, as data: complete, without defaults of QEMU or the host."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from bough.networks.switch_port import SwitchPort
from bough.qemu.jail import Jail

AGENT_PORT = "org.bough.agent"
#: Ports of a new machine: the agent's, and number 0, which QEMU reserves for a console.
SERIAL_PORTS = 2


#: Name of the agent disk (images/agent_disk) among the disks of a plan.
AGENT_DISK_ID = "agentdisk"


@dataclass(frozen=True)
class Layer:
    """A read-only backing file."""

    path: str
    format: Literal["raw", "qcow2"]


@dataclass(frozen=True)
class DiskPlan:
    """A disk; `backing` lists its backing files, nearest first.

    Attributes:
        id: name of the device and of its top block node, for QMP.
        serial: shown to the guest as /dev/disk/by-id/virtio-<serial>; 20 bytes at most.
        bus: see disk_bus.py.
    """

    id: str
    path: str
    serial: str
    format: Literal["raw", "qcow2"] = "qcow2"
    backing: tuple[Layer, ...] = ()
    read_only: bool = False
    bus: str = "virtio"


@dataclass(frozen=True)
class MediumPlan:
    """A CD or a floppy in its drive: a read-only image file of the store. `on_ide`: the CD is at the IDE
    controller, for a guest that knows no other.
    """

    kind: Literal["cdrom", "floppy"]
    path: str
    boot_index: int
    on_ide: bool = False


@dataclass(frozen=True)
class NicPlan:
    """A network card and its backend.

    Attributes:
        backend: `passt` reaches the host's networks but not its loopback. `user` is QEMU's own network, for
            hosts without passt: slower, and the jail shares the host's network. `isolated` is a hub inside
            QEMU with no other port. `switch` is a port of a network's switch.
        id: name of the backend, for QMP; the device is called `<id>-device`.
        network: as in the spec.
        model: as in the spec.
        place, announces: see Nic of the record.
        port: for the backend `switch`.
    """

    mac: str
    backend: Literal["passt", "user", "isolated", "switch"]
    announces: bool = False
    id: str = "uplink"
    network: str = "uplink"
    model: str = "virtio"
    place: int = 0
    port: SwitchPort | None = None


@dataclass(frozen=True)
class Firmware:
    """Firmware files. UEFI has `code` and `variables`; U-Boot has `code` alone. A BIOS machine without `code`
    uses the BIOS that QEMU finds. `secure`: only the firmware, in system management mode, may write the
    variables.
    """

    kind: Literal["bios", "uefi"]
    code: str | None = None
    variables: str | None = None
    secure: bool = False


@dataclass(frozen=True)
class DirectBoot:
    """A kernel of the host instead of the disk's."""

    kernel: str
    initrd: str | None = None
    cmdline: str = ""


@dataclass(frozen=True)
class Limits:
    """Limits on host resources; None: no limit.

    Attributes:
        cpu_percent: 100 is one processor.
        disk_bytes_per_s, disk_operations_per_s: reads and writes of all disks together.
    """

    process_memory_bytes: int | None = None
    cpu_percent: int | None = None
    disk_bytes_per_s: int | None = None
    disk_operations_per_s: int | None = None


@dataclass(frozen=True)
class Plan:
    """Attributes:
    clock: QEMU's -rtc base: "utc", "localtime", or a point in time (see `resolve_clock`).
    from_template: continue from a snapshot: RAM maps a passed memory file, and QEMU waits for a device state.
    prewarm: a pre-warm: frames of the guest are dropped.
    uid: user of the process under a root service (see `machine_uid`).
    media, display: devices of machines whose guests lack the agent.
    boot_index: of the first disk; the others follow.
    serial_ports, disk_queues: see Hardware.
    agent_port: name, in the guest, of the port opened by the agent.
    agent_on_serial: the agent's port is the second serial port.
    hyperv: offer the interfaces of Hyper-V, under KVM.
    tpm_state: path of the TPM's state; None: the machine has no TPM.
    accelerator_note: warning for the user about the accelerator.
    boot_cpu_model: CPU model for a boot, if that of the record belongs to the other accelerator.
    vmgenid: changes only when the machine is cloned or restored.
    image_init: words of the container image's init that is process 1, for the initrd of the boot kit.
    """

    machine_id: str
    name: str
    arch: str
    qemu: str
    accelerator: Literal["kvm", "tcg"]
    machine_type: str
    cpu_model: str
    vcpus: int
    memory_bytes: int
    uuid: str
    vmgenid: str
    disks: tuple[DiskPlan, ...]
    nics: tuple[NicPlan, ...] = ()
    firmware: Firmware = Firmware("bios")
    direct_boot: DirectBoot | None = None
    clock: str = "utc"
    uid: int | None = None
    limits: Limits = Limits()
    media: tuple[MediumPlan, ...] = ()
    display: bool = False
    boot_index: int = 1
    serial_ports: int = SERIAL_PORTS
    disk_queues: int | None = None
    agent_port: str = AGENT_PORT
    agent_on_serial: bool = False
    hyperv: bool = False
    tpm_state: str | None = None
    accelerator_note: str | None = None
    boot_cpu_model: str | None = None
    image_init: tuple[str, ...] = ()
    from_template: bool = False
    prewarm: bool = False
    jail: Jail = field(default_factory=Jail)

    def for_boot(self) -> Plan:
        """Return the plan of a boot. Saved memory continues with the CPU of the record instead."""
        return dataclasses.replace(self, cpu_model=self.boot_cpu_model or self.cpu_model)

    @property
    def has_passt(self) -> bool:
        return any(nic.backend == "passt" for nic in self.nics)

    @property
    def needs_host_network(self) -> bool:
        """Return whether the process must share the host's network, for QEMU's user network."""
        return any(nic.backend == "user" for nic in self.nics)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def resolve_clock(setting: str, offset_s: float | None, *, now: datetime | None = None) -> str:
    """Return QEMU's -rtc base for "utc", "local", or an offset from now in seconds."""
    if offset_s is None:
        return "localtime" if setting == "local" else "utc"
    moment = (now or datetime.now(UTC)) + timedelta(seconds=offset_s)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
