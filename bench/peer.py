"""The peer of boot and image: plain mmdebstrap, mke2fs and qemu-system, as in their manuals."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.harness import RESULTS, run_quietly

SUITE = "bookworm"
SIZE = "2G"
PEER = RESULTS / "peer"
#: A kernel for virtual machines, systemd, and the packages for a login.
PACKAGES = "linux-image-cloud-{arch},systemd-sysv,dbus,initramfs-tools,udev,iproute2,openssh-server,python3"
DEBIAN_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
LOGIN_PROMPT = b"login: "
BOOT_TIMEOUT_S = 120


@dataclass(frozen=True)
class StockImage:
    disk: Path
    kernel: Path
    initrd: Path


def build_stock_image(target: Path) -> StockImage:
    """Build a Debian with mmdebstrap, in an ext4 file system, without a boot loader."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    tree, disk = target / "tree", target / "disk.raw"
    packages = PACKAGES.format(arch=DEBIAN_ARCH[platform.machine()])
    run_quietly("mmdebstrap", "--variant=important", f"--include={packages}", SUITE, tree)
    run_quietly("mke2fs", "-q", "-t", "ext4", "-d", tree, disk, SIZE)
    boot = tree / "boot"
    image = StockImage(disk, target / "vmlinuz", target / "initrd.img")
    shutil.copy(next(boot.glob("vmlinuz-*")), image.kernel)
    shutil.copy(next(boot.glob("initrd.img-*")), image.initrd)
    shutil.rmtree(tree)
    return image


def stock_image() -> StockImage:
    """Return the image, built once and kept until `make clean`."""
    image = StockImage(PEER / "disk.raw", PEER / "vmlinuz", PEER / "initrd.img")
    return image if image.initrd.exists() else build_stock_image(PEER)


class SavedGuest:
    """The stock image, booted and saved by QEMU's own savevm. A context manager."""

    def __init__(self, image: StockImage, accelerator: str, vcpus: int, memory_mib: int) -> None:
        self._disk = PEER / "saved.qcow2"
        self._disk.unlink(missing_ok=True)
        run_quietly("qemu-img", "create", "-q", "-f", "qcow2", "-b", image.disk, "-F", "raw", self._disk)
        self._argv = [
            f"qemu-system-{platform.machine()}", "-accel", accelerator, "-machine", "q35",
            "-cpu", "host" if accelerator == "kvm" else "qemu64", "-smp", str(vcpus), "-m", str(memory_mib),
            "-nodefaults", "-display", "none", "-chardev", "stdio,id=serial,mux=on",
            "-serial", "chardev:serial", "-mon", "chardev=serial",
            "-drive", f"file={self._disk},format=qcow2,if=virtio", "-nic", "user,model=virtio-net-pci",
        ]  # fmt: skip
        boot = ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        self._boot = [*boot, "-append", "root=/dev/vda rw console=ttyS0"]

    def __enter__(self) -> SavedGuest:
        with self._start() as qemu:
            try:
                _await(qemu, LOGIN_PROMPT)
                time.sleep(_REST_S)
                _type(qemu, _TO_MONITOR + b"savevm saved\ninfo status\n")
                _await(qemu, b"VM status")
            finally:
                qemu.kill()
        return self

    def __exit__(self, *_: object) -> None:
        self._disk.unlink(missing_ok=True)

    def restore(self) -> float:
        """Return the seconds from the start of QEMU to a login prompt that answers a key."""
        started = time.perf_counter()
        with self._start("-loadvm", "saved") as qemu:
            try:
                _type(qemu, b"\n")
                _await(qemu, LOGIN_PROMPT)
                return time.perf_counter() - started
            finally:
                qemu.kill()

    def _start(self, *more: str) -> subprocess.Popen[bytes]:
        argv = [*self._argv, *self._boot, *more]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE)


#: Seconds until the guest is idle before savevm, as bough's guest is; else each restore would continue the
#: boot.
_REST_S = 15
#: Keys of a multiplexed character device that switch between the guest's console and QEMU's monitor.
_TO_MONITOR = b"\x01c"


def _type(qemu: subprocess.Popen[bytes], keys: bytes) -> None:
    assert qemu.stdin is not None
    qemu.stdin.write(keys)
    qemu.stdin.flush()


def _await(qemu: subprocess.Popen[bytes], what: bytes) -> None:
    assert qemu.stdout is not None
    seen, deadline = b"", time.monotonic() + BOOT_TIMEOUT_S
    while what not in seen:
        data = os.read(qemu.stdout.fileno(), 65536)
        if not data or time.monotonic() > deadline:
            raise RuntimeError(f"{what!r} did not come: {seen[-500:].decode(errors='replace')}")
        seen += data


def boot_to_login(image: StockImage, *, accelerator: str, vcpus: int, memory_mib: int) -> float:
    """Return the seconds from the start of QEMU to the login prompt on the serial console."""
    # The fastest of QEMU's models here under emulation.
    cpu = "host" if accelerator == "kvm" else "qemu64"
    argv = [
        f"qemu-system-{platform.machine()}", "-accel", accelerator, "-machine", "q35", "-cpu", cpu,
        "-smp", str(vcpus), "-m", str(memory_mib), "-nodefaults", "-display", "none", "-serial", "stdio",
        "-drive", f"file={image.disk},format=raw,if=virtio,snapshot=on",
        "-nic", "user,model=virtio-net-pci",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd),
        "-append", "root=/dev/vda rw console=ttyS0",
    ]  # fmt: skip
    started = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as qemu:
        try:
            assert qemu.stdout is not None
            seen = b""
            while LOGIN_PROMPT not in seen:
                data = os.read(qemu.stdout.fileno(), 65536)
                if not data or time.perf_counter() - started > BOOT_TIMEOUT_S:
                    raise RuntimeError(f"no login prompt: {seen[-500:].decode(errors='replace')}")
                seen += data
            return time.perf_counter() - started
        finally:
            qemu.kill()
