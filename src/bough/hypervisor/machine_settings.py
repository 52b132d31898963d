"""`set`: change the settings of a machine that is no project's."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from bough.errors import InvalidSpec, WrongState
from bough.hypervisor.changed_settings import AT_REST, changed_fields
from bough.hypervisor.inventory import Inventory
from bough.machines.machine import Machine
from bough.machines.nics import Networks, check_networks
from bough.machines.record import Restarts
from bough.machines.state import State
from bough.paths import Home
from bough.qemu.host import read_host_facts
from bough.spec import MachineSpec, check_against_host, parse_spec
from bough.spec.problems import NO_SUCH_SETTING, Problem, did_you_mean, raise_if_any
from bough.spec.settings import Setting, entry_of, is_settable

_SETTABLE = (State.STOPPED, State.FAILED, State.RUNNING, State.PAUSED, State.SUSPENDED)


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

    async def change(self, machine: Machine, given: Mapping[str, Any], *, force: bool = False) -> list[str]:
        """Change settings of a machine. Return the names of the settings that have other values now.

        Args:
            given: setting -> value, as in a spec. `limits` adds to the present limits; a limit that is None
                is removed.
            force: allow more memory or vCPUs than the host has.

        Raises:
            InvalidSpec: no such setting, a setting that cannot change, or a wrong value; with all problems.
            BeyondHost, HostLacks: this host cannot run the machine with these settings.
            WrongState: settings change only while the machine is stopped.
            Conflict: the machine is a project's, or another operation is under way.
        """
        self._projects.check_settable(machine)
        async with machine.operation("being changed", *_SETTABLE):
            before = machine.record.spec
            wanted = _parse(before, given)
            changed = [
                one for one in MachineSpec.model_fields if getattr(before, one) != getattr(wanted, one)
            ]
            _check_rest(machine, changed)
            await self._check(machine, changed, wanted, force=force)
            if changed:
                self._apply(machine, changed, wanted)
        return changed

    async def _check(
        self, machine: Machine, changed: Collection[str], wanted: MachineSpec, *, force: bool
    ) -> None:
        """Check what needs the host. Raises InvalidSpec, BeyondHost, HostLacks."""
        if "nics" in changed:
            check_networks(wanted, self._networks)
        if {"memory", "vcpus"} & set(changed):
            facts = await read_host_facts(self._home)
            check_against_host(wanted, facts, force=force, only=changed)
        if any(entry_of(one).change == "stopped" for one in changed):
            record = machine.record.model_copy(update=changed_fields(machine.record, changed, wanted))
            await self._inventory.plan_of(record, machine.paths)

    @staticmethod
    def _apply(machine: Machine, changed: Collection[str], wanted: MachineSpec) -> None:
        fields = changed_fields(machine.record, changed, wanted)
        gives_up = "restart" in changed and wanted.restart == "no" and machine.record.restarts.next
        if gives_up:
            fields["restarts"] = Restarts(cause=machine.record.restarts.cause)
        machine.change(**fields)
        if gives_up:
            machine.restarter.cancel()
        machine.tell("changed", ", ".join(changed))


def _parse(before: MachineSpec, given: Mapping[str, Any]) -> MachineSpec:
    """Return the spec with the given settings. Raises InvalidSpec, with all problems."""
    problems = list(_find_fixed(given))
    fit = {name: value for name, value in given.items() if is_settable(name)}
    try:
        wanted = parse_spec(_merged(before, fit))
    except InvalidSpec as error:
        problems += [Problem(one["place"], one["message"], one["hint"]) for one in error.problems]
        wanted = before
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
    if name in ("disk", "disks"):
        return "cannot change: the disks have their sizes from the creation", again
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


def _check_rest(machine: Machine, changed: Collection[str]) -> None:
    """Raise WrongState if settings need a stopped machine. The error names all of them."""
    names = [name for name in changed if entry_of(name).change == "stopped"]
    if not names or machine.state in AT_REST:
        return
    which = f"{', '.join(names)} change{'s' if len(names) == 1 else ''} only while the machine is stopped"
    if machine.state is State.SUSPENDED:
        raise WrongState(
            f"machine '{machine.name}' is suspended, and its saved memory continues on the present "
            f"settings alone; {which}",
            hint=f"bough resume {machine.name}, then bough stop {machine.name}; or discard the memory: "
            f"bough stop --force {machine.name}",
            machine=machine.name,
            state=str(machine.state),
        )
    raise WrongState(
        f"machine '{machine.name}' is {machine.state}; {which}",
        hint=f"bough stop {machine.name}",
        machine=machine.name,
        state=str(machine.state),
    )
