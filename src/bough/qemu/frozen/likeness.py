"""Which machines' processes are alike, but for the ids in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from bough.errors import MachineFailed
from bough.qemu.argv import render_argv
from bough.qemu.plan import Plan


@dataclass(frozen=True)
class Marks:
    """What makes a process of QEMU that of one machine: found in the frozen one's memory by what it is.

    Attributes:
        disks: the names of its files, without what follows the point.
    """

    machine_id: str
    uuid: str
    vmgenid: str
    mac: str | None
    disks: tuple[str, ...]

    def forms(self) -> dict[str, bytes]:
        """As QEMU holds each: in the order of its digits, as its guest reads it, as text."""
        forms = {
            "machine_id": self.machine_id.encode(),
            "uuid": UUID(self.uuid).bytes,
            "uuid_le": UUID(self.uuid).bytes_le,
            "vmgenid": UUID(self.vmgenid).bytes,
            "vmgenid_le": UUID(self.vmgenid).bytes_le,
            **{f"disk{number}": name.encode() for number, name in enumerate(self.disks)},
        }
        if self.mac is not None:
            forms["mac"] = bytes.fromhex(self.mac.replace(":", ""))
        return forms

    @property
    def needed(self) -> list[str]:
        """Those forms that each process of QEMU has somewhere: a PC's SMBIOS has them all."""
        return [name for name in self.forms() if name != "uuid_le"]

    def translate(self, text: str, other: Marks) -> str:
        """A path of ours as the other's."""
        for mine, its in zip((self.machine_id, *self.disks), (other.machine_id, *other.disks), strict=True):
            text = text.replace(mine, its)
        return text

    def check_fits(self, other: Marks) -> None:
        """Raises MachineFailed: one form does not fit where the other stands."""
        ours, its = self.forms(), other.forms()
        if {name: len(form) for name, form in ours.items()} != {
            name: len(form) for name, form in its.items()
        }:
            raise MachineFailed("its ids are longer or shorter than those of the frozen process")


def marks_of(plan: Plan) -> Marks:
    return Marks(
        machine_id=plan.machine_id,
        uuid=plan.uuid,
        vmgenid=plan.vmgenid,
        mac=plan.nic.mac if plan.nic else None,
        disks=tuple(Path(disk.path).stem for disk in plan.disks),
    )


def likeness_of(plan: Plan) -> tuple[str, ...] | None:
    """The same for two plans whose processes differ in nothing but their marks. None: what a frozen process
    cannot be used for."""
    if not _can_be_frozen(plan):
        return None
    disks = tuple(replace(disk, path=f"disk{number}") for number, disk in enumerate(plan.disks))
    nic = replace(plan.nic, mac="mac") if plan.nic else None
    neutral = replace(plan, machine_id="", name="", uuid="", vmgenid="", disks=disks, nic=nic)
    return tuple(render_argv(neutral))


def _can_be_frozen(plan: Plan) -> bool:
    """Emulated, with nothing that QEMU keeps to itself: no picture, no medium, no file of its firmware's
    that it writes, no network of its own. And none that draws random numbers for its guest from a generator
    of its own, whose state each process would go on from: see arch.py."""
    return (
        plan.accelerator == "tcg"
        and plan.arch == "x86_64"
        and not plan.display
        and not plan.media
        and plan.firmware.variables is None
        and plan.direct_boot is None
        and (plan.nic is None or plan.nic.backend != "user")
        and all(disk.backing and not disk.read_only for disk in plan.disks)
        and "rdrand=off" in plan.cpu_model.split(",")
        and "rdseed=off" in plan.cpu_model.split(",")
    )
