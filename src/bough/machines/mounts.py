"""Share directories of the host with a machine: in the spec, and in the running guest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from bough.errors import Conflict, GuestRefused, NotFound, WrongState
from bough.guest.channel import AgentChannel
from bough.guest.qga import QgaChannel
from bough.machines.record import MachineRecord
from bough.machines.state import State
from bough.mounts.keeper import MountKeeper
from bough.spec import MountSpec

_SSHFS_HINT = "install it there (Debian, Alpine: sshfs; Fedora: fuse-sshfs), or build its image again"


class Host(Protocol):
    """The parts of a machine for the functions of this module."""

    @property
    def record(self) -> MachineRecord: ...
    @property
    def mounts(self) -> MountKeeper: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    def channel(self) -> AgentChannel | None: ...
    def change(self, *, event: bool = ..., **fields: Any) -> None: ...
    def wrong_state(self, doing: str, *allowed: State) -> WrongState: ...
    async def agent(self) -> AgentChannel | QgaChannel: ...


async def add_mount(machine: Host, mount: MountSpec) -> None:
    """Add a directory to the spec, and mount the directory at once if the machine runs. A repeated call
    repairs a broken mount.

    Raises:
        Conflict: another mount at this target, too many mounts, or a machine without bough's agent.
        WrongState: the machine is paused or suspended.
        GuestRefused: the guest could not mount the directory; nothing is changed.
    """
    if not machine.record.image_agent:
        raise Conflict(
            f"machine '{machine.name}' has no bough agent, which a shared directory needs",
            machine=machine.name,
        )
    async with machine.mounts.changing:
        _check_state(machine)
        await _add(machine, mount)


def _check_state(machine: Host) -> None:
    """Refuse a paused or suspended machine. Such a guest cannot mount, and expects the same mounts when it
    continues.
    """
    if machine.state in (State.PAUSED, State.SUSPENDED):
        raise machine.wrong_state("changing what it shares", State.RUNNING, State.STOPPED)


async def _add(machine: Host, mount: MountSpec) -> None:
    before = machine.record.spec.mounts
    here = [one for one in before if one.target == mount.target]
    if here and here[0] != mount:
        raise Conflict(
            f"machine '{machine.name}' has {here[0].source} at {mount.target} already",
            hint=f"bough umount {machine.name} {mount.target}",
            machine=machine.name,
        )
    if not here:
        if len(before) >= 32:
            raise Conflict(f"machine '{machine.name}' shares 32 directories already, the maximum")
        _set_mounts(machine, (*before, mount))
    try:
        await _establish(machine, lazy=True)
        if mount.target in machine.mounts.trouble:
            raise trouble_error(machine.name, {mount.target: machine.mounts.trouble[mount.target]})
    except BaseException:
        if not here:
            _set_mounts(machine, before)
            await _establish(machine, lazy=True)
        raise


async def remove_mount(machine: Host, target: str, *, force: bool = False) -> None:
    """Remove a mount.

    Raises:
        NotFound: no mount at this target.
        WrongState: the machine is paused or suspended.
        Conflict: a process in the guest uses the mount, and `force` is not given; the mount stays.
    """
    async with machine.mounts.changing:
        _check_state(machine)
        await _remove(machine, target, force)


async def _remove(machine: Host, target: str, force: bool) -> None:
    before = machine.record.spec.mounts
    left = tuple(mount for mount in before if mount.target != target)
    if len(left) == len(before):
        raise NotFound(
            f"machine '{machine.name}' has no directory of the host at {target[:200]}",
            hint=f"bough mount {machine.name} lists them",
            kind="mount",
        )
    _set_mounts(machine, left)
    busy = await _establish(machine, lazy=force)
    if busy:
        _set_mounts(machine, before)
        await _establish(machine, lazy=True)
        raise Conflict(
            f"{target} is in use in machine '{machine.name}'",
            hint="end the processes that use it, or unmount it with --force",
            machine=machine.name,
        )


def _set_mounts(machine: Host, mounts: tuple[MountSpec, ...]) -> None:
    machine.change(spec=machine.record.spec.model_copy(update={"mounts": mounts}))


async def _establish(machine: Host, *, lazy: bool) -> list[str]:
    channel = machine.channel()
    if channel is None:
        return []
    mounts = machine.record.spec.mounts
    return await machine.mounts.establish(
        channel, mounts, default_owner=default_owner(machine.record), lazy=lazy
    )


def default_owner(record: MachineRecord) -> str:
    users = record.spec.users
    return users[0].name if users else "root"


def trouble_error(machine: str, trouble: Mapping[str, str]) -> GuestRefused:
    """Return the error for a machine with missing mounts: target -> reason."""
    told = "; ".join(f"{target} is not mounted: {why}" for target, why in trouble.items())
    no_sshfs = any("no sshfs" in why for why in trouble.values())
    return GuestRefused(
        f"machine '{machine}' runs, but {told}",
        hint=_SSHFS_HINT if no_sshfs else f"repair that, then: bough mount {machine} --again",
        machine=machine,
    )


async def mount_again(machine: Host) -> None:
    """Try all mounts once more. Raises GuestRefused, AgentUnavailable."""
    await machine.agent()
    await _establish(machine, lazy=True)
    if machine.mounts.trouble:
        raise trouble_error(machine.name, machine.mounts.trouble)


def describe_mounts(machine: Host) -> list[dict[str, Any]]:
    return [
        {
            **mount.model_dump(mode="json"),
            "state": machine.mounts.state(mount),
            "error": machine.mounts.trouble.get(mount.target),
        }
        for mount in machine.record.spec.mounts
    ]
