"""Disks with headers from a hostile QEMU: the files that a header names are not read."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from bough.errors import BoughError
from bough.images.confined import Confinement
from bough.images.overlays import check_disk, read_backing, render_chain
from bough.qemu.jail import Jail

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="no qemu-img here")
MIB = 1 << 20
#: A host without any jail: files that the header names would be readable.
OPEN = Confinement(Jail(), None)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.raw"
    path.write_bytes(b"secret! " * (MIB // 8))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.raw"
    path.write_bytes(b"\1" * MIB)
    return path


def overlay(path: Path, backing: Path | str, format: str = "raw") -> Path:
    command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", str(backing), "-F", format]
    subprocess.run([*command, path, str(MIB)], check=True)
    return path


def content(node: str, tmp_path: Path) -> bytes:
    out = tmp_path / "out.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", node, out], check=True)
    return out.read_bytes()


def test_a_disk_stands_on_what_the_record_says(tmp_path: Path, base: Path, secret: Path) -> None:
    hostile = overlay(tmp_path / "disk.qcow2", secret)
    assert content(str(hostile), tmp_path) == secret.read_bytes(), "which the header alone would give away"
    assert content(render_chain([hostile, base]), tmp_path) == base.read_bytes()
    assert content(render_chain([hostile]), tmp_path) == b"\0" * MIB


def test_so_does_a_layer_in_the_middle(tmp_path: Path, base: Path, secret: Path) -> None:
    middle = overlay(tmp_path / "middle.qcow2", secret)
    top = overlay(tmp_path / "top.qcow2", middle, "qcow2")
    assert content(str(top), tmp_path) == secret.read_bytes()
    assert content(render_chain([top, middle, base]), tmp_path) == base.read_bytes()


def test_data_in_another_file_is_refused(tmp_path: Path, base: Path) -> None:
    hostile, data = tmp_path / "disk.qcow2", tmp_path / "data.raw"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}"]
    subprocess.run([*command, hostile, str(MIB)], check=True)
    with pytest.raises(BoughError, match="external data file"):
        render_chain([hostile, base])


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_what_is_no_file_is_refused(tmp_path: Path, base: Path, secret: Path, kind: str) -> None:
    disk = tmp_path / "disk.qcow2"
    if kind == "link":
        disk.symlink_to(overlay(tmp_path / "other.qcow2", secret))
    elif kind == "fifo":
        os.mkfifo(disk)
    else:
        disk.mkdir()
    with pytest.raises(BoughError, match="is damaged"):
        render_chain([disk, base])


def test_a_raw_disk_that_begins_like_a_qcow2(tmp_path: Path, base: Path, secret: Path) -> None:
    image = tmp_path / "disk.raw"
    shutil.copy(overlay(tmp_path / "inside.qcow2", secret), image)
    assert read_backing(image) is None
    assert b"secret!" not in content(render_chain([image]), tmp_path)


async def test_a_check_opens_nothing_else(tmp_path: Path) -> None:
    # A FIFO without a writer: a reader would wait forever.
    fifo = tmp_path / "fifo.raw"
    os.mkfifo(fifo)
    found = await check_disk(overlay(tmp_path / "disk.qcow2", fifo), OPEN)
    assert (found.status, found.report["check-errors"]) == (0, 0)


async def test_a_check_of_a_broken_disk(tmp_path: Path, base: Path) -> None:
    disk = overlay(tmp_path / "disk.qcow2", base)
    with disk.open("r+b") as stream:  # the header claims that the table of clusters is at the header's place
        stream.seek(40)
        stream.write(struct.pack(">Q", 0))
    found = await check_disk(disk, OPEN)
    assert found.status not in (0, 3)
    assert found.why or found.report
