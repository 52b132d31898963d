"""The service's answers about machines, images and the host, as frozen data.

`raw` is the whole answer, with further fields of a newer service.
"""

from __future__ import annotations

from typing import Any, TypeVar

from bough.contract.message import Answer

M = TypeVar("M", bound="MachineInfo")


class Port(Answer):
    """A TCP port of the guest, forwarded from a port of the host."""

    host: str = "127.0.0.1"
    host_port: int
    guest_port: int


class Nic(Answer):
    """A network card of a machine.

    Attributes:
        network: "uplink", "isolated", or the name of a network.
        ipv4, ipv6: addresses on a network, from the machine's first start there on.
    """

    network: str
    mac: str
    model: str = "virtio"
    ipv4: str | None = None
    ipv6: str | None = None


class Mount(Answer):
    """A directory of the service's host in the guest.

    Attributes:
        owner: owner of the files in the guest; None: the guest's first user, or root.
        cache: seconds for which the guest may cache the attributes of a file.
        state: "mounted", "not mounted", or "-" if bough does not know. error: the reason of "not mounted".
    """

    source: str
    target: str
    writable: bool = False
    owner: str | None = None
    cache: int = 1
    state: str = "-"
    error: str | None = None


class Failure(Answer):
    """The reason why a machine is `failed`, with the ends of QEMU's standard error and of the console."""

    cause: str
    exit_status: int | None = None
    signal: str | None = None
    qemu_stderr: str = ""
    console: str = ""


class MachineInfo(Answer):
    """A machine at one moment.

    Attributes:
        state: stopped, starting, running, paused, suspended, stopping or failed.
        unreachable: why bough cannot control the machine, although it runs; None when bough can.
        agent: answering, silent or none.
        condition: a known problem of the guest: {"kind", "text", "since"}, where kind is asleep, halted,
            panicked, busy or hung.
        disk_bytes: space on the host that the machine's own disks use.
        layers: number of backing files of the disk with the longest chain: image, snapshots.
        hardware: the virtual computer: arch, machine_type, cpu_model, firmware, ...
        created, started: times in ISO 8601; started is None while the machine does not run.
        boot_id: changes with each boot of the guest's kernel; the value in the agent's last report.
        nics: the network cards, in order.
        uplink: of a running machine that has one: state ("connected", "offline", "broken"), detail,
            resolvers, and the network through which the machine reaches the outside, if any.
        project: id of the machine's project. role: the machine's key in the project's file.
        identity_error: why a fork has a part of the parent's identity.
        snapshot: id of the snapshot that the disks continue from.
        container: the container image of the machine: reference, digest, ports, volumes, labels; None: none.
        program: the container program of the last boot: state ("waits", "runs", "ended" or "failed"), argv,
            pid, code, signal, error, output (unsafe for a terminal), started, ended.
        vnc: path of the socket for a viewer.
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
    nics: tuple[Nic, ...] = ()
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
    project: str | None = None
    role: str | None = None
    hostname: str = ""
    identity_error: str | None = None
    suspended: dict[str, Any] | None = None
    snapshot: str | None = None
    forked_from: str | None = None
    vnc: str | None = None
    container: dict[str, Any] | None = None
    program: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls: type[M], data: dict[str, Any]) -> M:
        nics = tuple(Nic.from_dict(nic) for nic in data.get("nics") or ())
        ports = tuple(Port.from_dict(port) for port in data.get("ports") or ())
        mounts = tuple(Mount.from_dict(mount) for mount in data.get("mounts") or ())
        failure = Failure.from_dict(data["failure"]) if data.get("failure") else None
        known = set(cls.fields) - {"raw", "nics", "ports", "mounts", "failure"}
        rest = {name: value for name, value in data.items() if name in known}
        return cls(raw=data, nics=nics, ports=ports, mounts=mounts, failure=failure, **rest)


class ChangedMachine(MachineInfo):
    """A machine after a change of state. `already`: the machine had the state before."""

    already: bool = False


class StoppedMachine(MachineInfo):
    """A machine after a stop.

    Attributes:
        how: "guest": the guest powered off; "power": bough cut the power; "already": the machine did not run.
        was: the condition of the guest before.
    """

    how: str = "guest"
    was: dict[str, Any] | None = None


class ImageInfo(Answer):
    """An image in the store.

    Attributes:
        size_bytes: size of the disk, as a machine sees it.
        disk_bytes: space that the image uses on the host.
        used_by: names of the machines that use the image as a backing file.
        container: what a container image says about its program; None: another image.
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
    container: dict[str, Any] | None = None


class Pushed(Answer):
    """An artifact that was written to a registry.

    Attributes:
        reference: the name with tag: "docker://registry.example/web:1".
        digest: "sha256:..." of the manifest.
        stored_bytes: size of all blobs in the registry, with those that were there before.
    """

    reference: str
    digest: str
    chunks: int = 0
    stored_bytes: int = 0


class SnapshotInfo(Answer):
    """A snapshot of a machine.

    Attributes:
        machine, machine_name: the machine, and its name at that time.
        parent: the previous snapshot of the machine.
        consistency:
            "memory": a running machine, with its memory.
            "stopped": a stopped machine.
            "frozen": disks of a running machine, with quiesced file systems.
            "crash": disks of a running machine, without quiesced file systems.
        memory: None, or size_bytes, stored_bytes and base of its memory.
        pause_ms: the pause of the machine, as QEMU's control protocol shows it.
        disk_bytes: space that the snapshot uses on the host.
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


class Forked(Answer):
    """A requested fork: the description, or the reason of the failure."""

    machine: MachineInfo | None = None
    error: dict[str, Any] | None = None


class NetworkInfo(Answer):
    """A network between machines.

    Attributes:
        project: id of the network's project. domain: the project's name in its file, in DNS names.
        subnet, prefix6: the addresses of its machines.
        resolver: address of the switch, which answers DHCP and DNS.
        mtu: bytes of a frame's payload.
        internal: false: the network has an uplink.
        switch: "running" while a machine on the network runs, else "stopped".
        machines: for each card on the network, "machine", "state", "mac", "ipv4", "ipv6" and "names". While
            the machine runs, also the "counters" of its port.
    """

    id: str
    name: str
    project: str | None = None
    domain: str | None = None
    subnet: str
    prefix6: str
    resolver: str
    mtu: int
    internal: bool = True
    created: str
    switch: str = "stopped"
    machines: list[dict[str, Any]] = []  # noqa: RUF012 (nothing changes an answer)


class ProjectInfo(Answer):
    """A project at one moment.

    Attributes:
        name: in this home. domain: the name in the project's file, with which DNS names end.
        file: path of the file on the host of the last `up`.
        loopback: address on which the project's ports are published.
        state: "running"; "partly running"; or, if no machine runs, "stopped", "suspended" or "failed".
        machines: for each machine its description, as of GET /machines/{reference}, with its "role". With
            `look` also "health" ("healthy", "unhealthy", "starting" while `up` waits, or "unknown" if it does
            not run or answer) and "health_error".
        networks: "id", "name" and "subnet" of each.
        snapshot: id of the project's snapshot that the project was forked from.
    """

    id: str
    name: str
    domain: str
    file: str | None = None
    loopback: str
    state: str
    machines: list[dict[str, Any]] = []  # noqa: RUF012 (nothing changes an answer)
    networks: list[dict[str, Any]] = []  # noqa: RUF012
    snapshot: str | None = None
    ephemeral: bool = False
    created: str


class ProjectPlan(Answer):
    """The steps of `up`.

    Attributes:
        project: name of the project. exists: `up` was called before.
        steps: for each network and machine: "noun" ("network" or "machine"), "name", "action" and the names
            of the changed "settings". The action of a machine is "create", "recreate" (its disks are
            deleted), "change", "restart" (a change while it is off), "start", "keep", "leave" (the file does
            not name it any more) or "delete".
    """

    project: str
    exists: bool = False
    steps: list[dict[str, Any]] = []  # noqa: RUF012


class FaultInfo(Answer):
    """A present fault.

    Attributes:
        kind: link, partition, cable, pause, disk, clock, pressure, armed.
        summary: what the fault does, in words.
        seed: of a random fault; the same seed repeats the same choices.
        held: ends when its client disconnects.
        ends: ISO 8601; None: lasts until healed.
    """

    id: str
    kind: str
    summary: str
    network: str | None = None
    machines: tuple[str, ...] = ()
    seed: int | None = None
    held: bool = False
    ends: str | None = None
    created: str


class ProjectSnapshotInfo(Answer):
    """A snapshot of a project.

    Attributes:
        project, project_name: of the project at that moment.
        machines: role -> id of the machine's snapshot.
        memory: the machines that ran are included with their memory.
        pause_ms: the longest pause of a machine, as QEMU's control protocol shows it.
        disk_bytes: space that the snapshot uses on the host.
    """

    id: str
    label: str | None = None
    message: str = ""
    created: str
    project: str
    project_name: str
    machines: dict[str, str] = {}  # noqa: RUF012 (nothing changes an answer)
    networks: list[str] = []  # noqa: RUF012
    memory: bool = True
    pause_ms: float | None = None
    disk_bytes: int = 0


class SystemDifferences(Answer):
    """The differences between two systems. Numbers of bytes are of space on the guest's disk.

    Attributes:
        before, after: the systems: "kind", "name", "id", "arch", "os", "version", "title"; machines also
            have a "state".
        packages: "manager", "added", "removed" (each "name", "version") and "changed" ("name", "before",
            "after").
        configuration: changed configuration files: "path", "change" ("added", "removed", "changed"),
            "details" (mode, owner, kind), and "diff", or "why" there is none, or "withheld" with the reason.
        withheld: paths of files whose diff leaves out secrets, or is left out.
        files: all other files: numbers "added", "removed", "changed"; "of_packages": files of packages that
            differ, which are not counted; "directories" with numbers each; "list" with at most 10,000 files,
            "left_off".
        units: services that start at boot: "name", "before", "after" ("enabled", "masked", "disabled").
        users, groups: "name", "change", "details".
        sysctls: kernel settings in files: "name", "before", "after". live_sysctls: the values in the kernels,
            if both systems run.
        ports: "before" and "after": listeners of a running machine: "protocol", "address", "port"; else None.
        disk_use: "before_bytes", "after_bytes", and the "directories" that differ.
        notes: what could not be compared, in sentences.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    packages: dict[str, Any] = {}  # noqa: RUF012 (nothing changes an answer)
    configuration: list[dict[str, Any]] = []  # noqa: RUF012
    withheld: list[str] = []  # noqa: RUF012
    files: dict[str, Any] = {}  # noqa: RUF012
    units: list[dict[str, Any]] = []  # noqa: RUF012
    users: list[dict[str, Any]] = []  # noqa: RUF012
    groups: list[dict[str, Any]] = []  # noqa: RUF012
    sysctls: list[dict[str, Any]] = []  # noqa: RUF012
    live_sysctls: list[dict[str, Any]] | None = None
    ports: dict[str, Any] = {}  # noqa: RUF012
    disk_use: dict[str, Any] = {}  # noqa: RUF012
    notes: list[str] = []  # noqa: RUF012


class Event(Answer):
    """An event of a machine: `kind` names the event ("started"), `time` is ISO 8601."""

    time: str
    kind: str
    machine: str
    name: str
    detail: str = ""
