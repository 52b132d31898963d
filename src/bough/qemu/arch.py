"""What differs between the processor architectures, in one table."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bough.errors import InvalidInput


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        qemu: names of its QEMU, in the order of preference; the last is RHEL's, which is not on PATH.
        machine: families of machine types; the first is the default. A versioned type is a family, a
            dash, and a version ("pc-q35-7.2").
        machine_options: of every machine of this architecture: no device that nobody asked for.
            Each costs every start a little time and every fork some memory.
        tcg_cpu: CPU model where the processor is emulated. Not Intel's: a guest that thinks it has to
            guard against Meltdown boots 3 to 5 s slower; without svm it loads no KVM of its own.
        kvm_cpus: candidates for KVM, newest first; the first one that the host can give in full is taken.
        console: the device of the serial console.
        has_vmgenid: a device that tells the guest's kernel that it was cloned.
        display: screen, keyboard and pointer, for machines that have them. A PC has a keyboard.
        cd_controller, cd_drive: on which a CD can be booted.
        ram_start: guest-physical address of its RAM.
        panic_device: tells us that the guest's kernel panicked; costs one I/O port.
    """

    name: str
    qemu: tuple[str, ...]
    machine: tuple[str, ...]
    machine_options: tuple[str, ...]
    tcg_cpu: str
    kvm_cpus: tuple[str, ...]
    console: str
    has_vmgenid: bool
    panic_device: str | None
    display: tuple[str, ...] = (
        "virtio-gpu-pci,id=video",
        "qemu-xhci,id=usb",
        "usb-kbd,bus=usb.0",
        "usb-tablet,bus=usb.0",
    )
    cd_controller: str = "virtio-scsi-pci"
    cd_drive: str = "scsi-cd"
    ram_start: int = 0


#: vmport: VMware's backdoor; smbus, sata, usb: nothing is on them; hpet: a slower timer than the rest.
#: graphics=off makes the firmware talk on the serial console, so that "no bootable disk" is in the log.
_PC_OPTIONS = ("vmport=off", "smbus=off", "sata=off", "usb=off", "hpet=off", "graphics=off")

ARCHITECTURES = {
    "x86_64": Architecture(
        name="x86_64",
        qemu=("qemu-system-x86_64", "/usr/libexec/qemu-kvm"),
        machine=("pc-q35", "pc-i440fx"),
        machine_options=_PC_OPTIONS,
        tcg_cpu="EPYC,svm=off",
        kvm_cpus=(
            "SapphireRapids",
            "EPYC-Genoa",
            "Icelake-Server-noTSX",
            "EPYC-Milan",
            "Cascadelake-Server-noTSX",
            "EPYC-Rome",
            "Skylake-Server-noTSX-IBRS",
            "EPYC-IBPB",
            "Broadwell-noTSX-IBRS",
            "Haswell-noTSX-IBRS",
            "IvyBridge-IBRS",
            "SandyBridge-IBRS",
            "Nehalem-IBRS",
            "Nehalem",
        ),
        console="isa-serial",
        has_vmgenid=True,
        panic_device="pvpanic",
        display=("VGA,id=video", "qemu-xhci,id=usb", "usb-tablet,bus=usb.0"),
        cd_controller="ich9-ahci",
        cd_drive="ide-cd",
    ),
}


def architecture(name: str) -> Architecture:
    """Raises InvalidInput for one that is not in the table."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        known = ", ".join(ARCHITECTURES)
        raise InvalidInput(
            f"machines of architecture {name!r} cannot be run yet", hint=f"can be run: {known}"
        ) from None


def version_key(machine_type: str) -> tuple[int, ...]:
    """Orders pc-q35-9.2 before pc-q35-10.0."""
    return tuple(int(number) for number in re.findall(r"\d+", machine_type.rpartition("-")[2]))
