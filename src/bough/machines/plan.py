"""Turn a spec into hardware and a plan.

`resolve_hardware` decides once, when a machine is created. `resolve_plan` decides at each start, by the
host's QEMU, accelerators and jail.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from pathlib import Path

from bough.errors import HostLacks, InvalidSpec
from bough.guest.qga import PORT as QGA_PORT
from bough.images.esp import EfiLoader
from bough.images.overlays import layer_format
from bough.images.store import ImageManifest
from bough.machines.agent_disk import plan_agent_disk
from bough.machines.disks.buses import check_buses, check_room, disk_buses
from bough.machines.media import boot_index, plan_media
from bough.machines.nics import Networks, NowhereNetworks, plan_nics, resolve_nics, uplink_backend
from bough.machines.record import Hardware, MachineRecord, new_uuid
from bough.machines.seed import plan_seed
from bough.paths import Home, MachinePaths
from bough.qemu.accelerators import probe_accelerators
from bough.qemu.arch import architecture
from bough.qemu.binary import OLDEST, find_qemu
from bough.qemu.choice import (
    accelerator_note,
    choose_accelerator,
    choose_boot_cpu,
    choose_cpu_model,
    choose_machine_type,
    find_bios,
    find_uefi,
)
from bough.qemu.jail import Jail, machine_uid, report_jail
from bough.qemu.jail_probe import probe_jail
from bough.qemu.plan import (
    AGENT_PORT,
    SERIAL_PORTS,
    DirectBoot,
    DiskPlan,
    Firmware,
    Layer,
    Limits,
    Plan,
    resolve_clock,
)
from bough.qemu.questions import inspect_qemu
from bough.qemu.tpm import TPM_STATE, check_swtpm
from bough.qemu.uefi_variables import BootFile, add_boot_entry
from bough.spec import MachineSpec
from bough.spec.nic import UPLINK
from bough.spec.program import image_init
from bough.storage import copy_holes
from bough.units import GIB

FIRMWARE_VARIABLES = "firmware-variables.fd"


def host_arch() -> str:
    return platform.machine()


def check_arch(arch: str) -> None:
    """Raise HostLacks if this host has no QEMU for the architecture, or lacks the only firmware."""
    find_qemu(arch)
    row = architecture(arch)
    if not row.is_pc:
        find_uefi(arch, f"{row.machine[0]}-{OLDEST[0]}.{OLDEST[1]}")


async def resolve_hardware(
    spec: MachineSpec, image: ImageManifest, home: Home, *, machine_id: str, taken_uids: Collection[int]
) -> Hardware:
    """Choose the hardware of a machine for its whole life.

    Raises:
        InvalidSpec: unknown CPU model or machine type, missing kernel, or firmware that the image cannot
            boot with.
        HostLacks: no QEMU, no UEFI firmware, or a requested accelerator that does not work.
    """
    qemu = find_qemu(image.arch)
    facts = await inspect_qemu(qemu, home)
    jail = await probe_jail(qemu, home)
    uid = machine_uid(machine_id, taken_uids) if os.geteuid() == 0 else None
    check_jail(spec, jail, uid)
    accelerator = choose_accelerator(spec.accelerator, await probe_accelerators(qemu, jail, home))
    machine_type = choose_machine_type(spec.machine_type, facts, image.arch)
    firmware = _choose_firmware(spec, image)
    if firmware == "uefi":  # report missing firmware now, not at the first start
        find_uefi(image.arch, machine_type, secure=spec.secure_boot)
    _check_host_files(spec)
    check_buses(spec, image)
    _check_agent_port(spec, image.arch)
    _check_tpm(spec, image.arch)
    if spec.floppy is not None and not architecture(image.arch).is_pc:
        message = f"a machine of {image.arch} has no floppy drive"
        raise InvalidSpec(f"floppy: {message}", problems=[_problem("floppy", message)])
    return Hardware(
        arch=image.arch,
        machine_type=machine_type,
        cpu_model=choose_cpu_model(spec.cpu, facts, accelerator),
        firmware=firmware,
        uuid=new_uuid(),
        vmgenid=new_uuid(),
        nics=resolve_nics(spec, image.nic_model),
        uid=uid,
        serial_ports=SERIAL_PORTS,
        disk_queues=spec.vcpus,
        disk_bus=image.disk_bus,
        nic_model=image.nic_model,
        agent_port=image.agent_port,
    )


def _choose_firmware(spec: MachineSpec, image: ImageManifest) -> str:
    if spec.secure_boot:
        return _choose_secure_firmware(spec, image)
    if spec.firmware == "auto":
        return "bios" if "bios" in image.firmware else image.firmware[0]
    if spec.firmware not in image.firmware:
        message = f"{spec.image} boots by {' or '.join(image.firmware)}, not by {spec.firmware}"
        raise InvalidSpec(f"firmware: {message}", problems=[_problem("firmware", message)])
    return spec.firmware


def _choose_secure_firmware(spec: MachineSpec, image: ImageManifest) -> str:
    message = None
    if "uefi" not in image.firmware:
        message = f"{spec.image} boots by {' or '.join(image.firmware)}, and Secure Boot needs a UEFI"
    elif image.arch != "x86_64":
        message = f"a machine of {image.arch} has no Secure Boot"
    if message is not None:
        raise InvalidSpec(f"secure_boot: {message}", problems=[_problem("secure_boot", message)])
    return "uefi"


def _check_agent_port(spec: MachineSpec, arch: str) -> None:
    if spec.agent_port == "serial" and not architecture(arch).is_pc:
        message = f"a machine of {arch} has one serial port, its console"
        raise InvalidSpec(f"agent_port: {message}", problems=[_problem("agent_port", message)])


def _check_tpm(spec: MachineSpec, arch: str) -> None:
    """Raise InvalidSpec, HostLacks if the machine cannot have the TPM that the spec asks for."""
    if not spec.tpm:
        return
    if architecture(arch).tpm is None:
        message = f"a machine of {arch} has no TPM"
        raise InvalidSpec(f"tpm: {message}", problems=[_problem("tpm", message)])
    check_swtpm()


def _check_host_files(spec: MachineSpec) -> None:
    problems = [
        _problem(place, f"{path} is not a file that can be read")
        for place, path in (("kernel", spec.kernel), ("initrd", spec.initrd))
        if path is not None and not (Path(path).is_file() and os.access(path, os.R_OK))
    ]
    if problems:
        first = problems[0]
        raise InvalidSpec(f"{first['place']}: {first['message']}", problems=problems)


def _problem(place: str, message: str) -> dict[str, str | None]:
    return {"place": place, "message": message, "hint": None}


def install_firmware_variables(
    hardware: Hardware, disks: Path, loader: EfiLoader | None, *, secure: bool = False
) -> None:
    """Copy the UEFI variable store beside the machine's disks.

    Args:
        secure: the store of a UEFI with Secure Boot.
        loader: the boot loader to enter, if the firmware cannot find a loader on the disk by itself.
    """
    if hardware.firmware != "uefi":
        return
    template = find_uefi(hardware.arch, hardware.machine_type, secure=secure).variables_template
    if template is not None:
        copy_holes(Path(template), disks / FIRMWARE_VARIABLES)
        (disks / FIRMWARE_VARIABLES).chmod(0o600)
        if loader is not None:
            _enter_loader(disks / FIRMWARE_VARIABLES, loader)


def _enter_loader(variables: Path, loader: EfiLoader) -> None:
    file = BootFile(
        loader.path, loader.partition, loader.first_sector, loader.sectors, bytes.fromhex(loader.identity)
    )
    try:
        variables.write_bytes(add_boot_entry(variables.read_bytes(), file, "disk"))
    except ValueError as error:  # not EDK2's firmware
        raise HostLacks(
            f"the disk boots by {loader.path}, and this host's UEFI accepts no boot entry: {error}",
            hint="install EDK2's firmware (Debian: ovmf)",
        ) from error


async def resolve_plan(record: MachineRecord, paths: MachinePaths, home: Home, networks: Networks) -> Plan:
    """Return the plan of a start at this moment.

    Raises:
        NotFound: no such network. HostLacks: the host lacks QEMU, firmware or a required part of the jail.
        InvalidSpec: after a change of the spec: a bus has no room for the disks, or no port for the agent.
    """
    spec, hardware = record.spec, record.hardware
    check_room(record)
    _check_agent_port(spec, hardware.arch)
    qemu = find_qemu(hardware.arch)
    jail = await probe_jail(qemu, home)
    check_jail(spec, jail, hardware.uid)
    # Memory must continue on the accelerator with which it was saved.
    kept = record.suspended.accelerator if record.suspended else None
    accelerators = await probe_accelerators(qemu, jail, home)
    accelerator = choose_accelerator(kept or spec.accelerator, accelerators)
    return Plan(
        machine_id=record.id,
        name=record.name,
        arch=hardware.arch,
        qemu=qemu.path,
        accelerator="kvm" if accelerator.name == "kvm" else "tcg",
        accelerator_note=accelerator_note(kept or spec.accelerator, accelerator, accelerators),
        boot_cpu_model=choose_boot_cpu(spec.cpu, hardware.cpu_model, hardware.arch, accelerator),
        machine_type=hardware.machine_type,
        cpu_model=hardware.cpu_model,
        vcpus=spec.vcpus,
        memory_bytes=spec.memory,
        uuid=hardware.uuid,
        vmgenid=hardware.vmgenid,
        disks=(
            *_plan_disks(record, paths, home),
            *plan_seed(record, paths.disks),
            *plan_agent_disk(record, home),
        ),
        serial_ports=hardware.serial_ports,
        disk_queues=hardware.disk_queues,
        agent_port=AGENT_PORT if record.image_agent else QGA_PORT,
        agent_on_serial=record.agent_port == "serial",
        hyperv=spec.hyperv,
        tpm_state=str(paths.disks / TPM_STATE) if spec.tpm else None,
        media=plan_media(record.media, spec, home, disk_bus=record.disk_bus),
        display=record.media.display,
        boot_index=boot_index(spec, "disk"),
        nics=plan_nics(
            spec,
            hardware.nics,
            record.id,
            NowhereNetworks(paths.root) if record.throw_away else networks,
            record.project,
        ),
        firmware=_plan_firmware(hardware, paths, qemu.path, secure=spec.secure_boot),
        direct_boot=DirectBoot(spec.kernel, spec.initrd, spec.cmdline or "") if spec.kernel else None,
        image_init=image_init(record.container, spec),
        clock=resolve_clock(spec.clock, spec.clock_offset_s),
        uid=hardware.uid,
        limits=resolve_limits(spec),
        jail=jail,
    )


def _plan_disks(record: MachineRecord, paths: MachinePaths, home: Home) -> tuple[DiskPlan, ...]:
    extra = [disk.serial for disk in record.spec.disks]
    serials = extra if record.media.root == "none" else ["disk0", *extra]
    first = 1 if record.media.root == "none" else 0
    return tuple(
        DiskPlan(
            f"disk{number}",
            str(paths.disks / disk.file),
            serial or f"disk{number}",
            backing=tuple(Layer(str(home.root / layer), layer_format(layer)) for layer in disk.layers),
            bus=bus,
        )
        for number, (disk, serial, bus) in enumerate(
            zip(record.disks, serials, disk_buses(record), strict=True), start=first
        )
    )


def resolve_limits(spec: MachineSpec) -> Limits:
    """Return the limits. Memory is always limited: QEMU uses the guest's memory, up to 1 GiB for translated
    code, and some more.
    """
    limits = spec.limits
    return Limits(
        process_memory_bytes=limits.memory or spec.memory + spec.memory // 8 + 2 * GIB,
        cpu_percent=limits.cpu,
        disk_bytes_per_s=limits.disk,
        disk_operations_per_s=limits.iops,
    )


def check_jail(spec: MachineSpec, jail: Jail, uid: int | None) -> None:
    """Raise HostLacks if the spec requires the whole jail and this host lacks a part."""
    if not spec.require_jail:
        return
    on_uplink = any(card.network == UPLINK for card in spec.network_cards)
    report = report_jail(jail, uid=uid, network=on_uplink and uplink_backend() == "user")
    missing = [part for part in report.parts if not part.had]
    if missing:
        told = "; ".join(f"{part.name}: it {part.detail}" for part in missing)
        raise HostLacks(
            f"this host lacks parts of the jail that was required: {told}",
            hint="`bough doctor` says what to install; to start without these parts, omit --require-jail",
            missing=[part.name for part in missing],
        )


def _plan_firmware(hardware: Hardware, paths: MachinePaths, qemu: str, *, secure: bool) -> Firmware:
    if hardware.firmware != "uefi":
        is_pc = hardware.machine_type.startswith("pc-")
        return Firmware("bios", find_bios(qemu) if is_pc else None)
    found = find_uefi(hardware.arch, hardware.machine_type, secure=secure)
    variables = str(paths.disks / FIRMWARE_VARIABLES) if found.variables_template is not None else None
    return Firmware("uefi", found.code, variables, secure=secure)
