"""The Python API's machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, overload

from bough.client.connection import QUICK_TIMEOUT_S, Connection, path_of
from bough.errors import BoughError, CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from bough.client.copy import CopyResult
    from bough.client.hold import Hold
    from bough.client.info import MachineInfo, Mount, Port
    from bough.client.process import ExitStatus, Process
    from bough.client.snapshot import Snapshot
    from bough.client.tunnel import Tunnel
    from bough.client.websocket import WebSocket
    from bough.progress import Report

#: Seconds that a call may take beyond the service's own timeout.
_GRACE_S = 15.0
#: Longest time for a guest's power-off if no deadline is given.
_STOP_S = 180.0
_MOUNT_TIMEOUT_S = 180.0
Output = TypeVar("Output", str, bytes)


class Completed(NamedTuple, Generic[Output]):
    """A command that has ended: by itself with `exit_code`, or by the signal named `signal`."""

    exit_code: int | None
    signal: str | None
    stdout: Output
    stderr: Output

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


class Machine:
    """A machine. Made by a Hypervisor. Usable from several threads at once. Refers to the machine by id, so
    renames do not matter.

    Every call raises errors of bough.errors: NotFound if the machine was deleted meanwhile, WrongState if its
    state does not allow the call, AgentUnavailable if it runs and its agent does not answer.
    """

    def __init__(
        self, api: Connection, reference: str, *, name: str | None = None, ephemeral: bool = False
    ) -> None:
        self._api = api
        self._reference = reference
        self._name = name
        self._ephemeral = ephemeral
        self._hold: Hold | None = None

    def __repr__(self) -> str:
        return f"<bough.Machine {self._name or self._reference}>"

    # -- what it is -------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return self._reference

    @property
    def name(self) -> str:
        if self._name is None:
            self._name = self.info().name
        return self._name

    @property
    def state(self) -> str:
        """Return the present state: stopped, starting, running, paused, suspended, stopping or failed."""
        return self.info().state

    def info(self) -> MachineInfo:
        from bough.client.info import MachineInfo

        info = MachineInfo.from_dict(self._api.get(self._path()))
        self._name = info.name
        return info

    def plan(self) -> dict[str, Any]:
        """Return the plan of the next start: {"plan": data, "argv": QEMU's command line}."""
        return dict(self._api.get(self._path("plan")))

    def logs(self, source: Literal["console", "qemu"] = "console", *, tail_bytes: int = 64 * 1024) -> str:
        """Return the end of the console, or of QEMU's standard error. Unfiltered guest output: unsafe for a
        terminal.
        """
        return str(self._api.get(self._path("logs", source=source, tail=tail_bytes)))

    def screenshot(self) -> bytes:
        """Return the screen as PNG. Raises WrongState if the machine has no screen."""
        return self._api.get_bytes(self._path("screenshot"))

    def screen_text(self) -> str:
        """Return the text of a PC's screen in text mode. Raises InvalidInput if the screen shows graphics."""
        return str(self._api.get(self._path("screenshot", **{"as": "text"})))

    def type(self, text: str = "", *, keys: Sequence[str] = ()) -> None:
        """Type `text` on the (US) keyboard, then press `keys`: "enter", "ctrl-alt-delete"."""
        self._api.post(self._path("keys"), {"text": text, "keys": list(keys)}, timeout=600)

    def load(self) -> dict[str, Any]:
        """Return memory and load, as the guest counts them."""
        return dict(self._api.get(self._path("load")))

    def ping(self) -> float:
        """Return the seconds that the agent took to answer."""
        return float(self._api.post(self._path("ping"))["rtt_s"])

    # -- its life ---------------------------------------------------------------------------------

    def start(
        self,
        *,
        wait: bool = True,
        until: Literal["agent", "booted"] = "agent",
        cold: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> None:
        """Start the machine. With `wait`, return when the agent has answered and the set-up of the first boot
        is done.

        Changes nothing if the machine runs already.

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
        body = {"wait": wait, "until": until, "cold": cold, **_timeout(timeout)}
        self._long("start", body, timeout, progress)

    def stop(
        self, *, deadline: float | None = None, force: bool = False, progress: Report | None = None
    ) -> Literal["guest", "power", "already"]:
        """Ask the guest to power off. Cut the power after `deadline` seconds, or at once with `force`.

        Args:
            deadline: None: when the guest has made no progress for 60 s, at most after 180 s.

        Returns which of the two happened, or "already" for a machine that did not run.
        """
        answer = self._long("stop", {"deadline_s": deadline, "force": force}, None, progress)
        how = answer.get("how")
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
        body = {"deadline_s": deadline, "wait": wait, "until": until, **_timeout(timeout)}
        self._long("restart", body, None if timeout is None else timeout + (deadline or _STOP_S), progress)

    def pause(self) -> None:
        """Pause the machine: its vCPUs do not run, its memory stays."""
        self._api.post(self._path("pause"))

    def suspend(self, *, progress: Report | None = None) -> None:
        """Save the memory to disk and end QEMU. `resume` or `start` continue, also after a reboot of the
        host.
        """
        self._long("suspend", {}, None, progress)

    def resume(
        self, *, wait: bool = True, timeout: float | None = None, progress: Report | None = None
    ) -> None:
        """Continue a paused or suspended machine. With `wait`, a suspended machine has answered.

        Raises:
            MachineFailed, HostLacks: the memory cannot be continued here; the machine is still suspended.
        """
        self._long("resume", {"wait": wait, **_timeout(timeout)}, timeout, progress)

    def export(
        self,
        path: str | PathLike[str],
        *,
        disks_only: bool = False,
        without_image: bool = False,
        progress: Report | None = None,
    ) -> None:
        """Export to a file.

        .bough: a machine that can continue elsewhere, with its memory if it runs; the machine itself runs on.
        .qcow2 or .ova: its disks for other hypervisors.

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
        self._name = str(self._api.call("PATCH", self._path(), {"name": name})["name"])

    def delete(self, *, force: bool = False) -> None:
        """Delete the machine with its disks. Raises WrongState while it runs, unless `force`
        cuts the power.
        """
        self._api.call("DELETE", self._path(force=force or None), timeout=QUICK_TIMEOUT_S * 2)
        self._let_go()

    def discard(self) -> None:
        """Delete the machine, running or not, if it still exists.

        Raises no BoughError, so that the end of a `with` block is safe.
        """
        try:
            if self._ephemeral:
                self._api.call("DELETE", self._path(force=True, wait=False))
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
        self._long("wait", {"until": until, "boot_id": boot_id, **_timeout(timeout)}, timeout, progress)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ephemeral:
            self.discard()

    # -- branches of it ---------------------------------------------------------------------------

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
        from bough.client.snapshot import Snapshot

        body = {
            "machine": self._reference,
            "label": label,
            "message": message,
            "memory": memory,
            "now": now,
        }
        data = self._api.long_call("POST", "/snapshots", body, timeout=timeout, progress=progress)
        return Snapshot(self._api, data["id"], label=data["label"])

    def restore(
        self, snapshot: Snapshot | str, *, keep: bool = False, progress: Report | None = None
    ) -> None:
        """Restore the machine to the snapshot. With `keep`, take a snapshot of the present state first."""
        reference = snapshot if isinstance(snapshot, str) else snapshot.id
        self._long("restore", {"snapshot": reference, "keep": keep}, None, progress)

    @overload
    def fork(
        self,
        name: str | None = None,
        *,
        count: None = None,
        identity: Literal["new", "keep"] = "new",
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
        identity: Literal["new", "keep"] = "new",
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
        identity: Literal["new", "keep"] = "new",
        cold: bool = False,
        ephemeral: bool = False,
        now: bool = False,
        timeout: float | None = None,
        progress: Report | None = None,
    ) -> Machine | list[Machine]:
        """Make new machines that continue from the present point of this one, which runs on; see
        Snapshot.fork.

        Args:
            now: do not wait for the end of the guest's boot; the fork finishes the boot.
        """
        from bough.client.snapshot import fork

        return fork(self._api, self.id, name, count, identity, cold, ephemeral, timeout, progress, now)

    # -- commands in it ---------------------------------------------------------------------------

    def spawn(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: bool = False,
        rows: int = 24,
        columns: int = 80,
        term: str = "xterm",
        timeout: float | None = None,
    ) -> Process:
        """Start a command that runs while its streams are read and written.

        Args:
            user: the user that runs the command; default: root.
            tty: with a terminal: one stream of output, and Ctrl-C is a character.
            timeout: seconds; then the command is killed and reading raises DeadlineExceeded.
        """
        from bough.client.process import Process

        request: dict[str, Any] = {"argv": list(argv)}
        if tty:
            request |= {"tty": True, "rows": rows, "columns": columns, "term": term}
        given = {"env": dict(env) if env else None, "cwd": cwd, "user": user, "timeout_s": timeout}
        request |= {name: value for name, value in given.items() if value is not None}
        return Process(self._api.websocket(self._path("exec")), request)

    @overload
    def exec(
        self,
        *argv: str,
        input: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = False,
        text: Literal[True] = True,
    ) -> Completed[str]: ...
    @overload
    def exec(
        self,
        *argv: str,
        input: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = False,
        text: Literal[False],
    ) -> Completed[bytes]: ...
    def exec(
        self,
        *argv: str,
        input: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = False,
        text: bool = True,
    ) -> Completed[str] | Completed[bytes]:
        """Run a command to its end. No shell: words are passed unchanged.

        Args:
            input: standard input; default: empty.
            timeout: seconds; then the command is killed.
            check: raise CommandFailed unless the command ends with 0.
            text: decode the output as UTF-8, with U+FFFD for invalid bytes; False gives bytes.

        Raises:
            GuestRefused: no such command, user or directory.
            DeadlineExceeded: the command was killed after `timeout` seconds.
        """
        from bough.client.process import feed

        found: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        with self.spawn(*argv, env=env, cwd=cwd, user=user, timeout=timeout) as process:
            feed(process, input.encode() if isinstance(input, str) else input or b"")
            for stream, data in process:
                found[stream].append(data)
            status = process.wait()
        out, err = b"".join(found["stdout"]), b"".join(found["stderr"])
        if check and status.code != 0:
            raise _command_failed(self.name, argv, status, out, err)
        if not text:
            return Completed(status.code, status.signal, out, err)
        return Completed(
            status.code, status.signal, out.decode(errors="replace"), err.decode(errors="replace")
        )

    def shell(self, script: str, **options: Any) -> Completed[str]:
        """Run a script by `sh`; options as for `exec`."""
        return self.exec("sh", "-c", script, text=True, **options)

    # -- files ------------------------------------------------------------------------------------

    def copy_to(
        self,
        source: str | PathLike[str] | Sequence[str | PathLike[str]],
        destination: str,
        *,
        owner: bool = False,
        progress: Report | None = None,
    ) -> CopyResult:
        """Copy files and trees of the host into the guest, as `cp -r` does; see bough.client.copy."""
        from bough.client.copy import copy_in

        return copy_in(self, source, destination, progress, owner=owner)

    def copy_from(
        self,
        source: str | Sequence[str],
        destination: str | PathLike[str],
        *,
        owner: bool = False,
        progress: Report | None = None,
    ) -> CopyResult:
        """Copy files and trees of the guest to the host, as `cp -r` does; see bough.client.copy."""
        from bough.client.copy import copy_out

        return copy_out(self, source, destination, progress, owner=owner)

    def read_file(self, path: str, *, max_bytes: int = 64 * 1024 * 1024) -> bytes:
        """Return a file's content. Raises NotFound, GuestRefused; and if the file is larger than
        `max_bytes`.
        """
        from bough.client.copy import read_file

        return read_file(self, path, max_bytes)

    def read_text(self, path: str) -> str:
        """Return a file's content as UTF-8."""
        return self.read_file(path).decode()

    def write_file(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file completely or not at all: the content is written to a temporary file, which is
        renamed.
        """
        from bough.client.copy import write_file

        write_file(self, path, content.encode() if isinstance(content, str) else content, mode)

    # -- ports ------------------------------------------------------------------------------------

    def ports(self) -> list[Port]:
        from bough.client.info import Port

        return [Port.from_dict(port) for port in self._api.get(self._path("ports"))]

    def forward(self, guest_port: int, host_port: int = 0, *, host: str = "127.0.0.1") -> Port:
        """Forward a TCP port of the host to a port of the guest, also after restarts. Host port 0: any free
        port.

        Raises:
            Conflict: the host's port is in use.
        """
        from bough.client.info import Port

        body = {"guest_port": guest_port, "host_port": host_port, "host": host}
        return Port.from_dict(self._api.post(self._path("ports"), body))

    def unforward(self, host_port: int) -> None:
        self._api.call("DELETE", self._path("ports", str(host_port)))

    def tunnel(self, port: int) -> Tunnel:
        """Open one TCP connection to a port inside the guest. Raises GuestRefused if nothing
        listens there.
        """
        from bough.client.tunnel import Tunnel

        return Tunnel(self._api.websocket(self._path("tunnel", port=port)))

    # -- directories of the host --------------------------------------------------------------------

    def mounts(self) -> list[Mount]:
        from bough.client.info import Mount

        return [Mount.from_dict(mount) for mount in self._api.get(self._path("mounts"))]

    def mount(
        self,
        source: str | PathLike[str],
        target: str,
        *,
        writable: bool = False,
        owner: str | None = None,
        cache: str | int | None = None,
    ) -> None:
        """Share a directory of this host: at once if the machine runs, and at each later start.

        Args:
            owner: "user" or "user:group" that owns the files in the guest; default: the guest's first user,
                or root.
            cache: for how long the guest may cache what it knows of a file, like "5s"; default: 1 s.

        Raises:
            NotFound, InvalidInput: no such directory, or one that cannot be shared.
            GuestRefused: the guest cannot mount the directory; nothing was changed.
        """
        from os import fspath

        from bough.client.spec_files import resolve_mount

        given = {"owner": owner, "cache": cache}
        body = {"source": fspath(source), "target": target, "writable": writable}
        body |= {name: value for name, value in given.items() if value is not None}
        self._api.call("POST", self._path("mounts"), resolve_mount(body), timeout=_MOUNT_TIMEOUT_S)

    def unmount(self, target: str, *, force: bool = False) -> None:
        """Stop sharing a directory. Raises Conflict while a process of the guest uses the mount, unless
        `force`.
        """
        self._api.call("DELETE", self._path("mounts", target=target, force=force), timeout=_MOUNT_TIMEOUT_S)

    # -- the API ----------------------------------------------------------------------------------

    def _path(self, *parts: str, **query: Any) -> str:
        return path_of("machines", self._reference, *parts, **query)

    def _long(
        self, call: str, body: dict[str, Any], timeout: float | None, progress: Report | None
    ) -> dict[str, Any]:
        # The service enforces the timeout and reports details. Our own timeout is for a service that hangs.
        limit = None if timeout is None else timeout + _GRACE_S
        return dict(self._api.long_call("POST", self._path(call), body, timeout=limit, progress=progress))


def _timeout(timeout: float | None) -> dict[str, float | None]:
    return {"timeout_s": timeout}


def _command_failed(
    machine: str, argv: tuple[str, ...], status: ExitStatus, out: bytes, err: bytes
) -> CommandFailed:
    code, signal = status
    how = f"was ended by signal {signal}" if signal else f"ended with {code}"
    end = err.decode(errors="replace")[-2000:]
    said = f": {end.strip().splitlines()[-1]}" if end.strip() else ""
    return CommandFailed(
        f"{argv[0]} in machine '{machine}' {how}{said}",
        machine=machine,
        argv=list(argv),
        exit_code=code,
        signal=signal,
        stdout=out.decode(errors="replace")[-2000:],
        stderr=end,
    )
