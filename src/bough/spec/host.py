"""Check that the host can provide a spec's requests."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from bough.errors import BeyondHost
from bough.spec.model import MachineSpec
from bough.units import format_size


class Limits(Protocol):
    """The host's processors, total memory, and the free space of the disks' file system."""

    @property
    def vcpus(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def free_disk_bytes(self) -> int: ...


@dataclass(frozen=True)
class HostLimits:
    vcpus: int
    memory_bytes: int
    free_disk_bytes: int


def check_against_host(
    spec: MachineSpec, host: Limits, *, force: bool = False, only: Collection[str] | None = None
) -> None:
    """Refuse a spec that exceeds the host. The default number of vCPUs is never refused.

    Args:
        only: names of the settings to check; None: all.

    Raises:
        BeyondHost: with `problems`, in the form of InvalidSpec's; never if `force`.
    """
    problems = [] if force else _beyond(spec, host)
    if only is not None:
        problems = [one for one in problems if one["place"] in only]
    if not problems:
        return
    first = problems[0]
    alone = len(problems) == 1
    message = (
        f"{first['place']}: {first['message']}" if alone else "the machine needs more than this host has"
    )
    raise BeyondHost(message, hint="request less, or override with --force", problems=problems)


def _beyond(spec: MachineSpec, host: Limits) -> list[dict[str, str | None]]:
    found: list[dict[str, str | None]] = []

    def tell(place: str, message: str) -> None:
        found.append({"place": place, "message": message, "hint": None})

    if "vcpus" in spec.model_fields_set and spec.vcpus > host.vcpus:
        plural = "processor" if host.vcpus == 1 else "processors"
        tell("vcpus", f"{spec.vcpus} requested, the host has {host.vcpus} {plural}")
    if spec.memory > host.memory_bytes:
        tell("memory", f"{format_size(spec.memory)} requested, the host has {format_size(host.memory_bytes)}")
    wanted = (spec.disk or 0) + sum(disk.size for disk in spec.disks)
    if wanted > host.free_disk_bytes:
        place = "disk" if not spec.disks else "disk and disks"
        free = format_size(host.free_disk_bytes)
        tell(place, f"{format_size(wanted)} requested, the host has {free} free")
    return found
