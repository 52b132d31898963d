"""The Python API's machine and snapshot. They share a file, because each makes the other.

The classes below Machine: RunningGuest runs commands, VisibleGuest has a screen and a console, BreakableGuest
has faults, AwaitedGuest has the words of tests.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from bough.client.connection import QUICK_TIMEOUT_S, Connection
from bough.client.forks import ForkOf, fork
from bough.client.snapshot import SnapshotOf
from bough.client.waits import AwaitedGuest
from bough.contract import machines as contract
from bough.errors import AgentUnavailable, BoughError, CheckFailed

if TYPE_CHECKING:
    from os import PathLike

    from bough.client.hold import Hold
    from bough.client.websocket import WebSocket
    from bough.contract.answers import MachineInfo, SystemDifferences
    from bough.contract.request import Request
    from bough.contract.snapshots import Identity
    from bough.progress import Report

#: Seconds that a call may take beyond the service's own timeout.
_GRACE_S = 15.0
#: Longest time for a guest's power-off if no deadline is given.
_STOP_S = 180.0
_DELETE_TIMEOUT_S = 2 * QUICK_TIMEOUT_S


class Machine(AwaitedGuest):
    """A machine of one home. Made by a Hypervisor. Usable from several threads at once. The object holds the
    machine's id, so it stays valid after a rename.

    Every call can raise these errors of bough.errors:
    - NotFound: the machine was deleted meanwhile.
    - WrongState: the machine's state does not allow the call.
    - AgentUnavailable: the agent of a running machine does not answer.
    """

    def __init__(
        self, api: Connection, reference: str, *, name: str | None = None, ephemeral: bool = False
    ) -> None:
        super().__init__(api, reference, name=name)
        self._ephemeral = ephemeral
        self._hold: Hold | None = None

    def __repr__(self) -> str:
        return f"<bough.Machine {self._name or self._reference}>"

    @property
    def state(self) -> str:
        """Return the present state: stopped, starting, running, paused, suspended, stopping or failed."""
        return self.info().state

    def info(self, *, look: bool = False) -> MachineInfo:
        """Return the machine's description. With `look`, ask the agent first, for `condition`."""
        from bough.contract.answers import MachineInfo

        request = contract.GetMachine(reference=self._reference, look=look)
        info = MachineInfo.from_dict(self._api.send(request))
        self._name = info.name
        return info

    def plan(self) -> dict[str, Any]:
        """Return the plan of the next start: {"plan": data, "argv": QEMU's command line}."""
        return dict(self._api.send(contract.GetPlan(reference=self._reference)))

    # -- its life ---------------------------------------------------------------------------------

    def start(
        self,
        *,
        wait: bool = True,
        until: Literal["agent", "booted"] = "agent",
        cold: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> bool:
        """Start the machine. With `wait`, return when the agent has answered and the first boot is set up.

        Return True if the machine ran already; the call changes nothing then.

        Args:
            until: what to wait for; see `wait`.
            cold: boot a suspended machine from its disks; the saved memory is lost. Default: continue.
            timeout: seconds; None: as long as the guest makes progress, seen by its console, its agent and
                the processor time of its QEMU.

        Raises:
            MachineFailed: QEMU ended; carries the ends of its stderr and of the console.
            AgentTimeout: no answer in time; the machine is left running for a diagnosis.
        """
        request = contract.StartMachine(
            reference=self._reference, wait=wait, until=until, cold=cold, timeout_s=timeout
        )
        return bool(self._send_long(request, timeout, progress)["already"])

    def stop(
        self, *, deadline: float | None = None, force: bool = False, progress: Report | None = None
    ) -> Literal["guest", "power", "already"]:
        """Ask the guest to power off. Cut the power after `deadline` seconds, or at once with `force`.

        Return "guest" if the guest powered off, "power" if bough cut the power, and "already" if the machine
        did not run. `force` discards the memory of a suspended machine.

        Args:
            deadline: None: when the guest has made no progress for 60 s, at most after 180 s.
        """
        request = contract.StopMachine(reference=self._reference, deadline_s=deadline, force=force)
        how = self._send_long(request, None, progress).get("how")
        return "power" if how == "power" else "already" if how == "already" else "guest"

    def restart(
        self,
        *,
        deadline: float | None = None,
        wait: bool = True,
        until: Literal["agent", "booted"] = "agent",
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> None:
        """Stop and start the machine; see `stop` and `start`."""
        request = contract.RestartMachine(
            reference=self._reference, deadline_s=deadline, wait=wait, until=until, timeout_s=timeout
        )
        limit = None if timeout is None else timeout + (deadline or _STOP_S)
        self._send_long(request, limit, progress)

    def shutdown(self) -> None:
        """Have the guest power off. Raises CheckFailed: bough had to cut the power."""
        if self.stop() == "power":
            raise CheckFailed(
                f"machine '{self.name}' did not power off; bough cut its power", machine=self.name
            )

    def crash(self) -> None:
        """Cut the power at once; see `stop`. `start` boots the machine again."""
        self.stop(force=True)

    def reboot(self, *, timeout: float | None = None) -> None:
        """Have the guest reboot, and return when its next boot is complete. The QEMU process stays.

        Raises:
            AgentTimeout: see `wait`. CommandFailed: the guest refused.
        """
        before = self.info(look=True).boot_id
        with contextlib.suppress(AgentUnavailable):  # the guest may end before its answer
            self.succeed("systemctl reboot 2>/dev/null || reboot")
        self.wait("rebooted", boot_id=before, timeout=timeout)

    def pause(self) -> bool:
        """Pause the vCPUs; QEMU keeps the memory. Return True if the machine was paused already."""
        return bool(self._api.send(contract.PauseMachine(reference=self._reference))["already"])

    def suspend(self, *, progress: Report | None = None) -> bool:
        """Save the memory to disk and end QEMU. `resume` or `start` continues the machine, also after a
        reboot of the host. Return True if the machine was suspended already.
        """
        request = contract.SuspendMachine(reference=self._reference)
        return bool(self._send_long(request, None, progress)["already"])

    def resume(
        self, *, wait: bool = True, timeout: float | None = None, progress: Report | None = None
    ) -> bool:
        """Continue a paused or suspended machine. With `wait`, return when a suspended machine has answered.

        Return True if the machine ran already.

        Raises:
            MachineFailed, HostLacks: the memory cannot be continued here; the machine is still suspended.
        """
        request = contract.ResumeMachine(reference=self._reference, wait=wait, timeout_s=timeout)
        return bool(self._send_long(request, timeout, progress)["already"])

    def export(
        self,
        path: str | PathLike[str],
        *,
        disks_only: bool = False,
        without_image: bool = False,
        progress: Report | None = None,
    ) -> None:
        """Export the machine to a file. The machine runs on.

        The end of the path selects the format:
        - .bough: a bundle, from which `Hypervisor.import_bundle` continues the machine on another host. The
          bundle of a running machine has the memory.
        - .qcow2, .ova: the disks, for other hypervisors.

        A path like "docker://registry.example/team/web:1" is a place in a registry. Only chunks that the
        registry lacks are sent. `Hypervisor.import_bundle` takes the machine back.

        Args:
            disks_only: omit the memory of a running machine.
            without_image: omit the content of the image. The importing host must have the image.
        """
        from bough.client.bundle import export_file, export_to_registry, is_in_registry

        if is_in_registry(path):
            export_to_registry(
                self._api,
                self.id,
                path,
                disks_only=disks_only,
                without_image=without_image,
                progress=progress,
            )
            return
        export_file(
            self._api,
            self.id,
            path,
            disks_only=disks_only,
            without_image=without_image,
            progress=progress,
        )

    def rename(self, name: str) -> None:
        """Give the machine another name. Raises NameTaken."""
        request = contract.RenameMachine(reference=self._reference, name=name)
        self._name = str(self._api.send(request)["name"])

    def set(self, *, force: bool = False, progress: Report | None = None, **settings: Any) -> None:
        """Change settings of the machine, as `bough set`: all of them, or none.

        Args:
            force: allow more memory, disk or vCPUs than the host has.
            settings: settings whose `change` in docs/spec.md is "stopped" or "running": memory="2GiB",
                vcpus=4, autostart=True, limits={"cpu": "50%"}, ... A limit that is None is removed.

        Raises:
            InvalidSpec: a wrong value, or a setting that cannot change; with all problems.
            BeyondHost, HostLacks: this host cannot run the machine with these settings.
            WrongState: settings change only while the machine is stopped, or (disks) while it runs.
            Conflict: a project's file has the machine's settings.
            GuestRefused: the disk has grown, and the guest could not grow its file system.
        """
        request = contract.SetMachine(reference=self._reference, settings=settings, force=force)
        self._send_long(request, None, progress)

    def delete(self, *, force: bool = False) -> None:
        """Delete the machine with its disks. Raises WrongState while it runs, unless `force`
        cuts the power.
        """
        request = contract.DeleteMachine(reference=self._reference, force=force)
        self._api.send(request, timeout=_DELETE_TIMEOUT_S)
        self._let_go()

    def discard(self) -> None:
        """Delete the machine, running or not, if it still exists.

        Raises no BoughError, so that the end of a `with` block is safe.
        """
        try:
            if self._ephemeral:
                request = contract.DeleteMachine(reference=self._reference, force=True, wait=False)
                self._api.send(request)
            else:
                self.delete(force=True)
        except BoughError:
            pass  # already deleted, or the service is down: the service deletes machines without a holder
        finally:
            self._let_go()

    def keep(self) -> None:
        """Keep an ephemeral machine: the machine stays after its `with` block and after this program."""
        self._api.send(contract.KeepMachine(reference=self._reference))
        self._ephemeral = False
        self._let_go()

    def hold(self, socket: WebSocket | None = None) -> None:
        """Keep an ephemeral machine alive for as long as this program runs.

        Args:
            socket: a connection that already holds the machine.
        """
        from bough.client.hold import Hold
        from bough.contract.host import HoldMachine

        request = HoldMachine(reference=self.id)
        self._hold = self._hold or Hold(self._api, request, f"hold {self.id}", socket)

    def _let_go(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.release()

    def wait(
        self,
        until: Literal["agent", "running", "stopped", "first-boot", "booted", "rebooted"] = "agent",
        *,
        boot_id: str | None = None,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> None:
        """Wait until the machine is as `until` says.

        Args:
            until: "running": QEMU runs. "agent": the agent answers. "first-boot": the first boot is set up.
                "booted": the guest's init has started everything. "rebooted": the same, in a later boot.
                "stopped": the machine is off.
            boot_id: with "rebooted": `info().boot_id` of the boot before; default: the present one.

        Raises:
            AgentTimeout, DeadlineExceeded: not within `timeout` seconds. None is 120 s for "stopped", and as
                long as the guest makes progress otherwise.
            MachineFailed: the machine failed instead.
        """
        request = contract.WaitMachine(
            reference=self._reference, until=until, boot_id=boot_id, timeout_s=timeout
        )
        self._send_long(request, timeout, progress)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ephemeral:
            self.discard()

    # -- snapshots and forks------------------------------------------------------------------------

    def snapshot(
        self,
        label: str | None = None,
        *,
        message: str = "",
        memory: bool = True,
        now: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> Snapshot:
        """Take a snapshot: an immutable point in time. The machine runs on after a pause of some
        milliseconds.

        Args:
            memory: include the memory of a running machine; otherwise the disks alone.
            now: do not wait for the end of the guest's boot; forks of such a snapshot finish the boot.

        Raises:
            NameTaken: the label; NoSpace, HostLacks, Conflict, MachineFailed: nothing was changed.
        """
        from bough.contract.snapshots import TakeSnapshot

        request = TakeSnapshot(machine=self._reference, label=label, message=message, memory=memory, now=now)
        data = self._api.send_long(request, timeout=timeout, progress=progress)
        return Snapshot(self._api, data["id"], label=data["label"])

    def diff(
        self, since: Machine | Snapshot | str | None = None, *, progress: Report | None = None
    ) -> SystemDifferences:
        """Return what changed in the machine: packages, configuration files, users, units, ports.

        Args:
            since: a machine, a snapshot, or the name of a machine, snapshot or image. None: the snapshot that
                the machine was forked from, or else its image.

        Raises:
            InvalidInput: a system has no file system that bough can compare.
        """
        from bough.client.differences import diff

        return diff(self._api, self, since, progress=progress)

    def restore(
        self, snapshot: Snapshot | str, *, keep: bool = False, progress: Report | None = None
    ) -> None:
        """Rewind the machine to a snapshot. Return when the agent has answered, if the snapshot has memory.

        Args:
            keep: take a snapshot of the present state first. Otherwise the present state is lost.

        Raises:
            NotFound: no such snapshot.
            Conflict: the snapshot is another machine's, or has other network cards; see `Snapshot.fork`.
        """
        from bough.contract.snapshots import RestoreMachine

        of = snapshot if isinstance(snapshot, str) else snapshot.id
        request = RestoreMachine(reference=self._reference, snapshot=of, keep=keep)
        self._send_long(request, None, progress)

    @overload
    def fork(
        self,
        name: str | None = None,
        *,
        count: None = None,
        identity: Identity = "new",
        cold: bool = False,
        ephemeral: bool = False,
        now: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> Machine: ...
    @overload
    def fork(
        self,
        name: str | None = None,
        *,
        count: int,
        identity: Identity = "new",
        cold: bool = False,
        ephemeral: bool = False,
        now: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> list[Machine]: ...
    def fork(
        self,
        name: str | None = None,
        *,
        count: int | None = None,
        identity: Identity = "new",
        cold: bool = False,
        ephemeral: bool = False,
        now: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> Machine | list[Machine]:
        """Make new machines that continue from the present state of this machine; see Snapshot.fork. This
        machine runs on.

        Args:
            now: do not wait for the end of the guest's boot; the fork finishes the boot.
        """
        given = {"identity": identity, "cold": cold, "ephemeral": ephemeral, "now": now}
        return fork(
            self._api, self._machine, self.id, name, count, timeout=timeout, progress=progress, **given
        )

    def _machine(self, reference: str, *, name: str | None = None, ephemeral: bool = False) -> Machine:
        return Machine(self._api, reference, name=name, ephemeral=ephemeral)

    def _send_long(self, request: Request, timeout: float | None, progress: Report | None) -> dict[str, Any]:
        # The service enforces the timeout and reports details. Our own timeout is for a service that hangs.
        limit = None if timeout is None else timeout + _GRACE_S
        return dict(self._api.send_long(request, timeout=limit, progress=progress))


class Snapshot(SnapshotOf[Machine]):
    """An immutable snapshot. Made by a Hypervisor or a Machine. Usable from several threads at once."""

    def _machine(self, reference: str, *, name: str | None = None, ephemeral: bool = False) -> Machine:
        return Machine(self._api, reference, name=name, ephemeral=ephemeral)


#: One of many forks: the machine, or the reason why there is none. `raw` is the service's answer.
Fork: TypeAlias = ForkOf[Machine]
