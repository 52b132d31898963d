"""The peer of forwarded ports: plain QEMU with its user network and hostfwd, on a copy of a guest's disk."""

from __future__ import annotations

import platform
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bough import Machine

BOOT_TIMEOUT_S = 180


def copy_disk(machine: Machine, target: Path) -> Path:
    """Copy the first disk of a stopped machine, without backing files."""
    source = machine.plan()["plan"]["disks"][0]["path"]
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", source, str(target)], check=True)
    return target


@contextmanager
def plain_qemu(machine: Machine, disk: Path, ports: dict[int, int]) -> Iterator[None]:
    """Run QEMU with the processor, memory and accelerator of `machine`, until the block ends.

    Args:
        disk: qcow2; the guest writes to it.
        ports: TCP ports of this host, and the port in the guest of each.
    """
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in ports.items())
    argv = [
        f"qemu-system-{platform.machine()}", "-nodefaults", "-display", "none",
        *_like(machine, "-machine", "-accel", "-cpu", "-smp"), "-m", "1024",
        "-drive", f"file={disk},format=qcow2,if=virtio", "-device", "virtio-rng-pci",
        "-nic", f"user,model=virtio-net-pci{forwards}",
    ]  # fmt: skip
    with subprocess.Popen(argv) as qemu:
        try:
            yield
        finally:
            qemu.kill()


def wait_for_ssh(port: int) -> None:
    """Wait until an sshd greets clients at that port of this host. Raises TimeoutError."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
                if link.recv(4) == b"SSH-":
                    return
        except OSError:
            pass
        time.sleep(0.5)
    raise TimeoutError(f"no sshd at port {port} in {BOOT_TIMEOUT_S} s")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _like(machine: Machine, *options: str) -> list[str]:
    """Return these options of the machine's command line, without its separate devices."""
    argv: list[str] = machine.plan()["argv"]
    words = []
    for option in options:
        value = argv[argv.index(option) + 1]
        if option == "-machine":
            kept = (part for part in value.split(",") if not part.startswith(("memory-backend=", "pflash")))
            value = ",".join(kept)
        words += [option, value]
    return words
