"""What the service tells about machines, images and the host, as frozen data.

`raw` of each is the whole answer, with what a newer service may have added.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

T = TypeVar("T", bound="_Told")


@dataclass(frozen=True, kw_only=True)
class _Told:
    raw: dict[str, Any]

    @classmethod
    def from_dict(cls: type[T], data: dict[str, Any]) -> T:
        known = {field.name for field in fields(cls)} - {"raw"}
        return cls(raw=data, **{name: value for name, value in data.items() if name in known})


@dataclass(frozen=True, kw_only=True)
class Port(_Told):
    """A TCP port of the guest on a port of the host."""

    host: str = "127.0.0.1"
    host_port: int
    guest_port: int


@dataclass(frozen=True, kw_only=True)
class Mount(_Told):
    """A directory of the service's host in the guest.

    Attributes:
        owner: whose it is in the guest; None: its first user's, or root's.
        cache: seconds for which the guest may take a file for what it was.
        state: "mounted", "not mounted", or "-" while that is not known; `error` says why not.
    """

    source: str
    target: str
    writable: bool = False
    owner: str | None = None
    cache: int = 1
    state: str = "-"
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Failure(_Told):
    """Why a machine is `failed`: the ends of QEMU's standard error and of the console with it."""

    cause: str
    exit_status: int | None = None
    signal: str | None = None
    qemu_stderr: str = ""
    console: str = ""


@dataclass(frozen=True, kw_only=True)
class MachineInfo(_Told):
    """A machine at one moment.

    Attributes:
        state: stopped, starting, running, paused, suspended, stopping or failed.
        unreachable: why bough cannot control it, although it runs; None when bough can.
        agent: answering, silent or none.
        condition: what is known to be wrong with the guest: {"kind", "text", "since"}, where kind is asleep,
            halted, panicked, busy or hung.
        disk_bytes: what its own disks really take on the host.
        layers: on how many files the disk stands that stands on most: its image, snapshots.
        hardware: what computer it is: arch, machine_type, cpu_model, firmware, ...
        created, started: times in ISO 8601; started is None while it does not run.
        boot_id: changes with each boot of the guest's kernel, as the guest's agent told it last.
        uplink: while it runs with one: state ("connected", "offline", "broken"), detail, resolvers.
    """

    id: str
    name: str
    state: str
    unreachable: str | None = None
    agent: str = "none"
    booted: bool | None = None
    seen: dict[str, Any] | None = None
    condition: dict[str, Any] | None = None
    image: str
    image_digest: str
    created: str
    started: str | None = None
    vcpus: int
    memory_bytes: int
    disk_bytes: int = 0
    layers: int = 0
    ports: tuple[Port, ...] = ()
    mounts: tuple[Mount, ...] = ()
    accelerator: str | None = None
    accelerator_note: str | None = None
    jail: dict[str, Any] | None = None
    failure: Failure | None = None
    restarts: dict[str, Any] | None = None
    first_boot: dict[str, Any] | None = None
    hardware: dict[str, Any]
    spec: dict[str, Any]
    boot_id: str | None = None
    pid: int | None = None
    uplink: dict[str, Any] | None = None
    ephemeral: bool = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MachineInfo:
        ports = tuple(Port.from_dict(port) for port in data.get("ports") or ())
        mounts = tuple(Mount.from_dict(mount) for mount in data.get("mounts") or ())
        failure = Failure.from_dict(data["failure"]) if data.get("failure") else None
        known = {field.name for field in fields(cls)} - {"raw", "ports", "mounts", "failure"}
        rest = {name: value for name, value in data.items() if name in known}
        return cls(raw=data, ports=ports, mounts=mounts, failure=failure, **rest)


@dataclass(frozen=True, kw_only=True)
class ImageInfo(_Told):
    """An image in the store.

    Attributes:
        size_bytes: of the disk, as a machine sees it.
        disk_bytes: what it really takes on the host.
        used_by: names of the machines that stand on it.
    """

    digest: str
    labels: tuple[str, ...] = ()
    os: str = ""
    version: str = ""
    arch: str = ""
    size_bytes: int = 0
    disk_bytes: int = 0
    created: str = ""
    used_by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SnapshotInfo(_Told):
    """A point in a machine's life.

    Attributes:
        machine, machine_name: whose, and what it was called then.
        parent: the snapshot before it on its machine's way.
        consistency: "memory": of a running machine, with its memory; "stopped": of one that was off;
            "frozen": disks of a running one, whose file systems stood still; "crash": ... did not.
        memory: None, or size_bytes, stored_bytes and base of its memory.
        pause_ms: for how long the machine stood still, as QEMU's control protocol shows it.
        disk_bytes: what it takes on the host.
    """

    id: str
    label: str | None = None
    message: str = ""
    created: str
    machine: str
    machine_name: str
    parent: str | None = None
    consistency: str
    memory: dict[str, Any] | None = None
    pause_ms: float | None = None
    disk_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Event(_Told):
    """Something that happened to a machine: `kind` says what ("started"), `time` is ISO 8601."""

    time: str
    kind: str
    machine: str
    name: str
    detail: str = ""
