"""Two small processes above the agent: they keep commands across a restart of the agent (docs/agent.md).

    front (the unit's main process) -> keeper -> agent -> commands

The keeper is the subreaper of all commands. While no agent runs, the keeper holds copies of the streams,
collects the exit status of commands, and starts the next agent. systemd stops and starts the front. A new
front finds the old keeper at a socket.
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH103, PTH108, PTH123, SIM105

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal costs what enum costs
import _socket
import os
import select
import sys
import time

from bough.guest.agent_messages import receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    Socket = _socket.socket

#: A socket in a directory that only root can enter.
PLACE = "/run/bough/keeper.sock"
CODE = "import sys; sys.path.insert(0, {!r}); from bough.guest.agent_keeper import main; sys.exit(main({!r}))"
_START, _STOP, _ALIVE = b"start", b"stop", b"alive"
#: Time for an ending agent to hand over the commands and send all bytes read from them. Then the agent is
#: killed.
_LEAVE_S = 10.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.2, 5.0
_LONG_LIFE_S = 10.0
#: Time for commands to end by themselves when the guest shuts down.
_GRACE_S = 2.0
#: Time for which the last output and exit status of commands wait for an agent.
_ALONE_S = 300.0
_MAX_STATUSES = 4096
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Run the unit's main process. `["--agent", N]`: an agent started by a keeper at descriptor N.

    `["--fd", N, "--place", PATH]`: a front for an open descriptor instead of the port, for tests.
    """
    if arguments[:1] == ["--agent"]:
        from bough.guest.agent import serve

        control = int(arguments[1])
        os.set_inheritable(control, False)  # commands must not hold the port open
        return serve(arguments[2:], _socket.socket(fileno=control))
    place = arguments[3] if arguments[2:3] == ["--place"] else PLACE
    return _Front(place, arguments[:2]).run()


class _Front:
    """The process known to systemd. The front ends on a signal, or when the keeper has ended."""

    def __init__(self, place: str, port: list[str]) -> None:
        self._place = place
        self._port = port
        self._wakeup, write_end = os.pipe()
        for fd in (self._wakeup, write_end):
            os.set_blocking(fd, False)
        _signal.signal(_signal.SIGTERM, lambda *_: None)
        _signal.set_wakeup_fd(write_end)
        self._keeper = self._find_keeper() or self._start_keeper()
        self._keeper.send(_START)

    def run(self) -> int:
        """Run the front. Return the exit status: 0 after a signal."""
        while True:
            ready, _, _ = select.select([self._keeper.fileno(), self._wakeup], [], [])
            if self._wakeup in ready:
                break
            if self._keeper.recv(16) != _ALIVE:
                return 1
            from bough.guest.agent_port import tell_started

            tell_started()
        _end_commands_at_shutdown()
        try:
            self._keeper.send(_STOP)
            self._keeper.recv(1)
        except OSError:
            pass  # the process has ended
        return 0

    def _find_keeper(self) -> Socket | None:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
        try:
            sock.connect(self._place)
        except OSError:
            sock.close()
            return None
        return sock

    def _start_keeper(self) -> Socket:
        os.makedirs(os.path.dirname(self._place), mode=0o700, exist_ok=True)  # noqa: PTH120
        try:
            os.unlink(self._place)
        except FileNotFoundError:
            pass
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
        listener.bind(self._place)
        listener.listen(4)
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            try:
                ours.close()
                os.close(self._wakeup)
                os.close(_signal.set_wakeup_fd(-1))
                _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
                Keeper(listener, theirs, self._port).run()
            finally:
                os._exit(1)
        listener.close()
        theirs.close()
        return ours


class _Kept:
    """A kept command: the record from the agent, and copies of the streams."""

    def __init__(self, record: bytes, streams: dict[str, int]) -> None:
        self.record = record
        self.streams = streams
        self.status: int | None = None

    def close(self, stream: str) -> None:
        fd = self.streams.pop(stream, -1)
        if fd >= 0:
            os.close(fd)


class Keeper:
    """The parent of the agent and, after the agent's death, of its commands."""

    def __init__(self, listener: Socket, front: Socket, port: list[str]) -> None:
        self._listener = listener
        self._front: Socket | None = front
        self._port = port
        self._agent: Socket | None = None
        self._agent_pid = -1
        self._wanted = False
        self._leaving_until: float | None = None
        self._alone_until: float | None = None
        self._began = 0.0
        self._next_at: float | None = None
        self._pause = _FIRST_PAUSE_S
        self._started_before = False
        #: Kept commands, by pid.
        self._kept: dict[int, _Kept] = {}
        self._statuses: dict[int, int] = {}
        from bough.guest.agent_tally import create_tally

        self._tally = create_tally()
        self._wakeup, write_end = os.pipe()
        for fd in (self._wakeup, write_end):
            os.set_blocking(fd, False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(write_end)
        _become_subreaper()
        from bough.guest.agent_groups import leave_service

        leave_service()

    def run(self) -> NoReturn:
        while True:
            ready = self._wait()
            if self._agent is not None and self._agent.fileno() in ready:
                self._agent_said()
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
                self._reap()
            if self._front is not None and self._front.fileno() in ready:
                self._front_said()
            if self._listener.fileno() in ready:
                self._replace_front(_accept(self._listener))
            self._check_deadlines()

    def _wait(self) -> set[int]:
        """Return the ready descriptors; an empty list at a deadline."""
        poll = select.poll()
        for source in (self._listener, self._front, self._agent):
            if source is not None:
                poll.register(source.fileno(), select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        seconds = self._until_deadline()
        return {fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000 + 1)}

    # -- the front ----------------------------------------------------------------------------------

    def _replace_front(self, front: Socket) -> None:
        if self._front is not None:
            self._front.close()
        self._front = front

    def _front_said(self) -> None:
        assert self._front is not None
        try:
            said = self._front.recv(16)
        except OSError:
            said = b""
        if said == _START:
            self._wanted = True
            self._alone_until = None
            self._leaving_until = None
            if self._agent_pid < 0:
                self._start_agent()
            else:
                self._front.send(_ALIVE)
        elif said == _STOP:
            self._wanted = False
            self._next_at = None
            if self._agent_pid < 0:
                self._agent_has_left()
            else:
                self._leaving_until = time.monotonic() + _LEAVE_S
                os.kill(self._agent_pid, _signal.SIGTERM)
        else:
            # The front was killed. The next front comes soon; the agent goes on meanwhile.
            self._front.close()
            self._front = None

    def _agent_has_left(self) -> None:
        """Tell the front to end. Without a command, the keeper has nothing left to do."""
        if not self._kept:
            os._exit(0)
        self._alone_until = time.monotonic() + _ALONE_S
        if self._front is not None:
            self._front.close()
            self._front = None

    # -- the agent ----------------------------------------------------------------------------------

    def _start_agent(self) -> None:
        self._next_at = None
        self._began = time.monotonic()
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()  # else the agent would not see the keeper's end close
            self._become_agent(theirs)
        theirs.close()
        self._agent, self._agent_pid = ours, pid
        self._started_before = True
        self._send_kept(ours)

    def _become_agent(self, control: Socket) -> NoReturn:
        try:
            _signal.set_wakeup_fd(-1)
            for number in (_signal.SIGCHLD, _signal.SIGTERM):
                _signal.signal(number, _signal.SIG_DFL)
            if self._started_before:
                # Start the present code with the present Python.
                os.set_inheritable(control.fileno(), True)
                if self._port:
                    os.set_inheritable(int(self._port[1]), True)
                code = CODE.format(sys.path[0], ["--agent", str(control.fileno()), *self._port])
                from bough.guest.agent_python import python_words

                words = python_words()
                os.execv(words[0], [*words, "-I", "-S", "-c", code])
            self._listener.close()
            if self._front is not None:
                self._front.close()
            os.close(self._wakeup)
            from bough.guest.agent import serve

            os._exit(serve(self._port, control))
        except BaseException as error:
            os.write(2, f"bough: the agent ended: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(1)

    def _send_kept(self, agent: Socket) -> None:
        from bough.guest.wire import encode

        send(agent, encode({"tally": True}), [self._tally])
        for kept in self._kept.values():
            values = {"record": kept.record, "streams": list(kept.streams), "status": kept.status}
            send(agent, encode(values), list(kept.streams.values()))
        send(agent, encode({"begin": True}), [])

    def _drain_agent(self) -> None:
        """Read the last messages of an ended agent, without waiting: a child may hold the socket open."""
        if self._agent is not None:
            self._agent.setblocking(False)
        while self._agent is not None:
            self._agent_said()

    def _agent_said(self) -> None:
        assert self._agent is not None
        try:
            said, fds = receive(self._agent)
        except OSError:
            said, fds = b"", []
        if not said:
            self._agent.close()
            self._agent = None
            return
        from bough.guest.wire import decode_map

        values = decode_map(said)
        pid = values["pid"]
        assert isinstance(pid, int)
        if "keep" in values:
            names = values["streams"]
            assert isinstance(names, list)
            self._forget(pid)
            record = values["keep"]
            assert isinstance(record, bytes)
            self._kept[pid] = _Kept(record, dict(zip(names, fds)))  # noqa: B905 - Python 3.10
        elif "close" in values and pid in self._kept:
            self._kept[pid].close(str(values["close"]))
        elif "forget" in values:
            self._forget(pid)

    def _forget(self, pid: int) -> None:
        kept = self._kept.pop(pid, None)
        if kept is not None:
            for stream in list(kept.streams):
                kept.close(stream)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self._agent_pid:
                self._agent_ended()
            elif len(self._statuses) < _MAX_STATUSES:
                self._statuses[pid] = status
        # Read the agent's last messages before judging any exit status.
        if self._agent_pid < 0:
            self._drain_agent()
        self._take_statuses()

    def _take_statuses(self) -> None:
        from bough.guest.wire import encode

        for pid, status in self._statuses.items():
            kept = self._kept.get(pid)
            if kept is None:
                continue
            kept.status = status
            if self._agent is not None:
                try:
                    send(self._agent, encode({"pid": pid, "status": status}), [])
                except OSError:
                    pass  # the agent has died: the next one gets the status
        self._statuses.clear()

    def _agent_ended(self) -> None:
        self._agent_pid = -1
        self._leaving_until = None
        if not self._wanted:
            self._drain_agent()
            self._agent_has_left()
            return
        if time.monotonic() - self._began > _LONG_LIFE_S:
            self._pause = _FIRST_PAUSE_S
        self._next_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LAST_PAUSE_S)

    def _until_deadline(self) -> float | None:
        ends = [end for end in (self._next_at, self._leaving_until, self._alone_until) if end is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if self._leaving_until is not None and now >= self._leaving_until and self._agent_pid > 0:
            os.kill(self._agent_pid, _signal.SIGKILL)
            self._leaving_until = now + _LEAVE_S
        if self._next_at is not None and now >= self._next_at:
            self._start_agent()
        if self._alone_until is not None and now >= self._alone_until:
            # The host has given up by now, so the status of ended commands has no receiver.
            self._alone_until = now + _ALONE_S
            if all(kept.status is not None for kept in self._kept.values()):
                os._exit(0)


def _accept(listener: Socket) -> Socket:
    fd, _ = listener._accept()  # type: ignore[attr-defined]  # _socket's, without socket.py
    return _socket.socket(fileno=fd)


def _become_subreaper() -> None:
    """Become the parent of commands whose agent died (prctl(2)), to get each exit status."""
    try:
        import _ctypes  # all of ctypes costs an emulated guest 50 ms

        prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
        _ctypes.call_function(prctl, (_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    except Exception:
        pass  # a Python without ctypes: the next agent reports an unknown exit status


# -- a guest that shuts down ------------------------------------------------------------------------


def _end_commands_at_shutdown() -> None:
    """End commands when the guest shuts down: commands survive a restart of the unit, but would delay a
    shutdown.
    """
    others = _others()
    if not others or not _is_shutting_down():
        return
    deadline = time.monotonic() + _GRACE_S
    while others:
        names = (_signal.SIGKILL,) if time.monotonic() > deadline else ()
        for pid in others:
            _kill(pid, names or (_signal.SIGCONT, _signal.SIGHUP, _signal.SIGTERM))
        if names:
            return
        time.sleep(0.05)
        others = _others()


def _kill(pid: int, signals: tuple[int, ...]) -> None:
    for number in signals:
        try:
            os.kill(pid, number)
        except OSError:
            pass  # the process has just ended


def _others() -> list[int]:
    """Return the processes of the unit's control group other than front, keeper and agent: all commands."""
    try:
        with open("/proc/self/cgroup", "rb", buffering=0) as file:
            lines = file.read(65536).decode("utf-8", "replace").splitlines()
        places = [line.split(":", 2) for line in lines]
        for number, name, path in places:
            if path.endswith(".service") and (number == "0" or name == "name=systemd"):
                root = "/sys/fs/cgroup" if number == "0" else "/sys/fs/cgroup/systemd"
                with open(f"{root}{path}/cgroup.procs", "rb", buffering=0) as file:
                    pids = [int(pid) for pid in file.read(1 << 20).split()]
                return [pid for pid in pids if not _is_ours(pid)]
    except (OSError, ValueError):
        pass  # no control groups here: the shutdown ends all processes
    return []


def _is_ours(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            return b"from bough.guest.agent_keeper import main" in file.read(4096)
    except OSError:
        return True  # the process has ended


def _is_shutting_down() -> bool:
    if not os.path.isdir("/run/systemd/system"):  # noqa: PTH112
        return False
    read_end, write_end = os.pipe()
    words = ["systemctl", "is-system-running"]
    actions = [(os.POSIX_SPAWN_DUP2, write_end, 1), (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
    try:
        pid = os.posix_spawnp(words[0], words, dict(os.environ), file_actions=actions)
    except OSError:
        os.close(read_end)
        return False
    finally:
        os.close(write_end)
    said = os.read(read_end, 100)
    os.close(read_end)
    os.waitpid(pid, 0)
    return said.strip() == b"stopping"
