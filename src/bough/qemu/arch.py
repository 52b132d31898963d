"""The table of processor architectures."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bough.errors import InvalidInput


@dataclass(frozen=True)
class Architecture:
    """A row of the table of architectures.

    Attributes:
        qemu: names of the QEMU program, in order of preference; the last one is RHEL's, which is not on PATH.
        machine: families of machine types; the first is the default. A versioned type is a family, a dash,
            and a version ("pc-q35-7.2").
        versioned: QEMU has versioned types of the family; otherwise the family is the type.
        probe_machine: unversioned machine type of the probe guest.
        hosts: host processors whose KVM runs this architecture.
        machine_options: options of every machine: no unrequested device. Each device costs time at start and
            memory in forks.
        tcg_cpu: CPU model under emulation; see _EMULATED_PC.
        kvm_cpus: candidates for KVM, newest first; the first one with all features on this host is used. SVM
            of AMD's models is off: nested virtualization gives a guest much more of KVM to attack.
        console: device of the serial console; None: the board has a serial port.
        has_smbios: the firmware passes QEMU's -smbios data to the guest.
        is_pc: has a BIOS and a floppy controller.
        uboot: where distributions install the U-Boot that OpenSBI starts, for machines without UEFI flash.
            U-Boot is a UEFI without persistent variables.
        has_vmgenid: a device tells the guest's kernel about a clone.
        display: screen, keyboard and pointer of machines with a display. A PC has a keyboard already.
        cd_controller, cd_drive: devices from which a CD can boot.
        tpm: device of a TPM; None: the board has no place for a TPM.
        ram_start: guest-physical address of RAM.
        panic_device: reports a panic of the guest's kernel.
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
    tpm: str | None = "tpm-crb"
    ram_start: int = 0


#: vmport: VMware's backdoor; smbus, sata, usb: nothing is attached; hpet: slower than the other timers.
#: graphics=off sends the firmware's messages to the serial console, so that "no bootable disk" is in the log.
_PC_OPTIONS = ("vmport=off", "smbus=off", "sata=off", "usb=off", "hpet=off", "graphics=off")
_PC_DISPLAY = ("VGA,id=video", "qemu-xhci,id=usb", "usb-tablet,bus=usb.0")

#: Reports Intel's in-order line (Bonnell) with the features of a later CPU: docs/decisions/0011. The stepping
#: has no errata. svm off: no nested KVM. monitor off: an emulated mwait is a busy loop. rdrand off: its
#: generator is part of QEMU, so all processes of a process image would share the generator's state;
#: virtio-rng gives the guest the host's numbers. The other features in the list belong to an EPYC and are not
#: emulated by QEMU 7.2. These features are off for each QEMU version, so that a snapshot finds the same CPU
#: in a later version.
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
            "EPYC-Genoa,svm=off",
            "Icelake-Server-noTSX",
            "EPYC-Milan,svm=off",
            "Cascadelake-Server-noTSX",
            "EPYC-Rome,svm=off",
            "Skylake-Server-noTSX-IBRS",
            "EPYC-IBPB,svm=off",
            "Broadwell-noTSX-IBRS",
            "Haswell-noTSX-IBRS",
            "IvyBridge-IBRS",
            "SandyBridge-IBRS",
            "Nehalem-IBRS",
            "Nehalem",
            "qemu64,svm=off",  # complete on each host, also on a nested KVM that lacks more
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
    # A 32-bit PC with the board of 1996. An AMD CPU, for the reasons at tcg_cpu.
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
    # gic-version: version 2 ends at 8 vCPUs, and QEMU's default depends on the accelerator.
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
        tpm="tpm-tis-device",
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
        tpm=None,
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
    """Return the row of an architecture. Raises InvalidInput for an unknown one."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        known = ", ".join(ARCHITECTURES)
        raise InvalidInput(
            f"machines of architecture {name!r} cannot be run yet", hint=f"can be run: {known}"
        ) from None


def version_key(machine_type: str) -> tuple[int, ...]:
    """Return a sort key that orders pc-q35-9.2 before pc-q35-10.0."""
    return tuple(int(number) for number in re.findall(r"\d+", machine_type.rpartition("-")[2]))
