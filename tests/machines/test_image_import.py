# ruff: noqa: ASYNC221 (nothing else runs in these loops)
"""Imports by the real qemu-img and decompressors, in the real jail. No machine is started."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bough.errors import BadImage, BoughError, DownloadFailed, InvalidInput, NotFound
from bough.images.build import verify_image
from bough.images.confined import Confinement, run_confined
from bough.images.import_request import ImportRequest
from bough.images.imports import import_image
from bough.images.note import ExportNote, write_note
from bough.images.store import ImageManifest, ImageStore
from bough.machines.plan import host_arch
from bough.paths import Home
from bough.progress import Progress
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from tests.images_samples import FORMATS, MIB, PACKERS, convert, describe, make_disk, make_ova, pack, serve


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Yield a directory outside of pytest's tmp_path, which the user in the jail cannot enter."""
    root = Path(tempfile.mkdtemp(prefix="bough-import-", dir="/var/tmp"))
    root.chmod(0o711)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def disk(place: Path) -> Path:
    return make_disk(place / "disk.raw")


class Importer:
    def __init__(self, home: Home, confinement: Confinement) -> None:
        self.store = ImageStore(home)
        self.confinement = confinement
        self.told: list[Progress] = []

    async def __call__(self, source: Path | str, **more: Any) -> ImageManifest:
        request = replace(ImportRequest(str(source), host_arch()), **more)
        return await import_image(self.store, request, self.confinement, self.told.append)

    async def refuses(
        self, source: Path | str, says: str, kind: type[BoughError] = BadImage, **more: Any
    ) -> None:
        before = [entry.manifest.digest for entry in self.store.entries()]
        with pytest.raises(kind) as caught:
            await self(source, **more)
        assert says in str(caught.value), caught.value
        assert [entry.manifest.digest for entry in self.store.entries()] == before
        self.nothing_half_made()

    def nothing_half_made(self) -> None:
        assert list(self.store.home.incoming.iterdir()) == []


@pytest.fixture
async def take(place: Path) -> Iterator[Importer]:
    root = Path(tempfile.mkdtemp(dir=place))
    root.chmod(0o711)
    home = Home.at(root)
    home.create()
    return Importer(home, Confinement(await probe_jail(find_qemu(host_arch()), home)))


@pytest.fixture
async def expected(take: Importer, disk: Path) -> str:
    return (await take(disk, label="expected")).digest


@pytest.mark.parametrize("name", FORMATS)
async def test_every_format_holds_the_same_disk(
    take: Importer, disk: Path, expected: str, name: str, tmp_path: Path
) -> None:
    image = convert(disk, name, tmp_path / f"web.{name}")
    manifest = await take(image)
    assert manifest.digest == expected
    assert subprocess.run(["cmp", disk, take.store.path(expected)], check=False).returncode == 0
    assert take.store.path(expected).stat().st_blocks * 512 < 8 * MIB, "it is not sparse"
    assert any(step.fraction for step in take.told)
    take.nothing_half_made()


@pytest.mark.parametrize("name", PACKERS)
async def test_every_compression(
    take: Importer, disk: Path, expected: str, name: str, tmp_path: Path
) -> None:
    packed = pack(disk, name, tmp_path / f"web.raw.{name}")
    assert (await take(packed)).digest == expected
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) * 2 // 3])
    await take.refuses(packed, "truncated")
    packed.write_bytes(whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :])
    await take.refuses(packed, "altered")
    await take.refuses(pack(disk, name, packed), "larger than the limit of", most_bytes=8 * MIB)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "raw"])
@pytest.mark.parametrize("part", [0.0001, 0.02, 0.3, 0.7, 0.97])
async def test_a_truncated_image_is_refused_or_whole(
    take: Importer, disk: Path, expected: str, name: str, part: float, tmp_path: Path
) -> None:
    image = convert(disk, name, tmp_path / f"web.{name}")
    os.truncate(image, int(image.stat().st_size * part))
    try:
        assert (await take(image, format=FORMATS[name][0])).digest == expected
    except BadImage:
        take.nothing_half_made()


async def test_an_ova(take: Importer, disk: Path, expected: str, tmp_path: Path) -> None:
    vmdk = convert(disk, "vmdk-stream", tmp_path / "d.vmdk").read_bytes()
    good = {"m.ovf": describe("d.vmdk"), "d.vmdk": vmdk}
    assert (await take(make_ova(tmp_path / "m.ova", good))).digest == expected
    gz = pack(make_ova(tmp_path / "m.ova", good), "gz", tmp_path / "m.ova.gz")
    assert (await take(gz)).digest == expected
    two = {"m.ovf": describe("d.vmdk", "e.vmdk"), "d.vmdk": vmdk, "e.vmdk": vmdk}
    assert (await take(make_ova(tmp_path / "2.ova", two), disk="e.vmdk")).digest == expected
    await take.refuses(tmp_path / "2.ova", "no disk 'f.vmdk'", disk="f.vmdk")
    whole = (tmp_path / "m.ova").read_bytes()
    (tmp_path / "m.ova").write_bytes(whole[: len(whole) // 2])
    await take.refuses(tmp_path / "m.ova", "truncated")
    altered = bytearray(whole)
    altered[whole.index(vmdk) + len(vmdk) // 2] ^= 1
    (tmp_path / "m.ova").write_bytes(altered)
    await take.refuses(tmp_path / "m.ova", "manifest")
    outside = make_ova(tmp_path / "o.ova", {"m.ovf": describe("../../etc/passwd")})
    await take.refuses(outside, "outside")


@pytest.mark.parametrize("name", ["gzip", "blanks", "dots", "macos", "crlf", "directory"])
async def test_ovas_as_others_write_them(
    take: Importer, disk: Path, expected: str, name: str, tmp_path: Path
) -> None:
    vmdk = convert(disk, "vmdk-stream", tmp_path / "d.vmdk").read_bytes()
    files = {"m.ovf": describe("d.vmdk"), "d.vmdk": vmdk}
    if name == "gzip":  # ovf:compression
        files["d.vmdk"] = pack(tmp_path / "d.vmdk", "gz", tmp_path / "d.gz").read_bytes()
    elif name == "blanks":
        files = {"m.ovf": describe("my%20disk.vmdk"), "my disk.vmdk": vmdk}
    elif name == "dots":
        files = {f"./{each}": data for each, data in files.items()}
    elif name == "directory":
        files = {f"web/{each}": data for each, data in files.items()}
    elif name == "macos":
        files = {"._m.ovf": b"\0\5\x16\7", **files, "._m.mf": b"\0\5\x16\7"}
    text = "".join(f"SHA256({each})= {hashlib.sha256(data).hexdigest()}\n" for each, data in files.items())
    manifest = "web/machine.mf" if name == "directory" else "machine.mf"
    text = text.replace("(web/", "(").replace("\n", "\r\n" if name == "crlf" else "\n")
    files[manifest] = text.encode()
    path = make_ova(tmp_path / "m.ova", files, manifest=False)
    assert (await take(path)).digest == expected
    altered = {**files, manifest: files[manifest].replace(b"= ", b"= 0000")}
    altered[manifest] = re.sub(rb"= 0000(\w+)\w{4}", rb"= 0000\1", altered[manifest])
    await take.refuses(make_ova(tmp_path / "a.ova", altered, manifest=False), "manifest")


async def test_boxes(take: Importer, disk: Path, expected: str, tmp_path: Path) -> None:
    qcow2 = convert(disk, "qcow2", tmp_path / "d.qcow2").read_bytes()
    about = b'{"provider": "libvirt", "format": "qcow2", "virtual_size": 1}'
    box = {"./metadata.json": about, "./Vagrantfile": b"x", "./box.img": qcow2}
    packed = pack(make_ova(tmp_path / "d", box, manifest=False), "gz", tmp_path / "web.box")
    assert (await take(packed)).digest == expected
    two = {"metadata.json": b'{"provider": "libvirt", "disks": [{"path": "a.img"}]}', "a.img": qcow2}
    assert (await take(make_ova(tmp_path / "web.box", two, manifest=False))).digest == expected
    vmdk = convert(disk, "vmdk-stream", tmp_path / "d.vmdk").read_bytes()
    box = {
        "./box.ovf": describe("d.vmdk"),
        "./d.vmdk": vmdk,
        "./metadata.json": b'{"provider": "virtualbox"}',
    }
    assert (await take(make_ova(tmp_path / "vb.box", box, manifest=False))).digest == expected
    other = {"metadata.json": b'{"provider": "docker"}'}
    await take.refuses(make_ova(tmp_path / "o.box", other, manifest=False), "a box for docker")


async def test_all_disks_of_an_ova(take: Importer, disk: Path, expected: str, tmp_path: Path) -> None:
    vmdk = convert(disk, "vmdk-stream", tmp_path / "d.vmdk").read_bytes()
    data = convert(make_disk(tmp_path / "e.raw", 8), "vmdk-stream", tmp_path / "e.vmdk").read_bytes()
    two = {"m.ovf": describe("d.vmdk", "e.vmdk"), "d.vmdk": vmdk, "e.vmdk": data}
    image = await take(make_ova(tmp_path / "2.ova", two))
    assert (await take(tmp_path / "2.ova", disk="all")).digest == image.digest
    (further,) = image.disks
    assert subprocess.run(["cmp", disk, take.store.path(image.digest)], check=False).returncode == 0
    assert subprocess.run(["cmp", tmp_path / "e.raw", take.store.path(further)], check=False).returncode == 0
    assert take.store.prune(set()) == ([], 0), "the second disk goes with the first one"
    assert verify_image(image, take.store.path(image.digest))
    take.store.delete(image.digest)
    assert take.store.prune(set())[0] == [further]


async def test_the_machine_of_an_ova_tells_the_order_of_its_disks(
    take: Importer, disk: Path, tmp_path: Path
) -> None:
    first = convert(disk, "vmdk-stream", tmp_path / "d.vmdk").read_bytes()
    second = convert(make_disk(tmp_path / "e.raw", 8), "vmdk-stream", tmp_path / "e.vmdk").read_bytes()
    items = "".join(
        f"<Item><HostResource>ovf:/disk/{name}</HostResource><Parent>3</Parent>"
        f"<AddressOnParent>{address}</AddressOnParent></Item>"
        for name, address in (("d0", 1), ("d1", 0))
    )
    described = describe("e.vmdk", "d.vmdk").replace(b"</Envelope>", f"{items}</Envelope>".encode())
    image = await take(make_ova(tmp_path / "2.ova", {"m.ovf": described, "d.vmdk": first, "e.vmdk": second}))
    assert subprocess.run(["cmp", disk, take.store.path(image.digest)], check=False).returncode == 0


async def test_an_ovf_in_a_directory(take: Importer, disk: Path, expected: str, tmp_path: Path) -> None:
    place = tmp_path / "exported"
    place.mkdir()
    vmdk = convert(disk, "vmdk-stream", place / "my disk.vmdk").read_bytes()
    (place / "m.ovf").write_bytes(describe("my%20disk.vmdk"))
    (place / "m.mf").write_text(f"SHA256(my%20disk.vmdk)= {hashlib.sha256(vmdk).hexdigest()}\n")
    assert (await take(place)).digest == expected
    assert (await take(place / "m.ovf")).digest == expected
    with pytest.raises(InvalidInput, match="a checksum is for one file"):
        await take(place, checksum="0" * 64)
    (place / "m.mf").write_text(f"SHA256(my disk.vmdk)= {'0' * 64}\n")
    await take.refuses(place, "manifest")
    (place / "m.mf").unlink()
    (place / "two.ovf").write_bytes(describe("my%20disk.vmdk"))
    await take.refuses(place, "2 descriptions")
    for outside in ("../m.raw", "%2e%2e/m.raw", "/etc/passwd", "..%5cm.raw"):
        (place / "m.ovf").write_bytes(describe(outside))
        await take.refuses(place / "m.ovf", "outside")
    (place / "link.vmdk").symlink_to("/etc/passwd")
    (place / "m.ovf").write_bytes(describe("link.vmdk"))
    await take.refuses(place / "m.ovf", "incomplete")
    os.mkfifo(place / "pipe.ovf")
    await take.refuses(place / "pipe.ovf", "not a regular file")
    await take.refuses(tmp_path, "no description")


async def test_the_hardware_that_a_guest_needs(
    take: Importer, disk: Path, expected: str, tmp_path: Path
) -> None:
    assert (await take(disk, disk_bus="virtio")).digest == expected, "the same as no choice"
    image = await take(disk, disk_bus="sata", nic_model="e1000", agent_port="serial")
    assert image.digest != expected
    assert verify_image(image, take.store.path(image.digest))
    found = take.store.resolve(image.digest)
    assert (found.disk_bus, found.nic_model, found.agent_port) == ("sata", "e1000", "serial")
    qcow2 = convert(disk, "qcow2", tmp_path / "d.qcow2")
    write_note(qcow2, ExportNote(agent=False, disk_bus="ide", nic_model="rtl8139"))
    noted = await take(qcow2, nic_model="e1000")
    assert (noted.disk_bus, noted.nic_model, noted.agent_port) == ("ide", "e1000", "virtio")
    await take.refuses(disk, "unknown disk_bus 'usb'", InvalidInput, disk_bus="usb")


async def test_a_box_with_two_disks(take: Importer, disk: Path, tmp_path: Path) -> None:
    first = convert(disk, "qcow2", tmp_path / "d.qcow2").read_bytes()
    second = convert(make_disk(tmp_path / "e.raw", 8), "qcow2", tmp_path / "e.qcow2").read_bytes()
    about = b'{"provider": "libvirt", "disks": [{"path": "box_1.img"}, {"path": "box_2.img"}]}'
    box = {"./metadata.json": about, "./box_2.img": second, "./box_1.img": first}
    packed = pack(make_ova(tmp_path / "d", box, manifest=False), "gz", tmp_path / "web.box")
    image = await take(packed)
    assert len(image.disks) == 1
    assert subprocess.run(["cmp", disk, take.store.path(image.digest)], check=False).returncode == 0


@pytest.mark.parametrize(
    "names",
    [
        ["../m.ovf"],
        ["/m.ovf"],
        ["a/../m.ovf"],
        ["a/b/m.ovf"],
        ["a/m.ovf", "b/d.vmdk"],
        ["a/m.ovf", "d.vmdk"],
        ["m.ovf", "./m.ovf"],
        ["..", "m.ovf"],
        ["a\nb.ovf"],
    ],
)
async def test_hostile_names_in_an_ova(take: Importer, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "m.ova"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    await take.refuses(path, "invalid file name")


async def test_a_fixed_vhd(take: Importer, disk: Path, expected: str, tmp_path: Path) -> None:
    vhd = tmp_path / "a, b.vhd"
    options = ["-o", "subformat=fixed,force_size=on"]
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vpc", *options, disk, vhd], check=True)
    assert (await take(vhd)).digest == expected
    dynamic = tmp_path / "dynamic.vhd"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vpc", disk, dynamic], check=True)
    await take.refuses(dynamic, "is a vhd")


async def test_holes_are_not_read(take: Importer, tmp_path: Path) -> None:
    """Import 64 GiB in seconds, without a hash: reading the holes takes more than a minute."""
    path = make_disk(tmp_path / "large.raw")
    os.truncate(path, 64 << 30)
    began = time.thread_time() + sum(os.times()[2:4])
    image = await take(path)
    assert (image.origin or {}).keys() == {"source", "format"}
    assert time.thread_time() + sum(os.times()[2:4]) - began < 10, "processor time of the import"


async def test_the_note_of_an_export(take: Importer, disk: Path, expected: str, tmp_path: Path) -> None:
    qcow2 = convert(disk, "qcow2-compressed", tmp_path / "web.qcow2")
    write_note(qcow2, ExportNote(agent=True, os="debian", version="12"))
    subprocess.run(["qemu-img", "check", "-q", qcow2], check=True)
    image = await take(qcow2)
    assert (image.agent, image.lived, image.os, image.version) == ("installed", True, "debian", "12")
    assert image.digest != expected
    assert (await take(qcow2, agent=False)).digest == expected, "the note is no order"
    assert (await take(disk, agent=True)).lived
    for wrong in (b'{"bough":2,"agent":true}', b'{"bough":1,"agent":true,"run":"id"}', b"\xff" * 9):
        data = bytearray(qcow2.read_bytes())
        place = data.index(b'{"bough"')
        end = data.index(b"}", place) + 1
        data[place:end] = wrong.ljust(end - place)
        (tmp_path / "x.qcow2").write_bytes(data)
        assert (await take(tmp_path / "x.qcow2")).digest == expected, "it is anybody's disk then"


async def test_a_reference_to_a_file_of_the_host(take: Importer, tmp_path: Path) -> None:
    secret = make_disk(tmp_path / "secret.raw", 1)
    run = ["qemu-img", "create", "-q", "-f"]
    backed, external = tmp_path / "backed.qcow2", tmp_path / "external.qcow2"
    subprocess.run([*run, "qcow2", "-b", secret, "-F", "raw", backed], check=True)
    await take.refuses(backed, "secret.raw")
    subprocess.run([*run, "qcow2", "-o", f"data_file={secret},data_file_raw=on", external, "1M"], check=True)
    await take.refuses(external, "data file")
    subprocess.run([*run, "vmdk", tmp_path / "base.vmdk", "1M"], check=True)
    subprocess.run(
        [*run, "vmdk", "-b", tmp_path / "base.vmdk", "-F", "vmdk", tmp_path / "child.vmdk"], check=True
    )
    await take.refuses(tmp_path / "child.vmdk", "parent")
    flat = tmp_path / "flat.vmdk"
    subprocess.run([*run, "vmdk", "-o", "subformat=monolithicFlat", flat, "1M"], check=True)
    await take.refuses(flat, "description")
    embedded = bytearray((tmp_path / "base.vmdk").read_bytes())
    embedded[12:20] = bytes(8)
    (tmp_path / "capacity0.vmdk").write_bytes(embedded)
    await take.refuses(tmp_path / "capacity0.vmdk", "extent")


async def test_the_jail_sees_no_file_of_the_host(take: Importer, tmp_path: Path) -> None:
    """The jail is the second barrier, in case a check of a header fails."""
    secret = make_disk(tmp_path / "secret.raw", 1)
    backed = tmp_path / "backed.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", backed], check=True)
    backed.chmod(0o644)
    qemu_img = shutil.which("qemu-img") or "qemu-img"
    argv = [qemu_img, "convert", "-f", "qcow2", "-O", "raw", str(backed), "/tmp/out"]
    done = await run_confined(take.confinement, argv, read_only=(backed,))
    assert done.status != 0
    assert "No such file" in done.output
    done = await run_confined(take.confinement, ["/bin/sh", "-c", "ls /etc /root /home; ls /var/tmp; id -u"])
    assert "passwd" not in done.output
    assert "bough-import" not in done.output


async def test_absurd_sizes(take: Importer, tmp_path: Path) -> None:
    for format, size in (("qcow2", "4T"), ("vdi", "4T"), ("vhdx", "4T"), ("vmdk", "4T")):
        image = tmp_path / f"large.{format}"
        subprocess.run(["qemu-img", "create", "-q", "-f", format, image, size], check=True)
        await take.refuses(image, "more than the limit of 2 TiB")
    image = tmp_path / "huge.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    with image.open("r+b") as stream:
        stream.seek(24)
        stream.write(struct.pack(">Q", (1 << 64) - 1))
    await take.refuses(image, "2^64 bytes")
    # The rest of the header contradicts its size: QEMU finds a disk of another size than allowed.
    with image.open("r+b") as stream:
        stream.seek(24)
        stream.write(struct.pack(">Q", 1 << 40))
    await take.refuses(image, "")


async def test_what_is_no_disk(take: Importer, tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    for content, says in (
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"PK\x03\x04" + bytes(600), "zip"),
        (b"hello\n" * 300, "no known disk format"),
        (b"QFI\xfb\0\0\0\1" + bytes(200), "version 1"),
    ):
        path.write_bytes(content)
        await take.refuses(path, says)
    path.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(20))
    await take.refuses(path, "in the middle of its qcow2 header")
    await take.refuses(path, "not a vmdk", format="vmdk")
    await take.refuses(tmp_path / "absent", "no file", NotFound)
    await take.refuses("ftp://example.org/x", "not an http or https address", DownloadFailed)
    await take.refuses(path, "not a valid image name", InvalidInput, label="a b")
    await take.refuses(path, "unknown format", InvalidInput, format="vpc")


async def test_another_architecture(take: Importer, debian_disk: Path) -> None:
    await take.refuses(debian_disk, "boots x86_64, not aarch64", arch="aarch64", arch_given=True)
    manifest = await take(debian_disk, arch="aarch64")
    assert (manifest.arch, manifest.firmware) == ("x86_64", ("bios", "uefi"))


@pytest.fixture
def debian_disk(place: Path) -> Path:
    """Make the partitions and boot loader of a disk for UEFI and BIOS, without a system to start."""
    path = make_disk(place / "uefi.raw", 40)
    # A BIOS's loader on a GPT needs a partition of its own beside the EFI system partition.
    table = (
        "label: gpt\nstart=2048, size=65536, type=U\nsize=2048, type=21686148-6449-6E6F-744E-656564454649\n"
    )
    subprocess.run(["/usr/sbin/sfdisk", "-q", path], input=table, text=True, check=True)
    where = f"{path}@@1M"
    (place / "x.efi").write_bytes(b"MZ")
    environment = os.environ | {"MTOOLS_SKIP_CHECK": "1"}
    for argv in (
        ["mformat", "-i", where, "-T", "65536", "-h", "16", "-s", "32", "::"],
        ["mmd", "-i", where, "::/EFI", "::/EFI/BOOT"],
        ["mcopy", "-i", where, place / "x.efi", "::/EFI/BOOT/BOOTX64.EFI"],
    ):
        subprocess.run(argv, check=True, env=environment)
    return path


async def test_checksums(take: Importer, disk: Path, expected: str) -> None:
    right = (await take(disk)).origin or {}
    assert (await take(disk, checksum=right["sha256"].upper())).digest == expected
    await take.refuses(disk, "not the requested file", checksum="0" * 64)
    await take.refuses(disk, "not a sha256 checksum", InvalidInput, checksum="0" * 63)


async def test_cancelled_at_any_moment(take: Importer, disk: Path, tmp_path: Path) -> None:
    packed = pack(convert(disk, "vmdk", tmp_path / "d.vmdk"), "xz", tmp_path / "d.vmdk.xz")
    began = time.monotonic()
    await take(packed)
    whole_s = time.monotonic() - began
    for moment in range(24):  # the last moments are in the removal of its directory
        task = asyncio.create_task(take(packed))
        await asyncio.sleep(moment * whole_s / 20)
        task.cancel()
        if moment % 2:  # cancel again, during the clean-up
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        take.nothing_half_made()


# -- downloads ----------------------------------------------------------------------------------------


async def test_a_download(take: Importer, disk: Path, tmp_path: Path) -> None:
    content = convert(disk, "qcow2", tmp_path / "d.qcow2").read_bytes()
    with serve(content, redirects=3) as server:
        manifest = await take(server.url, label="web", os="debian")
        assert manifest.origin is not None
        assert manifest.origin["source"] == server.url
        assert len(manifest.origin["sha256"]) == 64
    assert list(take.store.home.downloads.iterdir()) == []


async def test_a_download_goes_on_where_it_broke_off(
    take: Importer, disk: Path, expected: str, tmp_path: Path
) -> None:
    content = convert(disk, "qcow2", tmp_path / "d.qcow2").read_bytes()
    with serve(content, break_after=[700_000, 900_000]) as server:
        assert (await take(server.url)).digest == expected
        assert server.requests == [None, "bytes=700000-", "bytes=1600000-"]
    with serve(content, break_after=[700_000], etag=None) as server:
        assert (await take(server.url)).digest == expected
        assert server.requests == [None, None], "without a version there is nothing to go on with"


async def test_the_next_command_goes_on(take: Importer, disk: Path, expected: str, tmp_path: Path) -> None:
    content = convert(disk, "qcow2", tmp_path / "d.qcow2").read_bytes()
    with serve(content, break_after=[500_000, 0, 0, 0, 0]) as server:
        await take.refuses(server.url, "of 2", DownloadFailed)
        assert (await take(server.url)).digest == expected
        assert server.requests[-1] == "bytes=500000-"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"redirects": 99}, "redirects more than 5 times"),
        ({"redirects": "file:///etc/passwd"}, "not an http or https address"),
        ({"status": 404}, "answered 404"),
        ({"told_length": 5 * 1024 * MIB}, "was changed on the server"),
        ({"told_length": 10**15}, "more than the limit of 2 TiB"),
        ({"told_length": 1_000_000}, ""),
        ({"break_after": [600_000], "changes_to": b"other" * 500_000}, "was changed on the server"),
    ],
)
async def test_a_bad_server(
    take: Importer, disk: Path, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    content = convert(disk, "qcow2", tmp_path / "d.qcow2").read_bytes()
    with serve(content, **settings) as server:
        await take.refuses(server.url, says, BoughError)


async def test_a_server_that_stalls(take: Importer, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bough.images.download.STALL_S", 0.3)
    monkeypatch.setattr("bough.images.imports.STALL_S", 0.3)
    with serve(disk.read_bytes(), stall_after=0) as server:
        await take.refuses(server.url, "could not be downloaded", DownloadFailed)
        assert len(server.requests) == 4
