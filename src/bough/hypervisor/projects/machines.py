"""The machines of a project: created, changed, started and waited for, one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bough.errors import MachineFailed
from bough.hypervisor.changed_settings import DISKS
from bough.hypervisor.lifecycle import Lifecycle
from bough.hypervisor.lifetimes import Lifetimes
from bough.hypervisor.projects.changes import MachineChanges
from bough.hypervisor.projects.plan import Step, write_applied
from bough.hypervisor.projects.registry import Projects
from bough.hypervisor.projects.specs import machine_spec
from bough.hypervisor.running import Running
from bough.machines.machine import Machine
from bough.machines.record import Membership
from bough.machines.state import LIVE, State
from bough.progress import Progress, Report
from bough.projects.record import ProjectRecord, machine_name
from bough.spec.project.healthcheck import HealthCheckSpec
from bough.spec.project.model import ProjectMachine

#: How often a wait for a machine that does its job and powers off looks at the machine.
_LOOK_S = 60.0


class Health(Protocol):
    async def wait_healthy(self, machine: Machine, check: HealthCheckSpec | None, report: Report) -> None:
        """Wait until the machine has answered and its check has passed.

        Raises:
            BoughError: the check failed as often as it may; the error has its last output.
        """
        ...


@dataclass(frozen=True)
class StartOptions:
    """Options of all starts of an `up`.

    Attributes:
        cold: boot new machines instead of forking booted snapshots.
        force: allow more memory, disk or vCPUs than the host has.
    """

    cold: bool = False
    force: bool = False


class ProjectMachines:
    def __init__(
        self,
        projects: Projects,
        running: Running,
        lifecycle: Lifecycle,
        lifetimes: Lifetimes,
        changes: MachineChanges,
        health: Health,
    ) -> None:
        self._projects = projects
        self._running = running
        self._lifecycle = lifecycle
        self._lifetimes = lifetimes
        self._changes = changes
        self._health = health

    def find(self, record: ProjectRecord, role: str) -> Machine | None:
        return self._projects.machines(record).get(role)

    async def bring_up(
        self,
        record: ProjectRecord,
        step: Step,
        wanted: ProjectMachine,
        how: StartOptions,
        report: Report,
        *,
        completes: bool,
    ) -> None:
        """Do a step of the plan. Return when the machine's guest has answered and its first boot is done.

        Args:
            completes: the machine does one job and powers off, which is no failure.

        Raises:
            BoughError: the machine stays as far as it was made; a repeated call goes on.
        """
        machine = self.find(record, step.name)
        try:
            if machine is not None and step.action == "recreate":
                report(Progress("deleting the machine, to create it anew"))
                await self._lifetimes.delete(machine, force=True)
                machine = None
            if machine is None:
                await self._create(record, step.name, wanted, how, report)
                return
            if not how.force:
                await self._changes.check_room(machine, machine_spec(record, step.name, wanted))
            await self._change(record, machine, step, wanted, report)
            if not (completes and has_completed(machine)):
                await self._start(machine, report)
                await machine.wait_ready(report=report)
                spec = machine_spec(record, step.name, wanted)
                await self._changes.grow_disks(machine, step.settings, spec, report)
            self._apply(record, step.name, wanted)
        except MachineFailed:
            machine = self.find(record, step.name)
            if not (completes and machine is not None and has_completed(machine)):
                raise
        finally:
            self._projects.settle(record)

    async def _create(
        self, record: ProjectRecord, role: str, wanted: ProjectMachine, how: StartOptions, report: Report
    ) -> None:
        self._apply(record, role, wanted)
        await self._running.run(
            machine_spec(record, role, wanted).to_dict(),
            name=machine_name(record.name, role),
            force=how.force,
            ephemeral=record.ephemeral,
            cold=how.cold,
            member=Membership(record.id, role),
            report=report,
        )

    async def _change(
        self, record: ProjectRecord, machine: Machine, step: Step, wanted: ProjectMachine, report: Report
    ) -> None:
        spec = machine_spec(record, step.name, wanted)
        if step.action == "restart":
            await self._changes.change_stopped(machine, step.settings, spec, report)
        elif step.settings:
            await self._changes.change_running(machine, step.settings, spec)
        if not DISKS & set(step.settings):  # disks grow while the machine runs
            self._apply(record, step.name, wanted)

    def _apply(self, record: ProjectRecord, role: str, wanted: ProjectMachine) -> None:
        current = self._projects.store.get(record.id) or record
        self._projects.store.update(current, applied={**current.applied, role: write_applied(wanted)})

    async def _start(self, machine: Machine, report: Report) -> None:
        if machine.state in (State.PAUSED, State.SUSPENDED):
            await self._lifecycle.resume(machine, report=report)
        elif machine.state not in LIVE:
            await self._lifecycle.start(machine, report=report)
        elif machine.record.first_boot.error is not None:
            report(Progress("restarting: steps of the first boot have failed"))
            await self._lifecycle.restart(machine, report=report)

    async def wait_healthy(
        self,
        record: ProjectRecord,
        role: str,
        wanted: ProjectMachine | None,
        report: Report,
        *,
        completes: bool = False,
    ) -> None:
        """Wait until the machine's check has passed.

        Args:
            wanted: the machine in the project's file; None: it is not there any more.
            completes: the machine does one job and powers off, which is no failure.

        Raises:
            BoughError: see Health. MachineFailed: the machine has ended meanwhile.
        """
        machine = self.find(record, role)
        if machine is None or (completes and has_completed(machine)):
            return
        check = wanted.check_of(machine.record.container) if wanted is not None else None
        try:
            await self._health.wait_healthy(machine, check, report)
        except MachineFailed:
            if not (completes and has_completed(machine)):
                raise

    async def wait_completed(self, record: ProjectRecord, role: str, report: Report) -> None:
        """Wait until the machine has done its job and powered off.

        Raises:
            MachineFailed: the machine, or its first boot, has failed.
        """
        machine = self.find(record, role)
        if machine is None:
            return
        report(Progress("waiting until the machine has powered off"))
        while not await machine.vm.ended_within(_LOOK_S):
            pass
        if not has_completed(machine):
            failure = machine.record.failure
            why = machine.record.first_boot.error or (failure.cause if failure else "the machine failed")
            raise MachineFailed(
                f"machine '{machine.name}' has not done its job: {why}",
                machine=machine.name,
                console=machine.console_tail(),
            )

    async def delete(self, machine: Machine) -> None:
        """Delete a machine, running or not, with its disks."""
        await self._lifetimes.delete(machine, force=True)


def has_completed(machine: Machine) -> bool:
    """Return whether the machine has powered off by itself after a first boot without failures."""
    return machine.state is State.STOPPED and machine.record.first_boot.error is None
