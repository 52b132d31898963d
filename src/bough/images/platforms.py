"""What a Debian of each processor architecture is made of and boots by, in one table."""

from __future__ import annotations

from dataclasses import dataclass

from bough.errors import NotFound


@dataclass(frozen=True)
class Platform:
    """One row.

    Attributes:
        debian: Debian's name of the architecture.
        kernel: the kernel's package.
        console: the serial console's name to Linux.
        grub_bios, grub_efi: GRUB's names of the platforms that the disk boots by; "" for none.
        efi_loader: UEFI specification 3.5.1.1: the boot loader's name where nothing else is set up.
        releases: that have this architecture and a kernel for it.
        initramfs: the package that makes the initrd; debian/initramfs/ has what it is told.
        machine: e_machine of its ELF programs.
        bits: of its ELF programs.
        exit_code: machine code that ends a Linux program with status 0.
    """

    debian: str
    kernel: str
    console: str
    grub_packages: tuple[str, ...]
    grub_bios: str
    grub_efi: str
    efi_loader: str
    releases: tuple[str, ...]
    machine: int
    bits: int
    exit_code: bytes
    initramfs: str = "tiny-initramfs"

    @property
    def firmware(self) -> tuple[str, ...]:
        """What it boots by, the preferred one first."""
        return (*(("bios",) if self.grub_bios else ()), *(("uefi",) if self.grub_efi else ()))


#: Unpacked to make the boot loader, not installed. The library is what grub-mkimage is linked to.
_GRUB = ("grub-common", "grub2-common", "libdevmapper1.02.1")

PLATFORMS = {
    "x86_64": Platform(
        debian="amd64",
        kernel="linux-image-cloud-amd64",
        console="ttyS0",
        grub_packages=(*_GRUB, "grub-pc-bin", "grub-efi-amd64-bin"),
        grub_bios="i386-pc",
        grub_efi="x86_64-efi",
        efi_loader="BOOTX64.EFI",
        releases=("11", "12", "13", "testing", "sid"),
        machine=0x3E,
        bits=64,
        exit_code=bytes.fromhex("b83c000000 31ff 0f05"),
    ),
    "aarch64": Platform(
        debian="arm64",
        kernel="linux-image-cloud-arm64",
        console="ttyAMA0",
        grub_packages=(*_GRUB, "grub-efi-arm64-bin"),
        grub_bios="",
        grub_efi="arm64-efi",
        efi_loader="BOOTAA64.EFI",
        releases=("11", "12", "13", "testing", "sid"),
        machine=0xB7,
        bits=64,
        exit_code=bytes.fromhex("000080d2 a80b80d2 010000d4"),
    ),
    "riscv64": Platform(
        debian="riscv64",
        kernel="linux-image-riscv64",
        console="ttyS0",
        grub_packages=(*_GRUB, "grub-efi-riscv64-bin"),
        grub_bios="",
        grub_efi="riscv64-efi",
        efi_loader="BOOTRISCV64.EFI",
        releases=("13", "testing", "sid"),
        machine=0xF3,
        bits=64,
        exit_code=bytes.fromhex("13050000 9308d005 73000000"),
        initramfs="initramfs-tools",  # Debian 13 has the other one's programs for all but this
    ),
    # A PC of before 2003: no 64-bit mode, so no cloud kernel, and BIOS.
    "i386": Platform(
        debian="i386",
        kernel="linux-image-686-pae",
        console="ttyS0",
        grub_packages=(*_GRUB, "grub-pc-bin"),
        grub_bios="i386-pc",
        grub_efi="",
        efi_loader="",
        releases=("11", "12"),
        machine=0x03,
        bits=32,
        exit_code=bytes.fromhex("b801000000 31db cd80"),
    ),
}


def platform_of(label: str, arch: str) -> Platform:
    """The row for a Debian `label` on `arch`. Raises NotFound where Debian has none."""
    release = label.partition(":")[2]
    able = [name for name, row in PLATFORMS.items() if release in row.releases]
    if arch not in able:
        raise NotFound(
            f"there is no recipe for {label} on {arch[:40]!r}",
            hint=f"{label} can be built for {', '.join(able)}",
            kind="image",
        )
    return PLATFORMS[arch]
