"""The packages and boot firmware of Debian on each processor architecture, in one table."""

from __future__ import annotations

from dataclasses import dataclass

from bough.errors import NotFound


@dataclass(frozen=True)
class Platform:
    """A row of the table.

    Attributes:
        debian: Debian's name of the architecture.
        kernel: name of the kernel's package.
        console: Linux's name of the serial console.
        grub_bios, grub_efi: GRUB's names of the boot platforms; "" for none.
        efi_loader: name of the default boot loader (UEFI specification 3.5.1.1).
        releases: Debian releases with this architecture and a kernel for it.
        initramfs: the package that makes the initrd. debian/initramfs/ has its configuration.
        machine: e_machine of ELF programs.
        bits: word size of ELF programs.
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
        """Firmware types that boot the platform, the preferred one first."""
        return (*(("bios",) if self.grub_bios else ()), *(("uefi",) if self.grub_efi else ()))


#: Packages that are unpacked to make the boot loader, but not installed. grub-mkimage needs the library.
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
        # Debian 13 has tiny-initramfs's programs for the other architectures only
        initramfs="initramfs-tools",
    ),
    # A PC from before 2003: no 64-bit mode, so no cloud kernel; BIOS only.
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
    """Return the row for a Debian `label` on `arch`.

    Raises:
        NotFound: Debian has no such release for `arch`.
    """
    release = label.partition(":")[2]
    able = [name for name, row in PLATFORMS.items() if release in row.releases]
    if arch not in able:
        raise NotFound(
            f"there is no recipe for {label} on {arch[:40]!r}",
            hint=f"{label} can be built for {', '.join(able)}",
            kind="image",
        )
    return PLATFORMS[arch]
