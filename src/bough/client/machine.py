"""The Python API's machine and snapshot. They share a file, because each makes the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from bough.client.connection import QUICK_TIMEOUT_S, Connection
from bough.client.guest import RunningGuest
from bough.contract import machines as contract
from bough.errors import BoughError, error_from_dict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from bough.client.hold import Hold
    from bough.client.websocket import WebSocket
    from bough.contract.answers import MachineInfo, SnapshotInfo
    from bough.contract.request import Request
    from bough.contract.snapshots import Identity
    from bough.progress import Report

#: Seconds that a call may take beyond the service's own timeout.
_GRACE_S = 15.0
#: Longest time for a guest's power-off if no deadline is given.
_STOP_S = 180.0
_DELETE_TIMEOUT_S = 2 * QUICK_TIMEOUT_S
_KEYS_TIMEOUT_S = 600.0


class Machine(RunningGuest):
    """A machine. Made by a Hypervisor. Usable from several threads at once. Refers to the machine by id, so
    renames do not matter.

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

    # -- state ------------------------------------------------------------------------------------

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

    def logs(self, source: Literal["console", "qemu"] = "console", *, tail_bytes: int = 64 * 1024) -> str:
        """Return the end of the console, or of QEMU's standard error. Unfiltered guest output: unsafe for a
        terminal.
        """
        request = contract.GetLogs(reference=self._reference, source=source, tail=tail_bytes)
        return str(self._api.send(request))

    def screenshot(self) -> bytes:
        """Return the screen as PNG. Raises WrongState if the machine has no screen."""
        from bough.contract.screen import GetScreenshot

        return bytes(self._api.send(GetScreenshot(reference=self._reference)))

    def screen_text(self) -> str:
        """Return the text of a PC's screen in text mode. Raises InvalidInput if the screen shows graphics."""
        from bough.contract.screen import GetScreenText

        return str(self._api.send(GetScreenText(reference=self._reference)))

    def type(self, text: str = "", *, keys: Sequence[str] = ()) -> None:
        """Type `text` on the (US) keyboard, then press `keys`: "enter", "ctrl-alt-delete"."""
        from bough.contract.screen import PressKeys

        request = PressKeys(reference=self._reference, text=text, keys=keys)
        self._api.send(request, timeout=_KEYS_TIMEOUT_S)

    def console(self, *, backlog: bool = False) -> WebSocket:
        """Connect to the serial console. With `backlog`, the end of earlier output comes first.

        `receive` returns the guest's output, and `send` types. Other clients may be connected, too.
        """
        from bough.contract.screen import AttachConsole

        return self._api.open(AttachConsole(reference=self._reference, backlog=backlog))

    def load(self) -> dict[str, Any]:
        """Return memory and load, as the guest counts them."""
        return dict(self._api.send(contract.GetLoad(reference=self._reference)))

    def ping(self) -> float:
        """Return the seconds that the agent took to answer."""
        return float(self._api.send(contract.PingMachine(reference=self._reference))["rtt_s"])

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
        """Start the machine. With `wait`, return when the agent has answered and the set-up of the first boot
        is done.

        Return whether the machine ran already. The call changes nothing then.

        Args:
            until: what to wait for; see `wait`.
            cold: a suspended machine boots from its disks and loses the content of its memory; otherwise it
                continues.
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

        Args:
            deadline: None: when the guest has made no progress for 60 s, at most after 180 s.

        Return "guest" or "power", or "already" for a machine that did not run.
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
        """Stop (see `stop`) and start (see `start`)."""
        request = contract.RestartMachine(
            reference=self._reference, deadline_s=deadline, wait=wait, until=until, timeout_s=timeout
        )
        limit = None if timeout is None else timeout + (deadline or _STOP_S)
        self._send_long(request, limit, progress)

    def pause(self) -> bool:
        """Pause the machine: the vCPUs do not run, the memory stays. Return whether the machine was paused
        already.
        """
        return bool(self._api.send(contract.PauseMachine(reference=self._reference))["already"])

    def suspend(self, *, progress: Report | None = None) -> bool:
        """Save the memory to disk and end QEMU. `resume` or `start` continue, also after a reboot of the
        host. Return whether the machine was suspended already.
        """
        request = contract.SuspendMachine(reference=self._reference)
        return bool(self._send_long(request, None, progress)["already"])

    def resume(
        self, *, wait: bool = True, timeout: float | None = None, progress: Report | None = None
    ) -> bool:
        """Continue a paused or suspended machine. With `wait`, a suspended machine has answered.

        Return whether the machine ran already.

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
        """Export to a file.

        .bough: a bundle, from which `import_bundle` continues on another host. The bundle of a running
        machine has the memory; the machine runs on.
        .qcow2 or .ova: the disks for other hypervisors.

        Args:
            without_image: leave out the content of the image, which the other host must have.
        """
        from bough.client.bundle import export_file

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

    def hold(self, socket: WebSocket | None = None) -> None:
        """Keep an ephemeral machine alive for as long as this program runs.

        Args:
            socket: a connection that already holds the machine.
        """
        from bough.client.hold import Hold

        self._hold = self._hold or Hold(self._api, self.id, socket)

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
        """Wait until the agent answers, the machine has stopped, or a boot is complete.

        "booted": the guest's init has started everything; "rebooted": likewise in a later boot.

        Args:
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

    def restore(
        self, snapshot: Snapshot | str, *, keep: bool = False, progress: Report | None = None
    ) -> None:
        """Restore the machine to the snapshot. With `keep`, take a snapshot of the present state first."""
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
        return fork(self._api, self.id, name, count, identity, cold, ephemeral, timeout, progress, now)

    def _send_long(self, request: Request, timeout: float | None, progress: Report | None) -> dict[str, Any]:
        # The service enforces the timeout and reports details. Our own timeout is for a service that hangs.
        limit = None if timeout is None else timeout + _GRACE_S
        return dict(self._api.send_long(request, timeout=limit, progress=progress))


class Fork(NamedTuple):
    """One of many forks: the machine, or the reason why there is none. `raw` is the service's answer."""

    machine: Machine | None
    error: BoughError | None
    raw: dict[str, Any]


class Snapshot:
    """An immutable snapshot. Made by a Hypervisor or a Machine. Usable from several threads at once."""

    def __init__(self, api: Connection, snapshot_id: str, *, label: str | None = None) -> None:
        self._api = api
        self.id = snapshot_id
        self.label = label

    def __repr__(self) -> str:
        return f"<bough.Snapshot {self.label or self.id}>"

    def info(self) -> SnapshotInfo:
        from bough.contract.answers import SnapshotInfo
        from bough.contract.snapshots import GetSnapshot

        return SnapshotInfo.from_dict(self._api.send(GetSnapshot(reference=self.id)))

    def verify(self, *, timeout: float | None = None, progress: Report | None = None) -> None:
        """Read the whole snapshot and compare checksums. Raises BoughError "snapshot-damaged"."""
        from bough.contract.snapshots import VerifySnapshot

        self._api.send_long(VerifySnapshot(reference=self.id), timeout=timeout, progress=progress)

    def delete(self) -> None:
        """Delete the snapshot. Forks and other snapshots keep their backing files."""
        from bough.contract.snapshots import DeleteSnapshot

        self._api.send(DeleteSnapshot(reference=self.id))

    def keep_standby(self, count: int) -> None:
        """Keep `count` paused standby machines, forks of this snapshot; 0 stops keeping them.

        `fork` gets a standby machine within milliseconds, unless the fork keeps the parent's identity. bough
        makes standby machines in the background, runs them for some seconds, and discards them while the
        host is short of memory.

        Raises:
            InvalidInput: the snapshot has no memory, or its machine does not have bough's agent.
        """
        from bough.contract.host import KeepStandby

        self._api.send(KeepStandby(snapshot=self.id, count=count))

    @overload
    def fork(
        self,
        name: str | None = None,
        *,
        count: None = None,
        identity: Identity = "new",
        cold: bool = False,
        ephemeral: bool = False,
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
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> Machine | list[Machine]:
        """Make a new machine that continues from the snapshot. With `count`, make that many and return a
        list.

        Args:
            name: with `count` name-1, name-2, ...; None: a generated name.
            identity: "keep": the fork keeps its parent's identity (host name, keys, MAC address).
            cold: fork the disks alone; the fork is stopped.
            ephemeral: deleted when its `with` block or this program ends.

        Raises:
            BoughError: the error of the first fork that failed; the other forks stay (see `fork_each`).
        """
        return fork(self._api, self.id, name, count, identity, cold, ephemeral, timeout, progress)


def fork(
    api: Connection,
    source: str,
    name: str | None,
    count: int | None,
    identity: Identity,
    cold: bool,
    ephemeral: bool,
    timeout: float | None,
    progress: Report | None,
    now: bool = False,
) -> Machine | list[Machine]:
    made = fork_each(
        api,
        source,
        names=[name] if name else [],
        count=count or 1,
        identity=identity,
        cold=cold,
        ephemeral=ephemeral,
        timeout=timeout,
        progress=progress,
        now=now,
    )
    for one in made:
        if one.error is not None:
            raise one.error
    machines = [one.machine for one in made if one.machine is not None]
    return machines if count is not None else machines[0]


def fork_each(
    api: Connection,
    source: str,
    *,
    names: Sequence[str] = (),
    count: int | None = None,
    identity: Identity = "new",
    cold: bool = False,
    ephemeral: bool = False,
    timeout: float | None = None,
    progress: Report | None = None,
    now: bool = False,
) -> list[Fork]:
    """Make forks that succeed or fail independently. Raises only if the source cannot be forked."""
    from bough.contract.snapshots import MakeForks

    request = MakeForks(
        source=source,
        names=names,
        count=count,
        identity=identity,
        cold=cold,
        ephemeral=ephemeral,
        timeout_s=timeout,
        now=now,
    )
    limit = None if timeout is None else timeout + 4 * _GRACE_S
    answer = api.send_long(request, timeout=limit, progress=progress)
    return [_fork(api, one, ephemeral) for one in answer]


def _fork(api: Connection, data: dict[str, Any], ephemeral: bool) -> Fork:
    if "error" in data:
        return Fork(None, error_from_dict(data["error"]), data)
    machine = Machine(api, data["machine"]["id"], name=data["machine"]["name"], ephemeral=ephemeral)
    if ephemeral:
        machine.hold()
    return Fork(machine, None, data)
