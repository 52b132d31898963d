"""Hardware for guests without virtio: buses of disks, models of cards, a TPM, Secure Boot."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.conftest import Cli
from tests.waiting import wait_until

SMALL = ("--memory", "64MiB", "--vcpus", "1")
MEMORY = ("--memory", "512MiB")

#: Write to each extra disk, and print its serial number, its first bytes and its kind.
LOOK = """
for disk in /sys/block/*; do
    for file in serial device/serial device/vpd_pg80; do
        serial=$(tr -dc 'a-z0-9-' <$disk/$file 2>/dev/null) || continue
        case $serial in *on-*) ;; *) continue ;; esac
        echo "on-${serial#*on-} ${disk##*/} $(dd if=/dev/${disk##*/} bs=4 count=1 2>/dev/null)"
    done
done
"""
#: Debian's cloud kernel has drivers for these, and none for AHCI and for the cards of Intel and Realtek.
FILL = """
modprobe -a virtio_scsi ata_piix sd_mod
until [ "$(lsblk -dno SIZE | grep -c 64M)" = $1 ]; do sleep 0.1; done
for disk in $(lsblk -dno NAME,SIZE | awk '$2 == "64M" { print $1 }'); do
    printf kept | dd of=/dev/$disk conv=notrunc,fsync status=none
done
"""
#: TPM2_PCR_Extend of PCR 16 with SHA-256 of nothing, and the PCR's value.
EXTEND = """
import os
auth = bytes.fromhex("40000009" "0000" "00" "0000")
digests = bytes.fromhex("00000001000b") + b"\\1" * 32
body = (16).to_bytes(4, "big") + len(auth).to_bytes(4, "big") + auth + digests
command = bytes.fromhex("8002") + (10 + len(body)).to_bytes(4, "big") + bytes.fromhex("00000182") + body
tpm = os.open("/dev/tpm0", os.O_RDWR)
os.write(tpm, command)
assert os.read(tpm, 4096)[6:10] == bytes(4)
"""
PCR = "/sys/class/tpm/tpm0/pcr-sha256/16"


def packages(place: Path, *names: str) -> Path:
    """Unpack packages of Debian below `place`."""
    if shutil.which("apt-get") is None:
        pytest.skip("these are Debian's packages")
    got = subprocess.run(["apt-get", "download", *names], cwd=place, capture_output=True, check=False)
    if got.returncode:
        pytest.skip(f"no packages: {got.stderr.decode(errors='replace')[-300:]}")
    for package in place.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, place / "x"], check=True)
    return place / "x"


@pytest.fixture(scope="module")
def rescue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return GRUB's rescue CD, which boots as a disk, too."""
    place = packages(tmp_path_factory.mktemp("rescue"), "grub-rescue-pc")
    return place / "usr/lib/grub-rescue/grub-rescue-cdrom.iso"


def in_guest(cli: Cli, name: str, script: str, *words: str) -> str:
    return cli.text("exec", name, "--", "sh", "-c", script, "sh", *words)


def test_disks_on_every_bus_and_a_tpm(cli: Cli, debian: str, gone: list[str]) -> None:
    gone += ["buses", "branch"]
    cli(
        *("create", debian, "--name", "buses", *MEMORY, "--no-ssh-keys", "--hyperv", "--tpm"),
        *("--clock", "local", "--agent-port", "virtio", "--limit", "disk=200MiB/s"),
        *("--nic", "uplink", "--nic", "isolated,model=e1000"),
        *("--extra-disk", "64MiB,bus=scsi,serial=on-scsi", "--extra-disk", "64MiB,bus=sata,serial=on-sata"),
        *("--extra-disk", "64MiB,bus=ide,serial=on-ide", "--extra-disk", "64MiB,serial=on-virtio"),
    )
    cli("start", "buses")
    in_guest(cli, "buses", FILL, "3")
    seen = in_guest(cli, "buses", LOOK)
    for bus in ("scsi", "ide", "virtio"):
        assert re.search(rf"^on-{bus} \w+ kept$", seen, re.MULTILINE), seen
    before = in_guest(cli, "buses", f"cat {PCR}")
    cli("exec", "buses", "--", "python3", "-c", EXTEND)
    extended = in_guest(cli, "buses", f"cat {PCR}")
    assert extended != before
    for number in range(5):
        fault = cli.json("fault", "throttle", "buses", "--disk", str(number), "--iops", "100000")
        cli("fault", "heal", fault["id"])
    cli("fork", "buses", "branch")
    assert in_guest(cli, "branch", LOOK) == seen
    assert in_guest(cli, "branch", f"cat {PCR}") == extended, "a fork has the TPM of the snapshot"
    cli("suspend", "branch")
    cli("resume", "branch")
    in_guest(cli, "branch", "sync; echo 3 >/proc/sys/vm/drop_caches")
    assert in_guest(cli, "branch", LOOK) == seen
    assert in_guest(cli, "branch", f"cat {PCR}") == extended


@pytest.mark.long
def test_the_state_of_nvme_is_not_saved(cli: Cli, debian: str, gone: list[str]) -> None:
    gone.append("express")
    cli("create", debian, "--name", "express", *MEMORY, "--extra-disk", "64MiB,bus=nvme,serial=on-nvme")
    cli("start", "express")
    in_guest(cli, "express", FILL, "1")
    assert re.search(r"^on-nvme nvme0n1 kept$", in_guest(cli, "express", LOOK), re.MULTILINE)
    for words in (("snapshot", "create", "express"), ("fork", "express"), ("suspend", "express")):
        cli.error(*words, says="disk 1 of machine 'express' is on nvme", hint="--disks-only")
    fault = cli.json("fault", "disk", "express", "read", "--disk", "1")
    assert "error" in in_guest(cli, "express", "dd if=/dev/nvme0n1 iflag=direct bs=4k count=1 2>&1 || true")
    cli("fault", "heal", fault["id"])
    assert re.search(r"^on-nvme nvme0n1 kept$", in_guest(cli, "express", LOOK), re.MULTILINE)
    cli("snapshot", "create", "express", "--disks-only")


def test_a_guest_without_the_driver_says_so(cli: Cli, debian: str, gone: list[str]) -> None:
    """Debian's initrd has a driver for virtio alone."""
    gone.append("lost")
    cli("create", debian, "--name", "lost", *MEMORY, "--disk-bus", "sata")
    cli.error("start", "lost", says="initramfs: Waiting for", hint="--disk-bus")


@pytest.mark.long
@pytest.mark.parametrize("bus", ["scsi", "sata", "ide", "nvme"])
def test_a_loader_boots_from_every_bus(
    cli: Cli, rescue: Path, gone: list[str], images: list[str], bus: str
) -> None:
    gone.append("rescue")
    images.append(f"rescue-{bus}")
    hardware = ("--disk-bus", bus, "--nic-model", "rtl8139", "--agent-port", "serial")
    cli("image", "import", rescue, "--format", "raw", "--name", f"rescue-{bus}", *hardware)
    cli("create", f"rescue-{bus}", "--name", "rescue", *SMALL)
    cli("start", "rescue")
    wait_until(lambda: "GNU GRUB" in cli.text("screenshot", "rescue", "--text"), timeout_s=40)
    info = cli.json("info", "rescue")
    assert info["hardware"]["disk_bus"] == bus
    assert [nic["model"] for nic in info["hardware"]["nics"]] == ["rtl8139"]


@pytest.mark.long
@pytest.mark.parametrize("model", ["e1000", "e1000e", "rtl8139"])
def test_a_card_of_every_model(
    cli: Cli, gone: list[str], images: list[str], model: str, tmp_path: Path
) -> None:
    """iPXE, with drivers of its own, gets an address."""
    gone.append("ipxe")
    images.append("ipxe-cd")
    iso = next(packages(tmp_path, "ipxe").rglob("ipxe.iso"))
    cli("image", "import", iso, "--name", "ipxe-cd", "--firmware", "bios")
    cli("create", "ipxe-cd", "--name", "ipxe", *SMALL, "--nic", f"uplink,model={model}")
    cli("start", "ipxe", "--no-wait")

    def has_address() -> bool:
        shown = cli.text("screenshot", "ipxe", "--text")
        return re.search(r"Configuring \(net0 [^)]*\)\.* ok", shown) is not None

    wait_until(has_address, timeout_s=60)


@pytest.mark.long
@pytest.mark.parametrize("bus", ["ide", "sata"])
def test_a_kernel_of_another_family(
    cli: Cli, rescue: Path, gone: list[str], images: list[str], bus: str, tmp_path: Path
) -> None:
    """GNU Mach, with drivers of its own, started by GRUB from the disk."""
    kernel = packages(tmp_path, "gnumach-image-1.8-486") / "boot"
    disk = tmp_path / "mach.raw"
    subprocess.run(["truncate", "-s", "16M", disk], check=True)
    subprocess.run(
        ["mformat", "-i", disk, "-v", "MACH", "-T", "32768", "-h", "16", "-s", "32", "::"], check=True
    )
    (found,) = kernel.glob("gnumach-*.gz")
    subprocess.run(["mcopy", "-i", disk, found, "::mach.gz"], check=True)
    gone.append("mach")
    images += ["mach", "rescue-cd"]
    cli("image", "import", disk, "--format", "raw", "--name", "mach", "--firmware", "bios")
    cli("image", "import", rescue, "--name", "rescue-cd")
    cli(
        "create",
        "mach",
        "--name",
        "mach",
        *SMALL,
        "--disk-bus",
        bus,
        "--cdrom",
        "rescue-cd",
        "--boot",
        "cdrom",
    )
    cli("start", "mach")
    wait_until(lambda: "GNU GRUB" in cli.text("screenshot", "mach", "--text"), timeout_s=40)
    cli("type", "mach", "c")
    wait_until(lambda: "grub>" in cli.text("screenshot", "mach", "--text"), timeout_s=20)
    cli("type", "mach", "multiboot (hd0)/mach.gz", "-k", "enter")
    cli("type", "mach", "boot", "-k", "enter")
    wait_until(lambda: "GNU Mach" in cli.text("screenshot", "mach", "--text"), timeout_s=40)


@pytest.mark.long
def test_secure_boot(cli: Cli, gone: list[str], images: list[str], tmp_path: Path) -> None:
    """The firmware starts shim and GRUB as Debian and Microsoft signed them, and nothing else."""
    place = packages(tmp_path, "shim-signed", "grub-efi-amd64-signed", "grub-efi-amd64-bin")
    signed = {
        "BOOTX64.EFI": place / "usr/lib/shim/shimx64.efi.signed",
        "grubx64.efi": place / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
    }
    unsigned = {"BOOTX64.EFI": place / "usr/lib/grub/x86_64-efi/monolithic/gcdx64.efi"}
    for name, files in (("signed", signed), ("unsigned", unsigned)):
        disk = tmp_path / f"{name}.raw"
        subprocess.run(["truncate", "-s", "32M", disk], check=True)
        subprocess.run(["mformat", "-i", disk, "-T", "65536", "-h", "16", "-s", "32", "::"], check=True)
        subprocess.run(["mmd", "-i", disk, "::/EFI", "::/EFI/BOOT"], check=True)
        for file, source in files.items():
            subprocess.run(["mcopy", "-i", disk, source, f"::/EFI/BOOT/{file}"], check=True)
        gone.append(name)
        images.append(f"{name}-efi")
        cli("image", "import", disk, "--format", "raw", "--name", f"{name}-efi", "--firmware", "uefi")
        cli("create", f"{name}-efi", "--name", name, "--memory", "256MiB", "--vcpus", "1", "--secure-boot")
    cli("start", "signed", "--no-wait")
    cli("start", "unsigned", "--no-wait")
    wait_until(lambda: "grub>" in cli.text("logs", "signed"), timeout_s=90)
    wait_until(lambda: "Access Denied" in cli.text("logs", "unsigned"), timeout_s=90)
