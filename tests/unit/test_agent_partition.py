"""The growth of a partition table, compared with the table that sfdisk reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bough.guest.agent_calls import OperationFailed
from bough.guest.agent_partition import SECTOR, grow_table

PATH = f"/usr/sbin:/sbin:{os.environ['PATH']}"
SFDISK = shutil.which("sfdisk", path=PATH)
pytestmark = pytest.mark.skipif(SFDISK is None, reason="needs sfdisk (package fdisk)")
OLD, NEW = 20 << 20, 50 << 20


@pytest.fixture(params=["gpt", "dos"])
def table(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def disk(tmp_path: Path, table: str) -> Path:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, OLD)
    script = f"label: {table}\nstart=2048,size=4096\nstart=8192,size=8192\n"
    subprocess.run([str(SFDISK), "-q", path], input=script, text=True, check=True)
    os.truncate(path, NEW)
    return path


def grow(disk: Path, number: int) -> int:
    fd = os.open(disk, os.O_RDWR)
    try:
        return grow_table(fd, number, NEW // SECTOR)
    finally:
        os.close(fd)


def read(disk: Path) -> list[dict[str, object]]:
    done = subprocess.run([str(SFDISK), "--json", disk], capture_output=True, text=True, check=True)
    assert done.stderr == "", done.stderr
    partitions: list[dict[str, object]] = json.loads(done.stdout)["partitiontable"]["partitions"]
    return partitions


def test_the_last_partition_ends_at_the_end(disk: Path, table: str) -> None:
    length = grow(disk, 2)
    first, second = read(disk)
    assert (first["start"], first["size"]) == (2048, 4096)
    assert (second["start"], second["size"]) == (8192, length)
    spare = NEW // SECTOR - 8192 - length
    assert spare == (33 if table == "gpt" else 0)
    verified = subprocess.run([str(SFDISK), "--verify", disk], capture_output=True, text=True, check=True)
    assert "No errors" in verified.stdout


def test_the_backup_alone_is_valid(disk: Path, table: str) -> None:
    if table != "gpt":
        pytest.skip("only a GPT has a backup")
    length = grow(disk, 2)
    with disk.open("r+b") as file:
        file.seek(SECTOR)
        file.write(bytes(SECTOR))
    done = subprocess.run([str(SFDISK), "--json", disk], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["partitiontable"]["partitions"][1]["size"] == length


@pytest.mark.parametrize("number", [0, 3, 200])
def test_a_partition_that_is_not_there(disk: Path, number: int) -> None:
    before = disk.read_bytes()
    with pytest.raises(OperationFailed):
        grow(disk, number)
    assert disk.read_bytes() == before


def test_a_damaged_table_is_left_alone(disk: Path, table: str) -> None:
    with disk.open("r+b") as file:
        file.seek(SECTOR + 40 if table == "gpt" else 510)
        file.write(b"\x99\x99")
    before = disk.read_bytes()
    with pytest.raises(OperationFailed, match=r"damaged|no partition table"):
        grow(disk, 2)
    assert disk.read_bytes() == before
