"""`set`: change the settings of a machine that is no project's."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from bough.errors import InvalidSpec, WrongState
from bough.hypervisor.changed_settings import AT_REST, DISKS, changed_fields
from bough.hypervisor.inventory import Inventory
from bough.machines.disks.growth import check_room, grow_disks, grown_disks
from bough.machines.machine import Machine
from bough.machines.nics import Networks, check_networks
from bough.machines.record import MachineRecord, Restarts
from bough.machines.state import State
from bough.paths import Home
from bough.progress import Report, ignore_progress
from bough.qemu.host import read_host_facts
from bough.spec import MachineSpec, check_against_host, parse_spec
from bough.spec.problems import NO_SUCH_SETTING, Problem, did_you_mean, raise_if_any
from bough.spec.project.changes import disks_only_grow
from bough.spec.settings import Setting, entry_of, is_settable


class Projects(Protocol):
    def check_settable(self, machine: Machine) -> None:
        """Raise Conflict if a project's file has the settings of the machine."""
        ...


class MachineSettings:
    """Changes settings of machines. The record gets all settings of a call at once, or none."""

    def __init__(self, home: Home, inventory: Inventory, networks: Networks, projects: Projects) -> None:
        self._home = home
        self._inventory = inventory
        self._networks = networks
        self._projects = projects

    async def change(
        self,
        machine: Machine,
        given: Mapping[str, Any],
        *,
        force: bool = False,
        report: Report = ignore_progress,
    ) -> list[str]:
        """Change settings of a machine. Return the names of the settings that have other values now.

        Args:
            given: setting -> value, as in a spec. `limits` adds to the present limits; a limit that is None
                is removed.
            force: allow more memory, vCPUs or disk than the host has.

        Raises:
            InvalidSpec: no such setting, a setting that cannot change, or a wrong value; with all problems.
            BeyondHost, HostLacks: this host cannot run the machine with these settings.
            WrongState: settings change only while the machine is stopped, or while it runs.
            Conflict: the machine is a project's, has a fault, or another operation is under way.
            GuestRefused, QmpRefused, MachineFailed: a disk did not grow, see growth.grow_disks. A repeated
                call completes the growth. All other settings have their old values.
        """
        self._projects.check_settable(machine)
        with machine.claim("being changed"):
            before = machine.record.spec
            wanted = _parse(machine, given)
            changed = [
                one for one in MachineSpec.model_fields if getattr(before, one) != getattr(wanted, one)
            ]
            _check_state(machine, changed)
            await self._check(machine, changed, wanted, force=force)
            if DISKS & set(changed):
                await grow_disks(machine, grown_disks(machine.record, wanted), report)
            if changed:
                self._apply(machine, changed, wanted)
        return changed

    async def _check(
        self, machine: Machine, changed: Collection[str], wanted: MachineSpec, *, force: bool
    ) -> None:
        """Check what needs the host. Raises InvalidSpec, BeyondHost, HostLacks."""
        if "nics" in changed:
            check_networks(wanted, self._networks)
        if {"memory", "vcpus", *DISKS} & set(changed):
            facts = await read_host_facts(self._home)
            check_against_host(wanted, facts, force=force, only={"memory", "vcpus"} & set(changed))
            if not force:
                check_room(machine.record, wanted, facts.free_disk_bytes)
        if any(entry_of(one).change == "stopped" for one in changed):
            record = machine.record.model_copy(update=changed_fields(machine.record, changed, wanted))
            await self._inventory.plan_of(record, machine.paths)

    @staticmethod
    def _apply(machine: Machine, changed: Collection[str], wanted: MachineSpec) -> None:
        fields = changed_fields(machine.record, changed, wanted)
        sizes = {name: getattr(wanted, name) for name in DISKS & set(changed)}
        fields["spec"] = fields["spec"].model_copy(update=sizes)
        gives_up = "restart" in changed and wanted.restart == "no" and machine.record.restarts.next
        if gives_up:
            fields["restarts"] = Restarts(cause=machine.record.restarts.cause)
        machine.change(**fields)
        if gives_up:
            machine.restarter.cancel()
        machine.tell("changed", ", ".join(changed))


def _parse(machine: Machine, given: Mapping[str, Any]) -> MachineSpec:
    """Return the spec with the given settings. Raises InvalidSpec, with all problems."""
    before = machine.record.spec
    problems = list(_find_fixed(given))
    fit = {name: value for name, value in given.items() if is_settable(name)}
    try:
        wanted = parse_spec(_merged(before, fit))
    except InvalidSpec as error:
        problems += [Problem(one["place"], one["message"], one["hint"]) for one in error.problems]
        wanted = before
    problems += _find_other_disks(machine.record, wanted)
    raise_if_any(problems)
    return wanted


def _find_fixed(given: Mapping[str, Any]) -> Iterator[Problem]:
    """Find settings that cannot change."""
    for name in given:
        entry = entry_of(name)
        if name not in MachineSpec.model_fields:
            yield Problem(name[:64], NO_SUCH_SETTING, did_you_mean(name[:64], MachineSpec.model_fields))
        elif entry.change == "never":
            yield Problem(name, *_why_fixed(name, entry))
        elif entry.command:
            yield Problem(name, "changes by a command of its own", f"{entry.command} --help")


def _why_fixed(name: str, entry: Setting) -> tuple[str, str]:
    """Return why a setting never changes, and what to do instead."""
    again = "create another machine: bough create --help"
    if entry.boot in ("setup", "name") or name == "user_data":
        return "is set up at the first boot and cannot change afterwards", "change it inside the guest"
    if name in ("image", "arch"):
        return "cannot change: the machine's disk began as this image", again
    return "cannot change: the guest keeps the same computer for the machine's whole life", again


def _merged(before: MachineSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    data = before.to_dict()
    if "nics" in given and "uplink" not in given:
        del data["uplink"]  # the new cards say whether the machine is on the uplink
    limits = given.get("limits")
    if isinstance(limits, Mapping):
        together = {**data["limits"], **limits}
        return {**data, **given, "limits": {key: one for key, one in together.items() if one is not None}}
    return {**data, **given}


def _find_other_disks(record: MachineRecord, wanted: MachineSpec) -> Iterator[Problem]:
    """Find disks that would be other disks, or smaller."""
    place = "disk" if record.spec.disk != wanted.disk else "disks"
    if place == "disk" and record.media.root == "none":
        yield Problem("disk", "the machine has no disk of an image", "disks names its extra disks")
    elif not disks_only_grow(record.spec, wanted):
        yield Problem(place, "a disk only grows, and no extra disk is added, removed or moved")
    else:
        try:
            grown_disks(record, wanted)
        except InvalidSpec as error:  # the spec had no size before
            yield Problem(place, error.message, error.hint)


def _check_state(machine: Machine, changed: Collection[str]) -> None:
    """Check that the machine's state allows the changes. Raises WrongState, naming all settings; Conflict."""
    stopped = [name for name in changed if entry_of(name).change == "stopped"]
    disks = [name for name in changed if name in DISKS]
    if stopped and disks:
        raise _wrong_state(
            machine,
            f"{_told(stopped)} only while the machine is stopped, and {_told(disks)} only while it runs",
            "change one after the other",
        )
    if stopped and machine.state not in AT_REST:
        is_suspended = machine.state is State.SUSPENDED
        saved = ", and its saved memory continues on the present settings alone" if is_suspended else ""
        resume = f"bough resume {machine.name}, then " if is_suspended else ""
        discard = f"; or discard the memory: bough stop --force {machine.name}" if is_suspended else ""
        raise _wrong_state(
            machine,
            f"machine '{machine.name}' is {machine.state}{saved}; {_told(stopped)} only while the machine is "
            "stopped",
            f"{resume}bough stop {machine.name}{discard}",
        )
    if disks and machine.state is not State.RUNNING:
        raise machine.wrong_state("a larger disk", State.RUNNING)
    if disks:
        machine.faults.check_none("a larger disk")


def _told(names: Sequence[str]) -> str:
    return f"{', '.join(names)} change{'s' if len(names) == 1 else ''}"


def _wrong_state(machine: Machine, message: str, hint: str) -> WrongState:
    return WrongState(message, hint=hint, machine=machine.name, state=str(machine.state))
