"""Start commands with a login's environment, as fast as the guest can.

posix_spawn does not copy the agent's page tables as fork does, and takes half of the time in an emulated
guest. Python 3.7 uses fork.
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH103, PTH110, PTH112, PTH113, PTH118

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal costs what enum costs
import os

from bough.guest.agent_login import Identity, login_environment
from bough.guest.agent_python import BUSYBOX, TOOLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_FIONREAD = 0x541B
_TIOCSWINSZ = 0x5414
_TIOCSCTTY = 0x540E
_ENOENT = 2
_ENOEXEC = 8
_ADDR_NO_RANDOMIZE = 0x0040000
_SHELL = b"/bin/sh"
# A command must ignore none of these signals. Python ignores the first two, the agent's parent perhaps
# others.
_PERHAPS_IGNORED = (
    _signal.SIGPIPE,
    _signal.SIGXFSZ,
    _signal.SIGHUP,
    _signal.SIGINT,
    _signal.SIGQUIT,
    _signal.SIGTERM,
    _signal.SIGTSTP,
    _signal.SIGTTIN,
    _signal.SIGTTOU,
)


class Process:
    """A started command: the pid, and the agent's ends of the streams (-1: no such stream).

    `terminal` is another descriptor of the command's terminal. The close of the last descriptor hangs the
    terminal up. `failure`, for a command started with `apart`, ends when the command runs. Before the end, an
    error may come.
    """

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int, terminal: int = -1) -> None:
        self.pid = pid
        self.failure = -1
        self.terminal = terminal
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr


def start(request: dict[str, object], *, apart: bool = False) -> Process:
    """Start the command of an EXEC frame. Raises OSError, with the command as file name, on failure.

    With `apart`, only a child touches the files of the request: on a file system served by this process, the
    process would wait for itself. `apart` is slower, and `Process.failure` reports errors.
    """
    keep_addresses(request.get("same_addresses") is True)
    command = _Apart(request) if apart else _Command(request)
    process = (_start_on_terminal if request.get("tty") else _start_on_pipes)(request, command)
    process.failure = command.failure
    return process


def keep_addresses(same: bool) -> None:
    """Load later programs at the same addresses each time, or at random addresses (personality(2))."""
    global _same_addresses  # noqa: PLW0603 - of this process, as the kernel's
    if same == _same_addresses:
        return
    try:
        import _ctypes  # all of ctypes costs an emulated guest 50 ms

        personality = _ctypes.dlsym(_ctypes.dlopen(None, 0), "personality")  # type: ignore[arg-type]
        now = _ctypes.call_function(personality, (0xFFFFFFFF,))
        wanted = now | _ADDR_NO_RANDOMIZE if same else now & ~_ADDR_NO_RANDOMIZE
        _ctypes.call_function(personality, (wanted,))
    except Exception:
        pass  # a Python without ctypes: commands run with the present setting
    _same_addresses = same


_same_addresses = False


def _text(request: dict[str, object], key: str) -> str | None:
    value = request.get(key)
    if isinstance(value, bytes):
        return os.fsdecode(value)
    return value if isinstance(value, str) else None


def _words(request: dict[str, object]) -> list[bytes]:
    """Return the command's words. A long command comes as bytes, with a zero byte after each word."""
    joined = request.get("words")
    if isinstance(joined, bytes):
        return joined.split(b"\0")[:-1]
    argv = request.get("argv")
    return [os.fsencode(item) for item in argv] if isinstance(argv, list) else []


def _settings(request: dict[str, object]) -> dict[str, str]:
    """Return the environment's settings: a map, or bytes in the form of a long command."""
    asked = request.get("env")
    if isinstance(asked, bytes):
        pairs = (os.fsdecode(one).partition("=") for one in asked.split(b"\0")[:-1])
        return {name: value for name, _, value in pairs}
    if isinstance(asked, dict):
        return {key: os.fsdecode(value) for key, value in asked.items()}
    return {}


def _start_on_pipes(request: dict[str, object], command: _Command | _Apart) -> Process:
    ours: list[int] = []
    theirs: list[int] = []
    try:
        if request.get("stdin", True):
            read_end, write_end = os.pipe()
            ours.append(write_end)
            theirs.append(read_end)
        else:
            theirs.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(1 if request.get("merge") else 2):
            read_end, write_end = os.pipe()
            ours.append(read_end)
            theirs.append(write_end)
        if request.get("merge"):
            pid = command.launch([*theirs, theirs[1]], None)
            return Process(pid, ours[0] if len(ours) == 2 else -1, ours[-1], -1)
        pid = command.launch(theirs, None)
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    return Process(pid, ours[0] if len(ours) == 3 else -1, ours[-2], ours[-1])


def _start_on_terminal(request: dict[str, object], command: _Command | _Apart) -> Process:
    master, slave = os.openpty()
    try:
        rows, columns = request.get("rows"), request.get("columns")
        if isinstance(rows, int) and isinstance(columns, int):
            set_terminal_size(master, rows & 0xFFFF, columns & 0xFFFF)
        command.prepare_terminal(slave)
        pid = command.launch([slave] * 3, os.ttyname(slave))
        return Process(pid, os.dup(master), master, -1, os.dup(master))
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)


def _shell() -> bytes:
    """Return the program for /bin/sh: the agent's own if the guest has none."""
    return os.fsencode(BUSYBOX) if BUSYBOX and not os.path.exists(_SHELL) else _SHELL


class _Command:
    """A command with user and directory."""

    failure = -1

    def __init__(self, request: dict[str, object]) -> None:
        self.argv = _words(request)
        if not self.argv or not self.argv[0]:
            raise OSError(22, "there is no command to run")
        user = _text(request, "user")
        if request.get("login") is True:
            from bough.guest.agent_terminal import render_login

            login = render_login(user)
            if login is not None:
                self.argv, user = login, None
        as_image = request.get("as_image") is True
        self.identity = Identity(user, as_image=as_image)
        self.environment = login_environment(self.identity)
        self.environment.update(_settings(request))
        if request.get("tty") and "TERM" not in self.environment:
            from bough.guest.agent_terminal import choose_term

            self.environment["TERM"] = choose_term(_text(request, "term"), self.environment.get("HOME", "/"))
        home = self.environment.get("HOME", "/")
        self.directory = _text(request, "cwd") or (home if os.path.isdir(home) else "/")
        if as_image and not os.path.exists(self.directory):
            os.makedirs(self.directory, 0o755)
        # The environment of a request may name another PATH than that of a guest without a shell.
        lacks = request.get("tool") is True or not os.path.exists(_SHELL)
        self.path = self._find(self.argv[0], TOOLS if lacks else "")

    def _find(self, name: bytes, own: str) -> bytes:
        """Return the program's path. `own` is a directory to search last."""
        if b"/" in name:
            return _shell() if name == _SHELL else name
        denied = False
        places = self.environment.get("PATH", "")
        for place in os.fsencode(f"{places}:{own}" if own else places).split(b":"):
            path = os.path.join(os.fsencode(self.directory), place, name)
            if os.access(path, os.X_OK) and not os.path.isdir(path):
                return path
            denied = denied or os.path.isfile(path)
        if denied:
            raise PermissionError(13, "Permission denied", name)
        raise FileNotFoundError(2, "no such command in the guest", name)

    def prepare_terminal(self, slave: int) -> None:
        import termios

        attributes = termios.tcgetattr(slave)
        attributes[0] |= 0x4000  # IUTF8: erase takes a whole character
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        if self.identity.groups is not None:
            os.fchown(slave, self.identity.uid, -1)
            os.fchmod(slave, 0o620)

    def launch(self, stdio: list[int], terminal: str | None) -> int:
        """Start the command as the leader of a new session. Return the pid."""
        _oom_score.set(b"0")
        try:
            if hasattr(os, "posix_spawn"):
                return self._spawn(stdio, terminal)
            return self._fork(stdio, terminal)
        finally:
            _oom_score.restore()

    def _spawn(self, stdio: list[int], terminal: str | None) -> int:
        if terminal is None:
            actions: list[Any] = [(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in enumerate(stdio)]
        else:
            # The first terminal opened by a session leader becomes the controlling terminal.
            actions = [(os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0)]
            actions += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
        # posix_spawn cannot set a working directory, so the agent changes its own briefly: the agent has a
        # single thread.
        try:
            self.identity.lend()
            self.identity.enter(self.directory)
            try:
                return self._posix_spawn(self.path, self.argv, actions)
            except OSError as error:
                if error.errno != _ENOEXEC:
                    raise self._refusal(error) from None
                return self._posix_spawn(_shell(), self._script(), actions)
        finally:
            self.identity.take_back()
            os.chdir("/")

    def _posix_spawn(self, path: bytes, argv: list[bytes], actions: list[Any]) -> int:
        return os.posix_spawn(
            path,
            argv,
            self.environment,
            file_actions=actions,
            setsid=True,
            resetids=self.identity.groups is not None,
            setsigmask=(),
            setsigdef=_PERHAPS_IGNORED,
        )

    def _refusal(self, error: OSError) -> OSError:
        """Return why the kernel does not execute the program, with the command as file name."""
        code = error.errno or 5
        text = os.strerror(code)
        if code == _ENOENT and os.path.exists(self.path):
            text = f"{os.fsdecode(self.path)} is there, but its loader or interpreter is not"
        return OSError(code, text, self.argv[0])

    def _script(self) -> list[bytes]:
        """Return the command for a script without an interpreter line: a shell runs it, as with execvp."""
        return [_SHELL, self.path, *self.argv[1:]]

    def _fork(self, stdio: list[int], terminal: str | None) -> int:
        """Start the command as _spawn does. An error in the child is raised unchanged in this process."""
        failure, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                self.become(stdio, terminal)
            except OSError as error:
                os.write(report, b"%d %s" % (error.errno or 5, os.fsencode(error.filename)))
            finally:
                os._exit(127)
        os.close(report)
        try:
            told = os.read(failure, 4096)
        finally:
            os.close(failure)
        if not told:
            return pid
        os.waitpid(pid, 0)
        code, _, what = told.partition(b" ")
        raise OSError(int(code), os.strerror(int(code)), os.fsdecode(what))

    def become(self, stdio: list[int], terminal: str | None) -> NoReturn:
        """Replace this process, a session leader, by the command. Raises OSError with the cause."""
        what = self.path
        try:
            for at, fd in enumerate(stdio):
                os.dup2(fd, at)
            if terminal is not None:
                import fcntl

                fcntl.ioctl(0, _TIOCSCTTY, 0)
            if terminal is None and self.identity.groups is not None:
                _own_pipes(self.identity.uid)
            self.identity.assume()
            what = os.fsencode(self.directory)
            os.chdir(self.directory)
            what = self.path
            for number in _PERHAPS_IGNORED:
                _signal.signal(number, _signal.SIG_DFL)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
            try:
                os.execve(self.path, self.argv, self.environment)
            except OSError as error:
                if error.errno != _ENOEXEC:
                    raise
                os.execve(_shell(), self._script(), self.environment)
        except OSError as error:
            if what == self.path:
                raise self._refusal(error) from error
            raise OSError(error.errno or 5, os.strerror(error.errno or 5), what) from error


def _own_pipes(uid: int) -> None:
    """Let the user open /dev/stdout and /dev/stderr, which lead to pipes of root (as runc does)."""
    import stat

    for fd in range(3):
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.fchown(fd, uid, -1)


class _Apart:
    """A command like _Command. Only the child examines the command, and then becomes the command."""

    def __init__(self, request: dict[str, object]) -> None:
        self._request = request
        self.failure = -1

    def prepare_terminal(self, slave: int) -> None:
        """Leave the terminal to the child: the owner is not known to this process."""

    def launch(self, stdio: list[int], terminal: str | None) -> int:
        self.failure, report = os.pipe()
        _oom_score.set(b"0")
        try:
            pid = os.fork()
            if pid == 0:
                self._become(stdio, terminal, report)
        except OSError:
            os.close(self.failure)
            raise
        finally:
            _oom_score.restore()
            os.close(report)
        return pid

    def _become(self, stdio: list[int], terminal: str | None, report: int) -> NoReturn:
        from bough.guest import agent_errors, wire

        try:
            os.setsid()
            _signal.set_wakeup_fd(-1)
            for number in (_signal.SIGCHLD, _signal.SIGTERM):
                _signal.signal(number, _signal.SIG_DFL)
            command = _Command(self._request)
            if terminal is not None:
                command.prepare_terminal(stdio[0])
            command.become(stdio, terminal)
        except Exception as error:
            os.write(report, wire.encode(agent_errors.describe_error(error)))
        finally:
            os._exit(127)


class _OomScore:
    """Protects the agent when memory runs out, but not the agent's commands."""

    def __init__(self) -> None:
        self._own = b"0"
        self._fd = -1
        try:
            self._fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
            self._own = os.read(self._fd, 16).strip()
        except OSError:
            pass  # no right to write the score: the score was not lowered before either

    def set(self, score: bytes) -> None:
        if self._own != b"0":
            os.pwrite(self._fd, score, 0)

    def restore(self) -> None:
        self.set(self._own)


_oom_score = _OomScore()


def describe_exit(wait_status: int) -> dict[str, object]:
    if os.WIFSIGNALED(wait_status):
        from bough.guest.agent_signals import signal_name

        return {"signal": signal_name(os.WTERMSIG(wait_status))}
    return {"code": os.WEXITSTATUS(wait_status)}


def bytes_to_read(fd: int) -> int:
    import fcntl

    try:
        return int.from_bytes(fcntl.ioctl(fd, _FIONREAD, b"\0\0\0\0"), "little")
    except OSError:
        return 0


def set_terminal_size(fd: int, rows: int, columns: int) -> None:
    import fcntl
    from struct import pack

    fcntl.ioctl(fd, _TIOCSWINSZ, pack("HHHH", rows, columns, 0, 0))
