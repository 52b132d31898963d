"""The Python API's access to a machine that runs: commands, files, ports, directories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, overload

from bough.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from bough.client.connection import Connection
    from bough.client.copy import CopyResult
    from bough.client.process import ExitStatus, Process
    from bough.client.tunnel import Tunnel
    from bough.contract.answers import Mount, Port
    from bough.progress import Report

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
        """Return whether the command has ended with status 0."""
        return self.exit_code == 0


class RunningGuest:
    """The commands, files, ports and directories of a running machine. Usable from several threads at once.

    Every call raises AgentUnavailable if the machine runs and its agent does not answer.

    Args:
        reference: the machine's name, id, or the unique beginning of its id.
        name: the machine's name; None: not known yet.
    """

    def __init__(self, api: Connection, reference: str, *, name: str | None = None) -> None:
        self._api = api
        self._reference = reference
        self._name = name

    @property
    def id(self) -> str:
        """Return the machine's id, or the reference that this object was made with."""
        return self._reference

    @property
    def name(self) -> str:
        if self._name is None:
            from bough.contract.machines import GetMachine

            self._name = str(self._api.send(GetMachine(reference=self._reference))["name"])
        return self._name

    def load(self) -> dict[str, Any]:
        """Return the memory and the load that the guest counts."""
        from bough.contract.machines import GetLoad

        return dict(self._api.send(GetLoad(reference=self._reference)))

    def ping(self) -> float:
        """Return the seconds that the agent took to answer."""
        from bough.contract.machines import PingMachine

        return float(self._api.send(PingMachine(reference=self._reference))["rtt_s"])

    # -- commands ---------------------------------------------------------------------------------

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
        patience: float | None = None,
        as_image: bool = True,
    ) -> Process:
        """Start a command. The Process reads and writes the command's streams while the command runs.

        Args:
            user: the user that runs the command; default: the container image's, or root.
            as_image: the environment, the user and the directory that are not given are the container
                image's; False: those of root's login.
            tty: with a terminal: one stream of output, and Ctrl-C is a character.
            timeout: seconds; then the command is killed and reading raises DeadlineExceeded.
            patience: as `timeout`, but in seconds of the guest: while the guest works, only the processor
                time of its QEMU counts. On a busy host the time is longer, at most 30 times as long.
        """
        from bough.client.process import Process
        from bough.contract.commands import Command, ExecInMachine

        command = Command(
            argv=argv,
            env=dict(env or {}),
            cwd=cwd,
            user=user,
            tty=tty,
            rows=rows,
            columns=columns,
            term=term,
            timeout_s=timeout,
            patience_s=patience,
            as_image=as_image,
        )
        return Process(self._api.open(ExecInMachine(reference=self._reference)), command)

    @overload
    def exec(
        self,
        *argv: str,
        input: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        as_image: bool = True,
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
        as_image: bool = True,
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
        as_image: bool = True,
        check: bool = False,
        text: bool = True,
    ) -> Completed[str] | Completed[bytes]:
        """Run a command to its end. No shell: words are passed unchanged.

        Args:
            input: standard input; default: empty.
            timeout: seconds; then the command is killed.
            as_image: as in `spawn`.
            check: raise CommandFailed unless the command ends with 0.
            text: decode the output as UTF-8, with U+FFFD for invalid bytes; False gives bytes.

        Raises:
            GuestRefused: no such command, user or directory.
            DeadlineExceeded: the command was killed after `timeout` seconds.
        """
        from bough.client.process import feed

        found: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        options: dict[str, Any] = {"env": env, "cwd": cwd, "user": user, "as_image": as_image}
        with self.spawn(*argv, timeout=timeout, **options) as process:
            feed(process, input.encode() if isinstance(input, str) else input or b"")
            for stream, data in process:
                found[stream].append(data)
            status = process.wait()
        out, err = b"".join(found["stdout"]), b"".join(found["stderr"])
        if check and status.code != 0:
            raise command_failed(self.name, argv, status, out, err)
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
        """Return a file's content.

        Raises:
            NotFound, GuestRefused: no such file, or it cannot be read.
            InvalidInput: the file is larger than `max_bytes`.
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
        """Return the forwarded ports."""
        from bough.contract.answers import Port
        from bough.contract.ports import ListPorts

        found = self._api.send(ListPorts(reference=self._reference))
        return [Port.from_dict(port) for port in found]

    def forward(self, guest_port: int, host_port: int = 0, *, host: str = "127.0.0.1") -> Port:
        """Forward a TCP port of the host to a port of the guest. The forward stays after restarts.

        Args:
            host_port: 0 selects a free port.
            host: address of the host at which the port listens.

        Raises:
            Conflict: the host's port is in use.
        """
        from bough.contract.answers import Port
        from bough.contract.ports import AddPort

        request = AddPort(reference=self._reference, guest_port=guest_port, host_port=host_port, host=host)
        return Port.from_dict(self._api.send(request))

    def unforward(self, host_port: int) -> None:
        """Stop forwarding the port of the host."""
        from bough.contract.ports import RemovePort

        self._api.send(RemovePort(reference=self._reference, host_port=host_port))

    def tunnel(self, port: int) -> Tunnel:
        """Open a TCP connection to a port inside the guest. Raises GuestRefused if no program listens."""
        from bough.client.tunnel import Tunnel
        from bough.contract.ports import OpenTunnel

        return Tunnel(self._api.open(OpenTunnel(reference=self._reference, port=port)))

    # -- directories of the host --------------------------------------------------------------------

    def mounts(self) -> list[Mount]:
        """Return the shared directories, with the state of each."""
        from bough.contract.answers import Mount
        from bough.contract.mounts import ListMounts

        found = self._api.send(ListMounts(reference=self._reference))
        return [Mount.from_dict(mount) for mount in found]

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
        from bough.contract.mounts import AddMount

        given = {"owner": owner, "cache": cache}
        mount = {"source": fspath(source), "target": target, "writable": writable}
        mount |= {name: value for name, value in given.items() if value is not None}
        request = AddMount(reference=self._reference, mount=resolve_mount(mount))
        self._api.send(request, timeout=_MOUNT_TIMEOUT_S)

    def retry_mounts(self) -> None:
        """Try the failed mounts again."""
        from bough.contract.mounts import RetryMounts

        self._api.send(RetryMounts(reference=self._reference), timeout=_MOUNT_TIMEOUT_S)

    def unmount(self, target: str, *, force: bool = False) -> None:
        """Stop sharing a directory. Raises Conflict while a process of the guest uses the mount, unless
        `force`.
        """
        from bough.contract.mounts import RemoveMount

        request = RemoveMount(reference=self._reference, target=target, force=force)
        self._api.send(request, timeout=_MOUNT_TIMEOUT_S)


def command_failed(
    machine: str, argv: Sequence[str], status: ExitStatus, out: bytes, err: bytes
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
