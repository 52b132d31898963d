"""`bough doctor --store` on damaged homes, with every kind of damage that it knows."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bough.audit.files import Look
from bough.audit.store import audit_store
from bough.audit.sweep import sweep_unfinished_writes
from bough.errors import NotFound, WrongState
from bough.home import SocketAddress
from bough.images.disk import digest_image
from bough.images.store import ImageManifest, ImageStore
from bough.machines.record import Hardware, MachineRecord
from bough.networks.record import NetworkRecord
from bough.paths import Home, MachinePaths
from bough.spec import parse_spec
from bough.storage import write_json

MIB = 1 << 20
needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="no qemu-img here")


@asynccontextmanager
async def _stopped(_: str) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def _running(_: str) -> AsyncIterator[None]:
    raise WrongState("it runs")
    yield


@asynccontextmanager
async def _gone(_: str) -> AsyncIterator[None]:
    raise NotFound("no machine is called that")
    yield


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return an intact home with one image, one label and one machine."""
    home = Home.at(tmp_path / "home")
    home.create()
    made = home.incoming / "made"
    made.mkdir(mode=0o711)
    (made / "disk.raw").write_bytes(b"\1" * MIB)
    digest = _digest(made / "disk.raw")
    manifest = _manifest(digest)
    ImageStore(home).add(made, manifest, "test:1")
    _add_machine(home, "aaaaaaaaaaaa", "web", digest)
    return home


def _manifest(digest: str) -> ImageManifest:
    return ImageManifest(
        digest=digest, os="test", version="1", arch="x86_64", firmware=("bios",), size_bytes=MIB,
        root_partition=1, agent="installed", created="2020-01-01T00:00:00.000+00:00", label="test:1",
        recipe="r",
    )  # fmt: skip


def _digest(disk: Path) -> str:
    return digest_image(disk, _manifest("").model_dump(mode="json"))


def _add_machine(home: Home, machine_id: str, name: str, digest: str) -> MachinePaths:
    paths = home.machine(machine_id)
    for directory in (paths.root, paths.disks, paths.log):
        directory.mkdir(mode=0o711)
    record = MachineRecord(
        id=machine_id, name=name, spec=parse_spec({"image": "test:1"}), image_digest=digest, image_agent=True,
        created="2020-01-01T00:00:00.000+00:00",
        hardware=Hardware(arch="x86_64", machine_type="pc-q35-7.2", cpu_model="max", firmware="bios",
                          uuid="u", vmgenid="v", nics=[], uid=None),
    )  # fmt: skip
    record.write(paths)
    if shutil.which("qemu-img"):
        backing = f"../../../images/{digest}/disk.raw"
        command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw"]
        subprocess.run([*command, paths.disk(0), str(MIB)], check=True)
        paths.disk(0).chmod(0o600)
    return paths


async def look(home: Home, *, repair: bool = False, hold: Any = _stopped, **known: Any) -> dict[str, Any]:
    return await audit_store(Look(home, **known), hold, repair=repair)


def kinds(found: dict[str, Any]) -> list[str]:
    return sorted(finding["kind"] for finding in found["findings"])


def machine(home: Home) -> MachinePaths:
    return home.machine("aaaaaaaaaaaa")


@needs_qemu_img
async def test_a_home_that_is_right_is_clean(home: Home) -> None:
    found = await look(home)
    assert found["findings"] == []
    assert found["skipped"] == []
    assert (found["clean"], found["images"], found["machines"]) == (True, 1, 1)


@needs_qemu_img
@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe", b'{"version": 1, "id": "x"}'])
async def test_a_record_that_cannot_be_read_is_set_aside_with_its_disks(home: Home, content: bytes) -> None:
    machine(home).record.write_bytes(content)
    found = await look(home)
    assert kinds(found) == ["record-unreadable"]
    assert not found["clean"]
    assert machine(home).root.is_dir(), "a look changes nothing"
    done = await look(home, repair=True)
    assert done["clean"], done
    (place,) = home.lost_and_found.iterdir()
    assert (place / "machines/aaaaaaaaaaaa/machine.json").read_bytes() == content
    assert (place / "machines/aaaaaaaaaaaa/disks/0.qcow2").exists()
    assert "cannot be read" in json.loads((place / "why.json").read_bytes())[0]["why"]
    assert (await look(home))["findings"] == []


@needs_qemu_img
async def test_what_belongs_to_nothing(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        (home.runtime / "bbbbbbbbbbbb").mkdir()
        with SocketAddress(home.runtime / "bbbbbbbbbbbb" / "qmp.sock") as address:
            listener.bind(address)
    strays = [
        home.root / "note.txt",
        home.machines / "file",
        home.images / "dangling",
        machine(home).root / "core",
        machine(home).disks / "1.qcow2",
        machine(home).disks / "..raw",
        machine(home).log / "extra",
        home.incoming / "cccccccccccc",
    ]
    for path in strays:
        path.write_text("?")
    (home.images / "dangling").unlink()
    (home.images / "dangling").symlink_to("/etc/passwd")
    found = await look(home)
    assert kinds(found) == ["half-made"] + ["stray"] * 9
    done = await look(home, repair=True)
    assert done["clean"], done
    assert (await look(home))["findings"] == []
    kept = {path.name for path in home.lost_and_found.rglob("*") if path.is_symlink() or path.is_file()}
    assert {path.name for path in strays} <= kept
    assert not (home.runtime / "bbbbbbbbbbbb").exists()
    assert Path("/etc/passwd").exists()


@needs_qemu_img
async def test_what_is_being_made_is_left_alone(home: Home) -> None:
    (home.incoming / "cccccccccccc").mkdir()
    (home.runtime / "cccccccccccc").mkdir()
    found = await look(home, making=True, repair=True)
    assert found["clean"]
    assert (home.incoming / "cccccccccccc").is_dir()
    assert found["skipped"][0]["what"] == "incoming/"


@needs_qemu_img
async def test_further_disks_of_what_only_stands_by_are_its_own(home: Home) -> None:
    """Further disks belong to a standby machine: it is being pre-warmed, and records them a moment later."""
    (machine(home).disks / "0-aaaaaaaa.qcow2").touch(0o600)
    assert kinds(await look(home)) == ["stray"]
    record = MachineRecord.read(machine(home))
    record.model_copy(update={"standby": True}).write(machine(home))
    assert (await look(home))["clean"]


@needs_qemu_img
async def test_writes_that_were_never_finished(home: Home) -> None:
    for directory in (home.root, machine(home).root, home.images / _only_image(home)):
        (directory / ".machine.json.abcd_123").write_text("{")
    assert kinds(await look(home)) == ["half-made"] * 3
    sweep_unfinished_writes(home)
    assert (await look(home))["findings"] == []


def _only_image(home: Home) -> str:
    (manifest,) = ImageStore(home)._manifests()
    return manifest.digest


@needs_qemu_img
async def test_an_image_that_lost_a_bit(home: Home) -> None:
    disk = home.image(_only_image(home)).disk
    disk.chmod(0o644)
    disk.write_bytes(b"\1" * (MIB - 1) + b"\3")
    disk.chmod(0o444)
    found = await look(home, repair=True)
    assert kinds(found) == ["image-damaged"]
    assert disk.exists(), "a machine stands on it"


@needs_qemu_img
@pytest.mark.parametrize("what", ["manifest", "disk", "size"])
async def test_a_damaged_image(home: Home, what: str) -> None:
    digest = _only_image(home)
    paths = home.image(digest)
    shutil.rmtree(machine(home).root)
    if what == "manifest":
        paths.manifest.unlink()
    elif what == "disk":
        paths.disk.unlink()
    else:
        paths.disk.chmod(0o644)
        with paths.disk.open("r+b") as stream:
            stream.truncate(5)
        paths.disk.chmod(0o444)
    found = await look(home, repair=True)
    assert kinds(found)[0].startswith("image-")
    assert not paths.root.exists()
    await look(home, repair=True)  # the label of an image that has been deleted
    assert (await look(home))["findings"] == []
    assert json.loads(home.labels.read_bytes()) == {}


@needs_qemu_img
async def test_labels(home: Home) -> None:
    digest = _only_image(home)
    write_json(home.labels, {"test:1": digest, "gone:1": "0" * 64})
    assert kinds(await look(home)) == ["label-dangling"]
    assert (await look(home, repair=True))["clean"]
    assert json.loads(home.labels.read_bytes()) == {"test:1": digest}
    home.labels.write_bytes(b'{"test:1": ')
    assert ImageStore(home).resolve("test:1").digest == digest, "images say themselves what they are called"
    assert kinds(await look(home)) == ["labels-unreadable"]
    assert (await look(home, repair=True))["clean"]
    assert json.loads(home.labels.read_bytes()) == {"test:1": digest}


@needs_qemu_img
async def test_modes(home: Home) -> None:
    machine(home).disk(0).chmod(0o666)
    machine(home).record.chmod(0o644)
    home.machines.chmod(0o777)
    home.image(_only_image(home)).disk.chmod(0o644)
    assert kinds(await look(home)) == ["mode"] * 4
    assert (await look(home, repair=True))["clean"]
    assert (await look(home))["findings"] == []
    assert machine(home).disk(0).stat().st_mode & 0o777 == 0o600


@needs_qemu_img
async def test_disks_that_are_missing_damaged_or_lead_elsewhere(home: Home) -> None:
    disk = machine(home).disk(0)
    whole = disk.read_bytes()
    disk.unlink()
    assert kinds(await look(home, repair=True)) == ["disk-missing"]
    disk.write_bytes(b"")
    disk.chmod(0o600)
    assert kinds(await look(home)) == ["disk-damaged"]
    disk.write_bytes(whole[:50])
    assert kinds(await look(home)) == ["disk-damaged"]
    # The header claims that the L1 table is at the header's own place.
    disk.write_bytes(whole[:40] + struct.pack(">Q", 0) + whole[48:])
    assert kinds(await look(home)) == ["disk-damaged"]
    offset = struct.unpack(">Q", whole[8:16])[0]
    inside, outside = b"../../../images/x", b"../../../images/../../../../../etc/passwd"
    for name in (b"/etc/passwd", b"json:{}", inside, outside):
        pointer = struct.pack(">QI", offset, len(name))
        disk.write_bytes(whole[:8] + pointer + whole[20:offset] + name + whole[offset + len(name) :])
        found = await look(home, repair=True)
        assert kinds(found) == ["disk-damaged"], name
        assert disk.exists()


@needs_qemu_img
async def test_the_image_of_a_machine_is_gone(home: Home) -> None:
    shutil.move(home.image(_only_image(home)).root, home.root.parent / "away")
    found = await look(home)
    assert kinds(found) == ["disk-damaged", "image-missing", "label-dangling"]


@needs_qemu_img
async def test_leaks_are_harmless_and_given_back(home: Home) -> None:
    disk = machine(home).disk(0)
    with disk.open("r+b") as stream:
        refcounts = struct.unpack(">Q", disk.read_bytes()[48:56])[0]
        stream.seek(refcounts)
        block = struct.unpack(">Q", stream.read(8))[0]
        stream.seek(block + 2 * 40)
        stream.write(b"\0\1")
        stream.truncate(48 * 64 * 1024)
    found = await look(home)
    assert kinds(found) == ["disk-leaks"]
    assert found["clean"]
    assert (await look(home, repair=True))["findings"][0]["repaired"]
    assert (await look(home))["findings"] == []


@needs_qemu_img
async def test_a_machine_that_runs_is_not_checked_and_that_is_said(home: Home) -> None:
    found = await look(home, hold=_running, live={"aaaaaaaaaaaa"})
    assert found["clean"]
    assert found["skipped"] == [{"what": "disks of web", "why": "the machine is in use; stop it first"}]


@needs_qemu_img
async def test_a_machine_that_is_deleted_meanwhile_is_nobodys_fault(home: Home) -> None:
    found = await look(home, hold=_gone)
    assert found["clean"]
    assert not found["skipped"]


@needs_qemu_img
@needs_qemu_img
async def test_networks(home: Home) -> None:
    record = NetworkRecord(
        id="cccccccccccc",
        name="back",
        subnet="10.1.0.0/24",
        prefix6="fd00::/64",
        switch_mac="52:54:00:00:00:01",
        created="2020-01-01",
    )
    path = home.network(record.id).record
    record.write(home.network(record.id))
    assert kinds(await look(home)) == []
    path.write_text("{")
    (home.networks / "notes").write_text("x")
    assert kinds(await look(home)) == ["network-unreadable", "stray"]
    assert (await look(home, repair=True))["clean"]
    assert list(home.networks.iterdir()) == []


async def test_two_machines_of_one_name(home: Home) -> None:
    _add_machine(home, "bbbbbbbbbbbb", "web", _only_image(home))
    assert kinds(await look(home)) == ["name-twice"]


@needs_qemu_img
async def test_stale_control_groups(home: Home, tmp_path: Path) -> None:
    import os

    base = tmp_path / "groups"
    for name, processes in (("old", ""), ("used", "17\n"), ("aaaaaaaaaaaa", ""), ("fresh", "")):
        (base / name).mkdir(parents=True)
        (base / name / "cgroup.procs").write_text(processes)
        if name != "fresh":
            os.utime(base / name, (1, 1))
    found = await look(home, group_bases=(str(base),), live={"aaaaaaaaaaaa"})
    assert [finding["path"] for finding in found["findings"]] == [str(base / "old")]
    assert found["clean"], "it costs nothing"
