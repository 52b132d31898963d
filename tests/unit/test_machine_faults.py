"""Faults of machines, without machines: rules, nodes, clocks, logs of writes."""

from __future__ import annotations

import asyncio
import shutil
import struct
import subprocess
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bough.errors import Conflict, InvalidInput, MachineFailed, QmpRefused
from bough.machines.clock import offset_ns
from bough.machines.faults import cable, disk
from bough.machines.faults.sector_overlay import write_overlay
from bough.machines.faults.strikes import kill_in_guest
from bough.machines.faults.write_log import read_synced
from bough.machines.record import ClockFault, MachineRecord
from bough.qemu.qmp import Qmp

MIB = 1 << 20


# -- disks ------------------------------------------------------------------------------------------


def failure(**given: Any) -> list[dict[str, Any]]:
    usual: dict[str, Any] = {
        "error": "EIO",
        "once": False,
        "rate": None,
        "area": None,
        "size_bytes": 64 * MIB,
    }
    return disk.render_failure("write", **{**usual, "seed": 1, **given})


def test_rules_of_failures() -> None:
    assert failure(once=True, error="enospc") == [
        {"event": "none", "iotype": "write", "errno": 28, "once": True}
    ]
    assert [rule["sector"] for rule in failure(area=(4096, 12289))] == [8, 16, 24]
    some = failure(rate=1)
    assert len(some) == 164
    assert some == failure(rate=1) != failure(rate=1, seed=2)
    assert {rule["sector"] % 8 for rule in some} == {0}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"error": "EVIL"}, "'EVIL' is no error of Linux"),
        ({"error": "errorcode"}, "is no error"),
        ({"rate": 0}, "above 0 and at most 100"),
        ({"rate": 120}, "above 0 and at most 100"),
        ({"area": (0, 65 * MIB)}, "lies within the disk"),
        ({"area": (9, 9)}, "lies within the disk"),
        ({"size_bytes": 1 << 40, "rate": 10}, "the most is 2048"),
    ],
)
def test_senseless_failures(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        failure(**given)


def test_a_flush_has_no_place() -> None:
    with pytest.raises(InvalidInput, match="a flush has no place"):
        disk.render_failure("flush", error="EIO", once=False, rate=1, area=None, size_bytes=MIB, seed=0)


def test_limits() -> None:
    assert disk.render_limits(MIB, 0) == {"bps-total": MIB}
    assert disk.render_limits(0, 50) == {"iops-total": 50}
    for bad in ((0, 0), (-1, 5), (10, 0)):
        with pytest.raises(InvalidInput):
            disk.render_limits(*bad)


class FakeQmp:
    """A QEMU with one disk. It reports the device as `qdev`, and has the disk at `path`."""

    path = "/machine/peripheral/disk0-device/virtio-backend"
    qdev = path

    def __init__(self) -> None:
        self.node = "disk0"
        self.nodes = {"disk0"}
        self.objects: set[str] = set()
        self.refuses = ""

    async def query_list(self, _: str) -> list[dict[str, Any]]:
        return [{"qdev": self.qdev, "inserted": {"node-name": self.node}}]

    async def execute(self, command: str, **given: Any) -> None:
        if command == self.refuses:
            raise QmpRefused("no", command=command)
        if command == "blockdev-add":
            self.nodes.add(given["node-name"])
        elif command == "blockdev-del":
            if given["node-name"] not in self.nodes:
                raise QmpRefused("no such node", command=command)
            self.nodes.remove(given["node-name"])
        elif command == "object-add":
            self.objects.add(given["id"])
        elif command == "object-del":
            if given["id"] not in self.objects:
                raise QmpRefused("no such object", command=command)
            self.objects.remove(given["id"])
        elif command == "qom-set":
            assert given["value"] != self.node, "QEMU 7.2 aborts"
            assert given["value"] in self.nodes
            assert given["path"] == self.path
            self.node = given["value"]


def test_nodes_are_put_in_front_and_taken_off() -> None:
    async def run() -> None:
        qemu = FakeQmp()
        qmp = cast(Qmp, qemu)
        assert await disk.put_failure(qmp, "disk0", "fault-1", failure()) == "disk0"
        assert qemu.node == "fault-1"
        with pytest.raises(Conflict, match="disk0 has a fault already"):
            await disk.put_throttle(qmp, "disk0", "fault-2", {"iops-total": 1})
        for _ in range(2):
            await disk.take_off(qmp, "disk0", "fault-1", "disk0")
            assert (qemu.node, qemu.nodes) == ("disk0", {"disk0"})
        await disk.put_throttle(qmp, "disk0", "fault-2", {"iops-total": 1})
        await disk.take_off(qmp, "disk0", "fault-2", "disk0")
        assert (qemu.node, qemu.objects) == ("disk0", set())
        qemu.refuses = "qom-set"
        with pytest.raises(QmpRefused):
            await disk.put_throttle(qmp, "disk0", "fault-3", {"iops-total": 1})
        assert (qemu.nodes, qemu.objects) == ({"disk0"}, set())
        with pytest.raises(MachineFailed, match="QEMU reports no disk1"):
            await disk.present_node(qmp, "disk1")

    asyncio.run(run())


class FakeQmpWithSata(FakeQmp):
    """Devices of other buses than virtio have their id as name."""

    path = "/machine/peripheral/disk0-device"
    qdev = "disk0-device"


def test_faults_of_a_disk_on_another_bus() -> None:
    async def run() -> None:
        qemu = FakeQmpWithSata()
        assert await disk.put_failure(cast(Qmp, qemu), "disk0", "fault-1", failure()) == "disk0"
        await disk.take_off(cast(Qmp, qemu), "disk0", "fault-1", "disk0")
        assert (qemu.node, qemu.nodes) == ("disk0", {"disk0"})

    asyncio.run(run())


# -- cables, clocks, signals ------------------------------------------------------------------------


def record_with(*cards: tuple[str, int]) -> MachineRecord:
    spec = SimpleNamespace(network_cards=[SimpleNamespace(network=network) for network, _ in cards])
    nics = [SimpleNamespace(place=place) for _, place in cards]
    return cast(MachineRecord, SimpleNamespace(name="m", spec=spec, hardware=SimpleNamespace(nics=nics)))


def test_cables() -> None:
    assert cable.find_card(record_with(("uplink", 0), ("back", 1)), None) == ("nic1-device", "back")
    assert cable.find_card(record_with(("uplink", 0), ("back", 1)), "uplink") == ("uplink-device", "uplink")
    assert cable.find_card(record_with(("back", 0)), None) == ("nic0-device", "back")
    assert cable.find_card(record_with(("uplink", 0)), None) == ("uplink-device", "uplink")
    with pytest.raises(InvalidInput, match="which cable, back, front"):
        cable.find_card(record_with(("back", 0), ("front", 1)), None)
    for cards, network in ((record_with(("back", 0)), "front"), (record_with(), None)):
        with pytest.raises(Conflict, match="has no network card on"):
            cable.find_card(cards, network)


def test_a_wrong_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ClockFault(jump_s=-100, drift_ppm=1000, since=5000.0)
    monkeypatch.setattr("bough.machines.clock.time.time", lambda: 6000.0)
    spec = SimpleNamespace(clock_offset_s=None)
    record = cast(MachineRecord, SimpleNamespace(spec=spec, clock_fault=wrong))
    assert offset_ns(record) == -99 * 10**9
    spec.clock_offset_s = 7
    assert offset_ns(record) == -92 * 10**9


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"unit": None, "process": None}, "give a unit or a process"),
        ({"unit": "a", "process": "b"}, "give a unit or a process"),
        ({"unit": "a b", "process": None}, "is no name of a unit"),
        ({"unit": None, "process": "-x"}, "is no name of a process"),
        ({"unit": "a", "process": None, "signal": "K;L"}, "is no signal"),
    ],
)
def test_senseless_kills(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        asyncio.run(kill_in_guest(cast(Any, None), **{"signal": "KILL", **given}))


# -- power cuts -------------------------------------------------------------------------------------


class Recorded:
    """A log of random writes, and the disk's content after the last flush."""

    def __init__(self, path: Path, size: int, entries: int) -> None:
        random = Random(1)
        self.now = bytearray(b"\7" * size)
        self.synced = bytes(self.now)
        with path.open("wb") as log:
            log.write(struct.pack("<QQQI", 0x6A736677736872, 1, 0, 512).ljust(512, b"\0"))
            for number in range(entries):
                if number % 10 == 9:
                    log.write(struct.pack("<QQQQ", 0, 0, 1, 0).ljust(512, b"\0"))
                    self.synced = bytes(self.now)
                    continue
                count = random.choice((1, 8, 8, 200))
                start = random.randrange(size // 512 - count)
                data = random.randbytes(count * 512)
                log.write(struct.pack("<QQQQ", start, count, 0, 0).ljust(512, b"\0") + data)
                self.now[start * 512 : (start + count) * 512] = data


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
def test_the_content_at_the_last_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    size = 8 * MIB
    log = Path("w.log")
    made = Recorded(log, size, 95)
    Path("base.raw").write_bytes(b"\7" * size)

    def content(seed: int | None) -> bytes:
        overlay, target = Path("w.qcow2"), Path("w.raw")
        for path in (overlay, target):
            path.unlink(missing_ok=True)
        writes = read_synced(log, seed)
        write_overlay(overlay, log, writes, size_bytes=size, backing="base.raw", backing_format="raw")
        subprocess.run(["qemu-img", "convert", "-O", "raw", overlay, target], check=True)
        return target.read_bytes()

    assert content(None) == made.synced != bytes(made.now)
    kept = [content(seed) for seed in range(4)]
    assert kept == [content(seed) for seed in range(4)]
    assert set(kept) - {made.synced, bytes(made.now)}


def test_cut_off_and_hostile_logs(tmp_path: Path) -> None:
    log = tmp_path / "w.log"
    log.write_bytes(b"")
    assert list(read_synced(log)) == []
    Recorded(log, MIB, 20)
    whole = len(list(read_synced(log)))
    with log.open("ab") as file:
        file.write(struct.pack("<QQQQ", 0, 1 << 40, 0, 0).ljust(512, b"\0"))  # its data is not there
    assert len(list(read_synced(log))) == whole
    with log.open("r+b") as file:
        file.seek(512)
        file.write(struct.pack("<QQQQ", 0, 8, 64, 0))
    with pytest.raises(MachineFailed, match="malformed"):
        list(read_synced(log))
    log.write_bytes(b"x" * 600)
    with pytest.raises(MachineFailed, match="no log of writes"):
        list(read_synced(log))


def test_a_hole_of_a_log_hides_no_later_flush(tmp_path: Path) -> None:
    log = tmp_path / "w.log"
    Recorded(log, MIB, 20)
    whole = list(read_synced(log))
    content = log.read_bytes()
    entry = struct.pack("<QQQQ", 5, 1, 0, 0).ljust(512, b"\0") + b"\1" * 512
    flush = struct.pack("<QQQQ", 0, 0, 1, 0).ljust(512, b"\0")
    log.write_bytes(content + bytes(4608) + entry + flush)
    assert [(write.offset, write.length) for write in list(read_synced(log))[len(whole) :]] == [(2560, 512)]


def test_a_write_beyond_the_disk_is_left_out(tmp_path: Path) -> None:
    log, overlay = tmp_path / "w.log", tmp_path / "w.qcow2"
    Recorded(log, MIB, 20)
    write_overlay(overlay, log, read_synced(log), size_bytes=4096, backing="b", backing_format="raw")
    assert overlay.stat().st_size <= 4 * 512 + 8 * 512
    with pytest.raises(MachineFailed, match="more than 128 GiB"):
        write_overlay(tmp_path / "x", log, [], size_bytes=1 << 40, backing="b", backing_format="raw")
