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
        versioned: QEMU has versioned types of them; where not, the family is the type.
        probe_machine: the machine type, without version, of the probe guest.
        hosts: processors whose KVM runs this one.
        machine_options: of every machine of this architecture: no device that nobody asked for.
            Each costs every start a little time and every fork some memory.
        tcg_cpu: CPU model where the processor is emulated; see _EMULATED_PC.
        kvm_cpus: candidates for KVM, newest first; the first one that the host can give in full is taken.
        console: the device of the serial console; None: the board has one.
        has_smbios: the firmware tells the guest what QEMU's -smbios says.
        is_pc: it has a BIOS, and a controller for floppies.
        uboot: where distributions have the U-Boot that OpenSBI starts, on machines without UEFI in flash.
            It is a UEFI too, without variables that last.
        has_vmgenid: a device that tells the guest's kernel that it was cloned.
        display: screen, keyboard and pointer, for machines that have them. A PC has a keyboard.
        cd_controller, cd_drive: on which a CD can be booted.
        ram_start: guest-physical address of its RAM.
        panic_device: tells us that the guest's kernel panicked.
    """

    name: str
    qemu: tuple[str, ...]
    machine: tuple[str, ...]
    machine_options: tuple[str, ...]
    tcg_cpu: str
    kvm_cpus: tuple[str, ...]
    console: str | None
    has_vmgenid: bool
    panic_device: str
    probe_machine: str
    hosts: tuple[str, ...]
    versioned: bool = True
    has_smbios: bool = True
    is_pc: bool = False
    uboot: tuple[str, ...] = ()
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
_PC_DISPLAY = ("VGA,id=video", "qemu-xhci,id=usb", "usb-tablet,bus=usb.0")

#: Says that it is of the line of Intel's that executes in order (Bonnell), with the features of a later one:
#: docs/decisions/0011. The stepping is one without errata. svm: no KVM of its own; monitor: mwait of an
#: emulated processor is a busy loop; rdrand: it is drawn from a generator in QEMU, whose state all processes
#: would share that go on from one frozen one (frozen/); virtio-rng gives a guest the host's own. The rest is
#: what QEMU 7.2 does not emulate of an EPYC, off in each version: a snapshot finds the same one in the next.
_NOT_EMULATED = ("fxsr-opt", "misalignsse", "3dnowprefetch", "osvw", "topoext", "xsavec", "rdseed", "sha-ni")
_EMULATED_PC = ",".join(
    (
        "EPYC,vendor=GenuineIntel,family=6,model=28,stepping=10,model-id=emulated",
        *(f"{feature}=off" for feature in ("svm", "monitor", "rdrand", *_NOT_EMULATED)),
    )
)

ARCHITECTURES = {
    "x86_64": Architecture(
        name="x86_64",
        qemu=("qemu-system-x86_64", "/usr/libexec/qemu-kvm"),
        machine=("pc-q35", "pc-i440fx"),
        machine_options=_PC_OPTIONS,
        tcg_cpu=_EMULATED_PC,
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
        probe_machine="q35",
        hosts=("x86_64",),
        is_pc=True,
        display=_PC_DISPLAY,
        cd_controller="ich9-ahci",
        cd_drive="ide-cd",
    ),
    # A PC as it was before 64 bits: the board of 1996. An AMD's processor, for what is said at tcg_cpu.
    "i386": Architecture(
        name="i386",
        qemu=("qemu-system-i386",),
        machine=("pc-i440fx", "pc-q35"),
        machine_options=_PC_OPTIONS,
        tcg_cpu="athlon",
        kvm_cpus=("Conroe", "coreduo", "pentium3"),
        console="isa-serial",
        has_vmgenid=True,
        panic_device="pvpanic",
        probe_machine="pc",
        hosts=("x86_64", "i686", "i586", "i386"),
        is_pc=True,
        display=_PC_DISPLAY,
        cd_controller="ich9-ahci",
        cd_drive="ide-cd",
    ),
    # gic-version: 2 ends at 8 processors, and the default is another one with another accelerator.
    "aarch64": Architecture(
        name="aarch64",
        qemu=("qemu-system-aarch64", "/usr/libexec/qemu-kvm"),
        machine=("virt",),
        machine_options=("gic-version=3",),
        tcg_cpu="neoverse-n1",
        kvm_cpus=("host",),
        console=None,
        has_vmgenid=False,
        panic_device="pvpanic-pci",
        probe_machine="virt,gic-version=3",
        hosts=("aarch64",),
        ram_start=0x4000_0000,
    ),
    "riscv64": Architecture(
        name="riscv64",
        qemu=("qemu-system-riscv64",),
        machine=("virt",),
        machine_options=(),
        tcg_cpu="rv64",
        kvm_cpus=("host",),
        console=None,
        has_vmgenid=False,
        panic_device="pvpanic-pci",
        probe_machine="virt",
        hosts=("riscv64",),
        versioned=False,
        has_smbios=False,
        uboot=(
            "/usr/lib/u-boot/qemu-riscv64_smode/uboot.elf",
            "/usr/share/uboot/qemu-riscv64_smode/u-boot.bin",
            "/usr/share/u-boot/qemu-riscv64smode/u-boot.bin",
        ),
        ram_start=0x8000_0000,
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
