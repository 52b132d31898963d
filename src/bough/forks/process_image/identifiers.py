"""Identifiers tying a QEMU process to one machine, and the machines sharing a process image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from bough.errors import MachineFailed
from bough.qemu.argv import render_argv
from bough.qemu.jail import Jail
from bough.qemu.plan import AGENT_DISK_ID, DiskPlan, NicPlan, Plan


@dataclass(frozen=True)
class Identifiers:
    """The identifiers of a machine. bough searches a process image for these values.

    Attributes:
        disks: names of the disk files without their suffix.
    """

    machine_id: str
    uuid: str
    vmgenid: str
    macs: tuple[str, ...]
    disks: tuple[str, ...]

    def forms(self) -> dict[str, bytes]:
        """Return each id in QEMU's forms: digits in order, the guest's byte order, text."""
        forms = {
            "machine_id": self.machine_id.encode(),
            "uuid": UUID(self.uuid).bytes,
            "uuid_le": UUID(self.uuid).bytes_le,
            "vmgenid": UUID(self.vmgenid).bytes,
            "vmgenid_le": UUID(self.vmgenid).bytes_le,
            **{f"disk{number}": name.encode() for number, name in enumerate(self.disks)},
        }
        addresses = {f"mac{number}": _mac_bytes(mac) for number, mac in enumerate(self.macs)}
        return forms | addresses

    @property
    def needed(self) -> list[str]:
        """Forms that occur in each QEMU process: a PC's SMBIOS has all of them."""
        return [name for name in self.forms() if name != "uuid_le"]

    def translate(self, text: str, other: Identifiers) -> str:
        """Return a path of this machine as the other machine's."""
        for mine, its in zip((self.machine_id, *self.disks), (other.machine_id, *other.disks), strict=True):
            text = text.replace(mine, its)
        return text

    def check_fits(self, other: Identifiers) -> None:
        """Raise MachineFailed if a form differs in length from the other machine's."""
        ours, its = self.forms(), other.forms()
        if {name: len(form) for name, form in ours.items()} != {
            name: len(form) for name, form in its.items()
        }:
            raise MachineFailed("its ids are longer or shorter than those of the captured process")


def _mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def identifiers_of(plan: Plan) -> Identifiers:
    return Identifiers(
        machine_id=plan.machine_id,
        uuid=plan.uuid,
        vmgenid=plan.vmgenid,
        macs=tuple(nic.mac for nic in plan.nics),
        disks=tuple(Path(disk.path).stem for disk in plan.disks if disk.id != AGENT_DISK_ID),
    )


def fit_of(plan: Plan) -> tuple[str, ...] | None:
    """Return a value equal for two plans if the processes differ only in identifiers.

    None: such a machine gets no process image.
    """
    if not _can_be_captured(plan):
        return None
    disks = tuple(
        disk if disk.id == AGENT_DISK_ID else replace(disk, path=f"disk{number}")
        for number, disk in enumerate(plan.disks)
    )
    nics = tuple(replace(nic, mac=f"mac{number}") for number, nic in enumerate(plan.nics))
    neutral = replace(plan, machine_id="", name="", uuid="", vmgenid="", disks=disks, nics=nics)
    return tuple(render_argv(neutral))


def _can_be_captured(plan: Plan) -> bool:
    """Allow only emulated machines without hidden state in QEMU.

    So no picture, no medium, no writable firmware file, and no user network. And no random number generator
    of QEMU: all forks would share its state (see arch.py).
    """
    return (
        plan.accelerator == "tcg"
        and plan.arch == "x86_64"
        and not plan.display
        and not plan.media
        and not plan.agent_on_serial
        and plan.tpm_state is None
        and plan.firmware.variables is None
        and plan.direct_boot is None
        and all(_may_be_captured(nic, plan.jail) for nic in plan.nics)
        and all(_is_plain(disk) for disk in plan.disks)
        and "rdrand=off" in plan.cpu_model.split(",")
        and "rdseed=off" in plan.cpu_model.split(",")
    )


def _is_plain(disk: DiskPlan) -> bool:
    """Return whether the loader can replace the disk: a rewind switches the node of a virtio-blk only. All
    machines with the same agent disk have the same file open.
    """
    if disk.id == AGENT_DISK_ID:
        return disk.bus == "virtio"
    return bool(disk.backing) and not disk.read_only and disk.bus == "virtio"


def _may_be_captured(nic: NicPlan, jail: Jail) -> bool:
    """Return whether the loader can make the backend again, and the card keeps no state beside its own.

    QEMU has the path of a switch's socket in its memory. Only in the jail is the path equal for all machines.
    """
    backends = ("passt", "isolated", "switch") if jail.bwrap is not None else ("passt", "isolated")
    return nic.backend in backends and nic.model == "virtio"
