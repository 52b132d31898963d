"""The bus of each disk, and what a bus cannot do."""

from __future__ import annotations

from typing import Any

import pytest

from bough.errors import InvalidSpec, WrongState
from bough.forks.booted import can_fork_booted
from bough.images.store import ImageManifest
from bough.machines.disks.buses import check_buses, check_room, check_saved, disk_buses
from bough.machines.media import Media
from bough.machines.nics import resolve_nics
from bough.machines.record import Hardware, MachineRecord
from bough.spec import MachineSpec, parse_spec
from bough.spec.disk import disk

IMAGE = ImageManifest(
    digest="d", os="debian", version="12", arch="x86_64", firmware=("bios",), size_bytes=1, agent=True,
    created="2026-01-01T00:00:00.000+00:00", label="debian:12", recipe="r",
)  # fmt: skip


def spec_of(**settings: Any) -> MachineSpec:
    return parse_spec({"image": "debian:12", **settings})


def record_of(spec: MachineSpec, image: ImageManifest = IMAGE, **more: Any) -> MachineRecord:
    hardware = Hardware(
        arch="x86_64", machine_type="pc-q35-7.2", cpu_model="c", firmware="bios", uuid="u", vmgenid="v",
        nics=resolve_nics(spec, image.nic_model), disk_bus=image.disk_bus, agent_port=image.agent_port,
        uid=None,
    )  # fmt: skip
    return MachineRecord(
        id="m", name="web", spec=spec, image_digest="d", image_agent=True, hardware=hardware, created="c",
        **more,
    )  # fmt: skip


def test_the_bus_is_the_users_or_what_the_image_needs() -> None:
    old = IMAGE.model_copy(update={"disk_bus": "sata", "nic_model": "e1000", "agent_port": "serial"})
    spec = spec_of(disks=["1GiB", "1GiB,bus=ide,serial=data"])
    assert disk_buses(record_of(spec)) == ["virtio", "virtio", "ide"]
    record = record_of(spec, old)
    assert disk_buses(record) == ["sata", "sata", "ide"]
    assert [nic.model for nic in record.hardware.nics] == ["e1000"]
    assert record.agent_port == "serial"
    chosen = spec_of(disk_bus="scsi", nics=["uplink,model=virtio"], agent_port="virtio", disks=["1GiB"])
    record = record_of(chosen, old)
    assert disk_buses(record) == ["scsi", "scsi"]
    assert [nic.model for nic in record.hardware.nics] == ["virtio"]
    assert record.agent_port == "virtio"
    without_root = record_of(chosen, old, media=Media(root="none"))
    assert disk_buses(without_root) == ["scsi"]


def test_a_record_of_an_earlier_version_has_virtio() -> None:
    plain = record_of(spec_of()).model_dump(mode="json")
    for name in ("disk_bus", "agent_port", "hyperv", "secure_boot"):
        del plain["spec"][name]
    for name in ("disk_bus", "nic_model", "agent_port"):
        del plain["hardware"][name]
    record = MachineRecord.model_validate(plain)
    assert (disk_buses(record), record.agent_port) == (["virtio"], "virtio")


@pytest.mark.parametrize(
    ("settings", "image", "problem"),
    [
        ({"disk_bus": "ide", "disks": ["1GiB"] * 4}, {}, "ide has room for 4 drives"),
        ({"disk_bus": "ide", "disks": ["1GiB"] * 3, "cdrom": "iso"}, {}, "and the CD"),
        ({"disk_bus": "ide", "disks": ["1GiB"] * 3}, {"cloud_init": True}, "ide has room for 4 drives"),
        ({"disks": ["1GiB"] * 6}, {"disk_bus": "sata"}, "sata has room for 6 drives"),
        ({"disks": ["1GiB,bus=ide"]}, {"arch": "aarch64"}, "a machine of aarch64 has no ide"),
        ({"disk_bus": "ide"}, {"arch": "riscv64"}, "a machine of riscv64 has no ide"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], image: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidSpec, match=problem) as caught:
        check_buses(spec_of(**settings), IMAGE.model_copy(update=image))
    assert caught.value.hint


def test_a_change_of_the_bus_is_checked_at_the_start() -> None:
    check_room(record_of(spec_of(disks=["1GiB"] * 5)))
    record = record_of(spec_of(disk_bus="ide", disks=["1GiB"] * 5))
    with pytest.raises(InvalidSpec, match="ide has room for 4 drives"):
        check_room(record)
    record = record_of(spec_of(disk_bus="ide", disks=["1GiB"] * 2))
    check_room(record)
    record.media.seed, record.media.cdrom = True, "0" * 64
    with pytest.raises(InvalidSpec, match="and the CD"):
        check_room(record)


@pytest.mark.parametrize(
    "settings",
    [
        {"disk_bus": "ide", "disks": ["1GiB"] * 2, "cdrom": "iso"},
        {"disk_bus": "sata", "disks": ["1GiB"] * 5, "cdrom": "iso"},
        {"disk_bus": "scsi", "disks": ["1GiB"] * 16},
        {"disk_bus": "nvme", "disks": ["1GiB,bus=ide"]},
    ],
)
def test_what_fits(settings: dict[str, Any]) -> None:
    check_buses(spec_of(**settings), IMAGE)


def test_a_state_that_qemu_cannot_save_is_refused() -> None:
    check_saved(record_of(spec_of(disk_bus="sata")), "suspending")
    with pytest.raises(WrongState, match="suspending is not possible: disk 1 of machine 'web' is on nvme"):
        check_saved(record_of(spec_of(disks=["1GiB,bus=nvme"])), "suspending")
    assert can_fork_booted(spec_of(disk_bus="sata"), IMAGE)
    assert not can_fork_booted(spec_of(disk_bus="nvme"), IMAGE)
    assert not can_fork_booted(spec_of(), IMAGE.model_copy(update={"disk_bus": "nvme"}))


def test_the_text_of_a_disk() -> None:
    assert disk("10GiB") == {"size": "10GiB"}
    assert disk(5) == {"size": 5}
    assert disk("10GiB,serial=data,bus=sata") == {"size": "10GiB", "serial": "data", "bus": "sata"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1GiB,buss=ide", "did you mean 'bus'"),
        ("1GiB,bus", "expected a disk like"),
        ("1GiB,bus=ide,bus=ide", "expected a disk like"),
        ("1GiB,bus=floppy", "bus"),
        ("", "size"),
    ],
)
def test_bad_texts_of_disks(text: str, problem: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        spec_of(disks=[text])
    assert problem in f"{caught.value.message} {caught.value.hint}"


def test_secure_boot_is_no_bios() -> None:
    with pytest.raises(InvalidSpec, match="secure_boot: needs the firmware 'uefi'"):
        spec_of(secure_boot=True, firmware="bios")
