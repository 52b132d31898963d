"""The spec of a machine as frozen data, valid by construction (see `parse_spec`)."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from bough.spec import disk as disk_text
from bough.spec import mounts, nic, values
from bough.spec.disk import Bus
from bough.spec.settings import SETTINGS, Boot, entry_of
from bough.units import GIB, parse_duration

_SIZE_SCHEMA = WithJsonSchema(
    {
        "anyOf": [{"type": "string"}, {"type": "integer"}],
        "description": "bytes, or a text like '512MiB', '10GiB'",
    }
)
_TEXT = WithJsonSchema({"type": "string"})

Label = Annotated[str, BeforeValidator(values.label), _TEXT]
Hostname = Annotated[str, BeforeValidator(values.hostname), _TEXT]
Image = Annotated[str, BeforeValidator(values.image), _TEXT]
Architecture = Annotated[
    str, BeforeValidator(values.architecture), WithJsonSchema({"enum": list(values.ARCHITECTURES)})
]
Vcpus = Annotated[
    int,
    BeforeValidator(values.vcpus),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": values.MOST_VCPUS}),
]
Memory = Annotated[int, BeforeValidator(values.memory), _SIZE_SCHEMA]
DiskSize = Annotated[int, BeforeValidator(values.disk_size), _SIZE_SCHEMA]
CpuModel = Annotated[str, BeforeValidator(values.cpu_model), _TEXT]
MachineType = Annotated[str, BeforeValidator(values.machine_type), _TEXT]
HostPath = Annotated[str, BeforeValidator(values.host_path), _TEXT]
GuestPath = Annotated[str, BeforeValidator(values.guest_path), _TEXT]
MountSource = Annotated[str, BeforeValidator(mounts.mount_source), _TEXT]
MountTarget = Annotated[str, BeforeValidator(mounts.mount_target), _TEXT]
MountCache = Annotated[
    int,
    BeforeValidator(mounts.mount_cache),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}], "description": "like '5s'"}),
]
CommandLine = Annotated[str, BeforeValidator(values.command_line), _TEXT]
Clock = Annotated[str, BeforeValidator(values.clock), _TEXT]
UserName = Annotated[str, BeforeValidator(values.user_name), _TEXT]
GroupName = Annotated[str, BeforeValidator(values.group_name), _TEXT]
Owner = Annotated[str, BeforeValidator(values.owner), _TEXT]
SshKey = Annotated[str, BeforeValidator(values.ssh_key), _TEXT]
Serial = Annotated[str, BeforeValidator(values.disk_serial), _TEXT]
Mode = Annotated[str, BeforeValidator(values.file_mode), _TEXT]
FileText = Annotated[str, BeforeValidator(values.file_text), _TEXT]
UserData = Annotated[str, BeforeValidator(values.user_data), _TEXT]
FileBase64 = Annotated[str, BeforeValidator(values.file_base64), _TEXT]
VariableName = Annotated[str, BeforeValidator(values.variable_name), _TEXT]
VariableValue = Annotated[str, BeforeValidator(values.variable_value), _TEXT]
ShellCommand = Annotated[str, BeforeValidator(values.shell_command), _TEXT]
Words = Annotated[
    tuple[str, ...],
    BeforeValidator(values.words),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
ProgramUser = Annotated[
    str,
    BeforeValidator(values.program_user),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
]
WorkingDirectory = Annotated[str, BeforeValidator(values.working_directory), _TEXT]
Address = Annotated[str, BeforeValidator(values.port_host), _TEXT]
HostPort = Annotated[
    int,
    BeforeValidator(values.host_port),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 65535}),
]
GuestPort = Annotated[
    int,
    BeforeValidator(values.guest_port),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 65535}),
]


_RATE_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "integer"}], "description": "bytes per second, or like '20MiB/s'"}
)
Uplink = Annotated[
    bool | Literal["isolated"],
    BeforeValidator(values.uplink),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"const": "isolated"}]}),
]
Network = Annotated[str, BeforeValidator(nic.network), _TEXT]
MacAddress = Annotated[str, BeforeValidator(nic.mac_address), _TEXT]
Ipv4Address = Annotated[str, BeforeValidator(nic.ipv4), _TEXT]
ProcessMemory = Annotated[int, BeforeValidator(values.process_memory), _SIZE_SCHEMA]
CpuPercent = Annotated[
    int,
    BeforeValidator(values.cpu_percent),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}], "description": "100: one processor"}),
]
ByteRate = Annotated[int, BeforeValidator(values.byte_rate), _RATE_SCHEMA]
OperationRate = Annotated[
    int, BeforeValidator(values.operation_rate), WithJsonSchema({"type": "integer", "minimum": 1})
]


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DiskSpec(Table):
    """An extra disk, empty at first: a table, or a text like "10GiB" or "10GiB,bus=sata"."""

    size: DiskSize
    bus: Bus | None = Field(default=None, description="bus of the disk; default: `disk_bus`")
    serial: Serial | None = Field(
        default=None, description="serial number in /dev/disk/by-id; default: diskN"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_size(cls, value: Any) -> Any:
        return disk_text.disk(value)


class UserSpec(Table):
    """A user, created in the guest at first boot; a name alone is enough."""

    name: UserName
    ssh_keys: Annotated[tuple[SshKey, ...], Field(strict=False, max_length=64)] = ()
    sudo: bool = Field(default=False, description="may become root without a password")
    shell: GuestPath = "/bin/bash"
    groups: Annotated[tuple[GroupName, ...], Field(strict=False, max_length=64)] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class FileSpec(Table):
    """A file, written in the guest at first boot, before the commands run.

    Clients also accept `source`, a path on the client's side, and send the content of the file instead.
    """

    path: GuestPath
    content: FileText | None = None
    content_base64: FileBase64 | None = Field(default=None, description="for bytes that are not text")
    mode: Mode = "0644"
    owner: Owner = "root:root"

    @property
    def data(self) -> bytes:
        if self.content_base64 is not None:
            return base64.b64decode(self.content_base64)
        return (self.content or "").encode()

    @property
    def mode_bits(self) -> int:
        return int(self.mode, 8)


class PortSpec(Table):
    """A TCP port of the guest on a port of the host: a table, or a text like "8080:80"."""

    host: Address = "127.0.0.1"
    host_port: HostPort = Field(default=0, description="0: any free port")
    guest_port: GuestPort

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return values.port(value)


class MountSpec(Table):
    """A directory of the host in the guest: a table, or a text like "/home/me/src:/srv/src:rw"."""

    source: MountSource = Field(description="a directory of the service's host")
    target: MountTarget = Field(description="mount point in the guest")
    writable: bool = False
    owner: Owner | None = Field(
        default=None,
        description="owner in the guest of the sharing user's files; default: its first user, or root",
    )
    cache: MountCache = Field(default=1, description="how long the guest may cache attributes of a file")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return mounts.mount(value)


class NicSpec(Table):
    """A network card: a table, or a text like "back" or "back,model=e1000e"."""

    network: Network = Field(
        default=nic.UPLINK, description="'uplink', 'isolated' (leads nowhere), or the name of a network"
    )
    mac: MacAddress | None = Field(default=None, description="MAC address; default: a random address")
    ipv4: Ipv4Address | None = Field(
        default=None,
        description="address on a network between machines; default: derives from the machine's name",
    )
    model: nic.Model = Field(
        default="virtio", description="of the card; default: as the image needs, usually 'virtio'"
    )
    aliases: Annotated[tuple[Hostname, ...], Field(strict=False, max_length=nic.MOST_ALIASES)] = Field(
        default=(), description="further names of the machine on the network; machines may share one"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return nic.card(value)

    def model_for(self, preferred: str) -> str:
        """Return the model, or `preferred` if the user named no model."""
        return self.model if "model" in self.model_fields_set else preferred


class LimitsSpec(Table):
    """Bounds on a machine's use of the host's resources."""

    memory: ProcessMemory | None = Field(
        default=None,
        description="memory of the QEMU process; default: the guest's memory plus an eighth plus 2 GiB",
    )
    cpu: CpuPercent | None = Field(default=None, description="percent of one processor")
    disk: ByteRate | None = Field(default=None, description="bytes read and written by all disks, per second")
    iops: OperationRate | None = Field(
        default=None, description="operations of all disks together, per second"
    )
    console: ByteRate = Field(default=1 << 20, description="bytes printed on the console, per second")


def _setting(name: str, default: Any = ..., **more: Any) -> Any:
    """Return a field with the description of the table of settings."""
    return Field(default, description=SETTINGS[name].text, **more)


class MachineSpec(Table):
    """All settings of a machine. Sizes are in bytes. See settings.py."""

    image: Image = _setting("image")
    arch: Architecture | None = _setting("arch", None)
    vcpus: Vcpus = _setting("vcpus", 2)
    memory: Memory = _setting("memory", 1 * GIB)
    disk: DiskSize | None = _setting("disk", None)
    cpu: CpuModel = _setting("cpu", "auto")
    machine_type: MachineType = _setting("machine_type", "auto")
    firmware: Literal["auto", "bios", "uefi"] = _setting("firmware", "auto")
    kernel: HostPath | None = _setting("kernel", None)
    initrd: HostPath | None = _setting("initrd", None)
    cmdline: CommandLine | None = _setting("cmdline", None)
    disks: Annotated[tuple[DiskSpec, ...], Field(strict=False, max_length=16)] = _setting("disks", ())
    disk_bus: Literal["auto"] | Bus = _setting("disk_bus", "auto")
    agent_port: Literal["auto", "virtio", "serial"] = _setting("agent_port", "auto")
    hyperv: bool = _setting("hyperv", False)
    tpm: bool = _setting("tpm", False)
    secure_boot: bool = _setting("secure_boot", False)
    cdrom: Image | None = _setting("cdrom", None)
    floppy: Image | None = _setting("floppy", None)
    boot: Literal["auto", "disk", "cdrom", "floppy"] = _setting("boot", "auto")
    display: bool | None = _setting("display", None)
    uplink: Uplink = _setting("uplink", True)
    nics: Annotated[tuple[NicSpec, ...], Field(strict=False, max_length=nic.MOST_NICS)] = _setting("nics", ())
    limits: LimitsSpec = Field(default_factory=LimitsSpec, description=SETTINGS["limits"].text)
    require_jail: bool = _setting("require_jail", False)
    clock: Clock = _setting("clock", "utc")
    hostname: Hostname | None = _setting("hostname", None)
    users: Annotated[tuple[UserSpec, ...], Field(strict=False, max_length=64)] = _setting("users", ())
    ssh_keys: Annotated[tuple[SshKey, ...], Field(strict=False, max_length=64)] = _setting("ssh_keys", ())
    environment: Annotated[dict[VariableName, VariableValue], Field(max_length=256)] = Field(
        default_factory=dict, description=SETTINGS["environment"].text
    )
    files: Annotated[tuple[FileSpec, ...], Field(strict=False, max_length=256)] = _setting("files", ())
    commands: Annotated[tuple[ShellCommand, ...], Field(strict=False, max_length=256)] = _setting(
        "commands", ()
    )
    user_data: UserData | None = _setting("user_data", None)
    entrypoint: Words | None = _setting("entrypoint", None)
    command: Words | None = _setting("command", None)
    user: ProgramUser | None = _setting("user", None)
    workdir: WorkingDirectory | None = _setting("workdir", None)
    init: Literal["auto", "image", "bough"] = _setting("init", "auto")
    publish_exposed: bool = _setting("publish_exposed", False)
    accelerator: Literal["auto", "kvm", "tcg"] = _setting("accelerator", "auto")
    ports: Annotated[tuple[PortSpec, ...], Field(strict=False, max_length=64)] = _setting("ports", ())
    mounts: Annotated[tuple[MountSpec, ...], Field(strict=False, max_length=32)] = _setting("mounts", ())
    restart: Literal["no", "on-failure"] = _setting("restart", "no")
    autostart: bool = _setting("autostart", False)

    @model_validator(mode="before")
    @classmethod
    def _uplink_of_nics(cls, value: Any) -> Any:
        return nic.with_uplink(value)

    @property
    def network_cards(self) -> tuple[NicSpec, ...]:
        """Return the cards of the machine: `nics`, or the single card of `uplink`."""
        if self.nics or self.uplink is False:
            return self.nics
        return (NicSpec(network=nic.UPLINK if self.uplink is True else nic.ISOLATED),)

    @property
    def networks(self) -> tuple[str, ...]:
        """Return the names of the networks between machines that the cards are on."""
        named = (card.network for card in self.network_cards)
        return tuple(name for name in named if name not in (nic.UPLINK, nic.ISOLATED))

    @property
    def clock_offset_s(self) -> float | None:
        """Return the offset from the host's UTC in seconds; None for 'utc' and 'local'."""
        if self.clock in ("utc", "local"):
            return None
        seconds = parse_duration(self.clock[1:])
        return -seconds if self.clock.startswith("-") else seconds

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict; `parse_spec` makes the same spec from the dict."""
        return self.model_dump(mode="json")


def used_settings(spec: MachineSpec) -> frozenset[str]:
    """Return the names of the settings in use: neither at the default, nor None, nor False."""

    def is_used(name: str) -> bool:
        default = MachineSpec.model_fields[name].get_default(call_default_factory=True)
        return getattr(spec, name) not in (default, None, False)

    return frozenset(filter(is_used, MachineSpec.model_fields))


def settings_by_boot(*kinds: Boot) -> frozenset[str]:
    """Return the names of the settings whose entry in the table is one of `kinds`."""
    return frozenset(name for name in MachineSpec.model_fields if entry_of(name).boot in kinds)


def needs_set_up(spec: MachineSpec) -> bool:
    """Return whether a booted guest still has to be told settings: users, files, commands..."""
    return any(getattr(spec, name) for name in settings_by_boot("setup"))
