"""Machines of other processors: built from packages, booted from their own disk, forked.

Each takes minutes, so only processors in BOUGH_TEST_FOREIGN are tested ("arm64 riscv64 i386"): `make
test-foreign`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.spec import parse_architecture

RELEASES = {"aarch64": "debian:13", "riscv64": "debian:13", "i386": "debian:12"}
KERNELS = {"aarch64": "aarch64", "riscv64": "riscv64", "i386": "i686"}
ASKED = [parse_architecture(word) for word in os.environ.get("BOUGH_TEST_FOREIGN", "").split()]
#: For a mirror in the middle of its update: BOUGH_TEST_SECURITY_MIRROR=none.
MIRRORS = {
    "mirror": os.environ.get("BOUGH_TEST_MIRROR"),
    "security_mirror": os.environ.get("BOUGH_TEST_SECURITY_MIRROR"),
}

pytestmark = [
    pytest.mark.skipif(not ASKED, reason="make test-foreign"),
    pytest.mark.timeout(3600),  # an emulated build alone takes a quarter of an hour
]


@pytest.fixture(scope="module", params=ASKED)
def machine(hv: bough.Hypervisor, request: pytest.FixtureRequest) -> Iterator[bough.Machine]:
    arch = request.param
    label = os.environ.get(f"BOUGH_TEST_{arch.upper()}", RELEASES[arch])
    assert hv.build_image(label, arch=arch, **MIRRORS).arch == arch
    made = hv.create(label, name=f"foreign-{arch}", arch=arch, memory="512MiB")
    made.start(timeout=300)
    yield made
    made.delete(force=True)


def test_the_whole_life(machine: bough.Machine, tmp_path: Path) -> None:
    arch = machine.info().hardware["arch"]
    assert machine.exec("uname", "-m", check=True).stdout.strip() == KERNELS[arch]
    # The running kernel is from the machine's own disk, started by the boot loader on that disk.
    release = machine.exec("uname", "-r", check=True).stdout.strip()
    assert machine.exec("test", "-d", f"/lib/modules/{release}").exit_code == 0
    command_line = machine.read_text("/proc/cmdline")
    assert "BOOT_IMAGE=" in command_line

    machine.write_file("/root/there", b"\0\xff" * 100_000)
    assert machine.read_file("/root/there") == b"\0\xff" * 100_000
    machine.exec("sh", "-c", "echo in memory >/run/mark; sync", check=True)

    with machine.fork(ephemeral=True) as fork:
        assert fork.read_text("/run/mark") == "in memory\n"
        assert fork.read_text("/etc/machine-id") != machine.read_text("/etc/machine-id")
        assert abs(float(fork.exec("date", "+%s").stdout) - float(machine.exec("date", "+%s").stdout)) < 30

    machine.restart()
    assert machine.read_file("/root/there") == b"\0\xff" * 100_000
    assert machine.exec("test", "-e", "/run/mark").exit_code != 0
    machine.stop()
    assert machine.info().state == "stopped"


def test_a_recipe(hv: bough.Hypervisor, machine: bough.Machine) -> None:
    """Build a layer over the image, in a machine of that processor."""
    arch = machine.info().hardware["arch"]
    recipe = {"base": RELEASES[arch], "arch": arch, "size": "9GiB", "commands": ["uname -m >/etc/made-on"]}
    made = hv.build_recipe(recipe, label="made-there", **MIRRORS)
    assert (made.arch, made.size_bytes) == (arch, 9 << 30)
    with hv.run("made-there", arch=arch, memory="512MiB", timeout=300) as run:
        assert run.read_text("/etc/made-on").strip() == KERNELS[arch]
