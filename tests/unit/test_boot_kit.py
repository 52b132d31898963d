"""The boot kits of a home, and the disks that begin with one."""

from __future__ import annotations

import asyncio
import hashlib
from itertools import pairwise
from pathlib import Path

import pytest

from bough.audit.files import Look, audit_files
from bough.errors import HostLacks
from bough.images import disk
from bough.images.apt import Mirrors
from bough.images.disk import DiskIdentity
from bough.images.linux_disk.cpio import FILE, LINK, CpioNames, render_archive
from bough.images.oci.boot_kit import store as store_module
from bough.images.oci.boot_kit.build import BuiltKit, render_dependencies
from bough.images.oci.boot_kit.recipe import BootKitRecipe, boot_kit_recipe
from bough.images.oci.boot_kit.store import BootKit, BootKitStore
from bough.images.oci.disk import finish_disk, prepare_root, render_table, root_environment
from bough.paths import Home
from bough.progress import Report
from bough.units import GIB, MIB

ARCH = "x86_64"
PACKAGES = {"linux-image-6.1.0-1-cloud-amd64": "6.1.1-1"}


class Builds:
    """The builds of a test instead of real ones."""

    def __init__(self) -> None:
        self.count = 0
        self.text = b"kit"
        self.error: HostLacks | None = None

    async def build(
        self, recipe: BootKitRecipe, target: Path, incoming: Path, report: Report, mirrors: Mirrors
    ) -> BuiltKit:
        self.count += 1
        target.write_bytes(self.text)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return BuiltKit(target, PACKAGES)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    builds = Builds()
    monkeypatch.setattr(store_module, "build_boot_kit", builds.build)
    return builds


async def provide(home: Home) -> BootKit:
    return await BootKitStore(home).provide(ARCH, lambda _: None)


# -- recipe and store -----------------------------------------------------------------------------------


def test_an_architecture_without_a_kernel_is_refused() -> None:
    assert boot_kit_recipe("x86_64").key() != boot_kit_recipe("aarch64").key()
    with pytest.raises(HostLacks, match="'s390x' cannot become a machine") as caught:
        boot_kit_recipe("s390x")
    assert "x86_64, aarch64" in str(caught.value.hint)


async def test_built_once_and_found_by_the_recipe(home: Home, builds: Builds) -> None:
    assert BootKitStore(home).newest(ARCH) is None
    kit = await provide(home)
    assert kit == await provide(home) == BootKitStore(home).newest(ARCH)
    assert (builds.count, kit.digest, kit.packages) == (1, hashlib.sha256(b"kit").hexdigest(), PACKAGES)
    assert (kit.path.read_bytes(), kit.path.stat().st_mode & 0o777) == (b"kit", 0o444)
    assert not list(home.incoming.iterdir())
    look = Look(home)
    assert not [finding for finding in audit_files(look) if "boot" in str(finding)]


async def test_two_at_once_build_one(home: Home, builds: Builds) -> None:
    kits = await asyncio.gather(*(provide(home) for _ in range(3)))
    assert len({kit.digest for kit in kits}) == builds.count == 1


async def test_a_lost_file_or_damaged_keys_mean_another_build(home: Home, builds: Builds) -> None:
    kit = await provide(home)
    kit.path.unlink()
    assert await provide(home) == kit
    for damage in (b"{", b"[]", b'{"x": 7}', b'{"x": {"arch": "x86_64", "digest": "../x", "packages": {}}}'):
        home.boot_kit_keys.write_bytes(damage)
        assert await provide(home) == kit
    assert builds.count == 6


async def test_a_new_recipe_replaces_the_kit(
    home: Home, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await provide(home)
    monkeypatch.setattr(BootKitRecipe, "key", lambda _: "another")
    builds.text = b"new"
    new = await provide(home)
    assert new.path.read_bytes() == b"new"
    assert not old.path.exists()


async def test_a_failed_build_leaves_nothing(home: Home, builds: Builds) -> None:
    builds.error = HostLacks("no mmdebstrap")
    with pytest.raises(HostLacks, match="no mmdebstrap"):
        await provide(home)
    assert not list(home.incoming.iterdir())
    assert BootKitStore(home).newest(ARCH) is None
    builds.error = None
    assert (await provide(home)).path.is_file()


def test_the_dependencies_of_the_initrds_modules() -> None:
    whole = "kernel/a/virtio-ring.ko:\nkernel/b/other.ko: kernel/a/virtio-ring.ko\n"
    whole += "kernel/c/virtio_blk.ko.xz: kernel/b/virtio.ko kernel/a/virtio-ring.ko\nkernel/b/virtio.ko:\n"
    paths = ["kernel/a/virtio-ring.ko", "kernel/b/virtio.ko", "kernel/c/virtio_blk.ko.xz"]
    assert render_dependencies(whole, paths).decode().splitlines() == [
        "virtio_ring.ko:", "virtio.ko:", "virtio_blk.ko: virtio.ko virtio_ring.ko",
    ]  # fmt: skip


# -- the disk -------------------------------------------------------------------------------------------


def test_the_root_is_the_last_partition_and_takes_the_rest() -> None:
    table = render_table(DiskIdentity.derive("x"), ARCH, 60 * MIB, 2 * GIB)
    parts = [line for line in table.splitlines() if line.startswith("start=")]
    assert [line.split('"')[1] for line in parts] == ["bios", "esp", "boot", "root"]
    fields = [dict(part.strip().split("=") for part in line.split(",")) for line in parts]
    for one, following in pairwise(fields):
        assert int(one["start"]) + int(one["size"]) == int(following["start"])
    assert int(fields[-1]["size"]) * 512 == 2 * GIB
    assert len({field["uuid"] for field in fields}) == 4
    assert table == render_table(DiskIdentity.derive("x"), ARCH, 60 * MIB, 2 * GIB)
    assert table != render_table(DiskIdentity.derive("y"), ARCH, 60 * MIB, 2 * GIB)


@pytest.mark.skipif(not Path("/sbin/sfdisk").exists(), reason="sfdisk is not installed")
def test_a_disk_begins_with_the_kit(tmp_path: Path) -> None:
    boot = bytearray(b"\x90" * 512)
    boot[510:] = b"\x55\xaa"
    content = bytes(boot) + bytes(34 * 512 - 512) + b"core" * 1000
    content += bytes(3 * MIB - len(content)) + b"boot partition".ljust(MIB, b"\1") + bytes(16 * MIB)
    path = tmp_path / "kit.img"
    path.write_bytes(content)
    kit = BootKit(ARCH, "0" * 64, path, {})
    (tmp_path / "out").mkdir()
    prepare_root(tmp_path)
    identity = DiskIdentity.derive("x")
    environment = root_environment(kit, identity, 0)
    offset = int(environment["BOUGH_ROOT_OFFSET"])
    assert (offset, environment["BOUGH_EPOCH"]) == (len(content), "1")
    with (tmp_path / "disk.raw").open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"the root")
    (tmp_path / "out/root-kib").write_text("65536\n")
    size = finish_disk(tmp_path, kit, identity)
    with (tmp_path / "disk.raw").open("rb") as stream:
        made = stream.read()
    assert size == len(made) == offset + 64 * MIB + MIB
    assert made[disk.BIOS_BOOT_LBA * 512 :][:4000] == b"core" * 1000
    assert made[3 * MIB : 4 * MIB] == content[3 * MIB : 4 * MIB]
    assert made[offset : offset + 8] == b"the root"
    assert (made[:0x5C], made[510:512]) == (bytes(boot[:0x5C]), b"\x55\xaa")
    assert made[512:520] == b"EFI PART"


def test_an_archive_has_the_names_that_are_read_back() -> None:
    content = render_archive([("bin/sh", LINK, b"busybox"), ("a", FILE, b"xyz"), ("b", FILE, b"")])
    names = CpioNames(lambda _: True)
    names.feed(content)
    assert names.names == ["bin/sh", "a", "b"]
    assert names.is_complete
