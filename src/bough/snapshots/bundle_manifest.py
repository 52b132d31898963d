"""The manifest of a bundle: the machine in it, and the checks before an import makes anything.

bough/bundle.py defines the format of the file. bough checks the manifest like a user's spec.
"""

from __future__ import annotations

import re
import uuid
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bough.errors import BadBundle, BoughError
from bough.images.agent_disk.recipe import MOST_BYTES as MOST_AGENT_DISK
from bough.images.formats import MOST_BYTES
from bough.machines.disks.buses import buses_of
from bough.machines.media import Media
from bough.machines.plan import FIRMWARE_VARIABLES
from bough.machines.record import FirstBoot, Hardware, Nic, ProgramRun, disk_bus_of
from bough.machines.seed import SEED
from bough.qemu.accelerators import Accelerator
from bough.qemu.arch import ARCHITECTURES
from bough.qemu.binary import QemuFacts
from bough.qemu.choice import choose_machine_type
from bough.qemu.disk_bus import UNSAVED, find_crowded
from bough.qemu.tpm import TPM_STATE
from bough.snapshots.memory_fit import accelerator_bar, cpu_bar, render_instead
from bough.spec import MachineSpec
from bough.spec.container import Container
from bough.spec.disk import Bus
from bough.spec.nic import MOST_NICS, Model
from bough.spec.settings import SETTINGS, entry_of
from bough.units import MIB

_MOST_PART = 64 * MIB
_PART = re.compile(r"disk([0-9]|1[0-6])|variables|seed|tpm|agent|memory|devices")
#: Parts that are files beside the disks of a machine.
COMPANIONS = {"variables": FIRMWARE_VARIABLES, "seed": SEED, "tpm": TPM_STATE}
#: No group address.
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+,=-]{0,400}")


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Part(_Told):
    """A part of a bundle.

    Attributes:
        image: digest of an image; the part holds only the difference from this image. None: the whole disk.
    """

    name: str
    size_bytes: int = Field(gt=0, le=MOST_BYTES)
    image: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class BundleManifest(_Told):
    """The description of the machine in a bundle.

    Attributes:
        parts: in the order of their numbers.
        accelerator: of the QEMU that the memory was taken from; None without memory.
        agent_disk: digest of the machine's agent disk, which the memory knows. With memory, the part "agent"
            has the content.
    """

    version: int = 1
    created: str = Field(max_length=64)
    bough: str = Field(max_length=64)
    name: str = Field(max_length=63)
    consistency: Literal["memory", "stopped", "frozen", "crash"]
    spec: MachineSpec
    hardware: Hardware
    image_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    image_agent: bool
    agent_disk: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    container: Container | None = None
    program: ProgramRun | None = None
    domain: str | None = Field(default=None, max_length=63, pattern=r"^[a-z0-9.-]+$")
    first_boot: FirstBoot
    media: Media
    parts: tuple[Part, ...] = Field(max_length=32)
    accelerator: Literal["tcg", "kvm"] | None = None

    def number(self, name: str) -> int | None:
        return next((n for n, part in enumerate(self.parts) if part.name == name), None)

    @property
    def disks(self) -> list[Part]:
        return [part for part in self.parts if part.name.startswith("disk")]


def parse_manifest(data: dict[str, Any]) -> BundleManifest:
    """Parse the manifest of a bundle, and make all checks independent of the host.

    The table of settings says which settings a bundle may bring. Autostart and mounts stay behind. Ports
    listen on the loopback. A setting that names a file of the exporting host is refused.

    Raises:
        BadBundle
    """
    spec = data.get("spec")
    if isinstance(spec, dict):
        data = {**data, "spec": _travelled(spec)}
    try:
        manifest = BundleManifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        raise BadBundle(f"the manifest of the bundle is not valid: {place}: {first['msg'][:200]}") from error
    except RecursionError:
        raise BadBundle("the manifest of the bundle is not valid") from None
    _check_hardware(manifest.hardware)
    _check_parts(manifest)
    return manifest


def _travelled(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the importable settings of a bundle's spec. Raises BadBundle."""
    arrived: dict[str, Any] = {}
    for name, value in spec.items():
        kind = entry_of(name).bundle
        if kind == "refused" and value is not None:
            known = name in SETTINGS
            why = "names a file of the exporting host" if known else "is unknown to this version of bough"
            raise BadBundle(f"the machine in the bundle has the setting {name[:40]!r}, which {why}")
        if kind == "kept":
            arrived[name] = value
        elif kind == "here":
            ports = value if isinstance(value, list) else ()
            arrived[name] = [_on_loopback(one) for one in ports if isinstance(one, dict)]
    return arrived


def _on_loopback(port: dict[str, Any]) -> dict[str, Any]:
    return {**port, "host": "127.0.0.1"}


def _check_hardware(hardware: Hardware) -> None:
    right = (
        hardware.arch in ARCHITECTURES
        and hardware.firmware in ("bios", "uefi")
        and _WORD.fullmatch(hardware.machine_type)
        and _WORD.fullmatch(hardware.cpu_model)
        and _are_cards(hardware.nics)
    )
    try:
        ids = [str(uuid.UUID(text)) == text for text in (hardware.uuid, hardware.vmgenid)]
    except ValueError:
        ids = [False]
    if not right or not all(ids):
        raise BadBundle("the bundle describes hardware that bough does not support")


def _are_cards(nics: list[Nic]) -> bool:
    """Return whether the cards have distinct addresses and places, and known models."""
    places = [nic.place for nic in nics]
    return (
        all(_MAC.fullmatch(nic.mac) and nic.model in get_args(Model) for nic in nics)
        and len({nic.mac for nic in nics}) == len(set(places)) == len(nics)
        and all(0 <= place < MOST_NICS for place in places)
    )


def _has_known_hardware(manifest: BundleManifest, *, has_memory: bool) -> bool:
    """Return whether this bough can make the disk controllers and ports, and load their state."""
    hardware, spec = manifest.hardware, manifest.spec
    bus = disk_bus_of(spec, hardware)
    buses = buses_of(spec, bus, has_root=manifest.media.root != "none")
    on_ide = bus == "ide" and manifest.media.cdrom is not None
    more = [manifest.media.seed, manifest.agent_disk is not None]
    crowded = find_crowded([*buses, *(bus for has in more if has)], has_ide_cd=on_ide)
    return (
        hardware.disk_bus in get_args(Bus)
        and hardware.nic_model in get_args(Model)
        and hardware.agent_port in ("virtio", "serial")
        and crowded is None
        and not (has_memory and UNSAVED & set(buses))
    )


def _check_parts(manifest: BundleManifest) -> None:
    names = [part.name for part in manifest.parts]
    count = len(manifest.spec.disks) + (manifest.media.root != "none")
    wanted = [f"disk{number}" for number in range(count)]
    sizes = {part.name: part.size_bytes for part in manifest.parts}
    small = all(sizes.get(name, 0) <= _MOST_PART for name in (*COMPANIONS, "devices"))
    memory = sizes.get("memory", manifest.spec.memory)
    if (
        len(manifest.hardware.nics) != len(manifest.spec.network_cards)
        or len(set(names)) != len(names)
        or not all(_PART.fullmatch(name) for name in names)
        or names[:count] != wanted
        or len(manifest.disks) != count
        or not small
        or memory != manifest.spec.memory
        or ("memory" in sizes) != ("devices" in sizes)
        or ("memory" in sizes and manifest.agent_disk is not None) != ("agent" in sizes)
        or sizes.get("agent", 0) > MOST_AGENT_DISK
        or ("memory" in sizes) != (manifest.accelerator is not None)
        or (manifest.hardware.firmware == "uefi") != ("variables" in sizes)
        or manifest.media.seed != ("seed" in sizes)
        or ("tpm" in sizes and not manifest.spec.tpm)
        or not _has_known_hardware(manifest, has_memory="memory" in sizes)
        or any(size % 512 for name, size in sizes.items() if name.startswith("disk"))
        or not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in manifest.media.digests)
        or any(part.image not in (None, manifest.image_digest) for part in manifest.parts)
    ):
        raise BadBundle("the parts of the bundle do not match its machine")


def check_here(
    manifest: BundleManifest,
    facts: QemuFacts,
    accelerators: dict[str, Accelerator],
    *,
    cold: bool,
    accelerator: str = "auto",
) -> tuple[MachineSpec, Hardware]:
    """Return the spec and the hardware of the machine on this host.

    Args:
        cold: ignore the memory; the machine boots.
        accelerator: "auto", or the accelerator to continue on.

    Raises:
        BadBundle: this host cannot continue from the memory, or would be slow; the hint says what works.
    """
    spec, hardware = manifest.spec, manifest.hardware
    is_known = _is_known(hardware, facts)
    if cold or manifest.accelerator is None:
        if not is_known:
            machine_type = choose_machine_type("auto", facts, hardware.arch)
            hardware = hardware.model_copy(update={"machine_type": machine_type})
        return spec, hardware
    its, cpu = manifest.accelerator, hardware.cpu_model
    why = accelerator_bar(its, accelerators, accelerator) or cpu_bar(its, cpu, accelerators)
    if why is None and not is_known:
        why = f"this QEMU does not have its machine type {hardware.machine_type}"
    elif why is None and cpu.partition(",")[0] not in facts.cpu_models:
        why = f"this QEMU does not have its processor {cpu}"
    if why is not None:
        raise BadBundle(
            f"machine '{manifest.name}' cannot resume on this host: {why}",
            hint=render_instead(its, accelerators),
        )
    return spec.model_copy(update={"accelerator": its}), hardware


def _is_known(hardware: Hardware, facts: QemuFacts) -> bool:
    try:
        return choose_machine_type(hardware.machine_type, facts, hardware.arch) == hardware.machine_type
    except BoughError:
        return False
