"""Operations by name, on request of the host. Long operations run in a child (Worker)."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal costs what enum costs
import os
import select
from struct import Struct

from bough.guest import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Agent(Protocol):
        """The parts of agent.Agent that operations use."""

        nonce: int
        on_reset: list[Callable[[], None]]

        def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None: ...
        def unwatch(self, fd: int) -> None: ...
        def send_values(self, kind: int, session: int, values: object) -> None: ...

    Arguments = dict[str, object]
    Tell = Callable[[str, float | None, str], None]

_MESSAGE = Struct("<BI")
_QUICK = {
    "set_clock": "agent_system",
    "add_entropy": "agent_system",
    "load": "agent_system",
    "power_off": "agent_system",
    "reboot": "agent_system",
    "thaw": "agent_freeze",
    "prepare": "agent_become",
    "become": "agent_become",
    "start_program": "agent_program",
    "await_program": "agent_program",
}
_SLOW = {
    "await_boot": "agent_boot",
    "grow_root": "agent_disk",
    "first_boot": "agent_first_boot",
    "freeze": "agent_freeze",
    "settle": "agent_become",
    "set_mounts": "agent_mounts",
    "set_links": "agent_links",
}
_workers: dict[str, Worker] = {}
_loaded: dict[str, Callable[..., dict[str, object] | None]] = {}


class OperationFailed(Exception):
    """An error with a message for the host. `output` is the end of a command's output."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def start(agent: Agent, call: int, operation: str, arguments: Arguments) -> None:
    if operation in _QUICK:
        function = _loaded.get(operation) or load(operation)
        result = function(agent, call, arguments)
        if result is not None:
            agent.send_values(wire.RESULT, call, result)
    elif operation in _SLOW:
        worker = _workers.get(operation)
        if worker is not None and worker.answered and operation == "freeze":
            raise OSError(16, "the file systems are frozen")
        if worker is None or worker.answered:
            worker = _workers[operation] = Worker(agent, operation, arguments)
            if operation == "freeze":
                agent.on_reset.append(worker.release)
        # The operation of a disconnected service goes on. The next service with the same request gets the
        # answer.
        worker.answer_to(call)
    else:
        message = f"this agent knows no operation {operation[:50]!r}"
        agent.send_values(wire.ERROR, call, {"message": message, "errno": "ENOSYS"})


def load(operation: str) -> Callable[..., dict[str, object] | None]:
    from sys import modules

    module = "bough.guest." + (_QUICK.get(operation) or _SLOW[operation])
    __import__(module)
    loaded: Callable[..., dict[str, object] | None] = getattr(modules[module], operation)
    _loaded[operation] = loaded
    return loaded


class Worker:
    """A child for one operation, with a pipe for the result."""

    def __init__(self, agent: Agent, operation: str, arguments: Arguments) -> None:
        self._agent = agent
        self._operation = operation
        self._call = 0
        self._nonce = 0
        self._held = b""
        self.answered = False
        self.on_end: list[Callable[[], None]] = []
        self._report, report = os.pipe()
        # Only the agent keeps the write end: the pipe ends with the agent.
        hold, self._hold = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._hold)
            _work(operation, arguments, report, hold)
        os.close(report)
        os.close(hold)
        agent.watch(self._report, select.EPOLLIN, self._readable)

    def answer_to(self, call: int) -> None:
        self._call = call
        self._nonce = self._agent.nonce

    def release(self) -> None:
        """Tell the child to stop holding (see agent_freeze)."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

    def _readable(self, _events: int) -> None:
        data = os.read(self._report, 65536)
        if not data:
            self._ended()
            return
        self._held += data
        while len(self._held) >= _MESSAGE.size:
            kind, length = _MESSAGE.unpack_from(self._held)
            end = _MESSAGE.size + length
            if len(self._held) < end:
                return
            self._tell(kind, wire.decode_map(self._held[_MESSAGE.size : end]))
            self._held = self._held[end:]

    def _tell(self, kind: int, values: dict[str, object]) -> None:
        if kind != wire.PROGRESS:
            if self.answered:
                return
            self.answered = True
        if self._nonce == self._agent.nonce:
            self._agent.send_values(kind, self._call, values)

    def _ended(self) -> None:
        self._agent.unwatch(self._report)
        os.close(self._report)
        self.release()
        if _workers.get(self._operation) is self:
            del _workers[self._operation]
        self._tell(wire.ERROR, {"message": f"{self._operation} was killed", "errno": None})
        for action in self.on_end:
            action()


def worker_of(operation: str) -> Worker | None:
    return _workers.get(operation)


def _work(operation: str, arguments: Arguments, report: int, hold: int) -> None:
    """Run the child from start to end."""
    try:
        leave_agent()

        def say(kind: int, values: dict[str, object]) -> None:
            payload = wire.encode(values)
            os.write(report, _MESSAGE.pack(kind, len(payload)) + payload)

        def tell(step: str, fraction: float | None = None, detail: str = "") -> None:
            say(wire.PROGRESS, {"step": step, "fraction": fraction, "detail": detail[:200]})

        try:
            function = load(operation)
            if operation == "freeze":
                function(arguments, lambda values: say(wire.RESULT, values), hold)
            else:
                say(wire.RESULT, function(arguments, tell) or {})
        except Exception as error:
            say(wire.ERROR, explain_error(error))
    finally:
        os._exit(0)


def leave_agent() -> None:
    """Make a forked child independent of the agent: its own session, no signals of the agent."""
    os.setsid()
    _signal.set_wakeup_fd(-1)
    for number in (_signal.SIGCHLD, _signal.SIGTERM):
        _signal.signal(number, _signal.SIG_DFL)


def explain_error(error: Exception) -> dict[str, object]:
    """Return the report of an error for the host."""
    if isinstance(error, OperationFailed):
        return {"message": str(error)[:4000], "errno": None, "output": error.output[-16000:]}
    if isinstance(error, OSError):
        from errno import errorcode

        text = error.strerror or str(error)
        if error.filename is not None:
            text = f"{os.fsdecode(error.filename)}: {text}"
        return {"message": text[:4000], "errno": errorcode.get(error.errno or 0)}
    return {"message": f"{type(error).__name__}: {error}"[:4000], "errno": None}


def run(argv: list[str], data: bytes = b"", *, directory: str = "/", tail: int = 65536) -> tuple[int, str]:
    """Run a program in a worker. Return the exit status (128 + N for signal N) and the end of the output.

    A program that the guest lacks is taken from the agent disk, if there is one. A surviving child of the
    program may keep the output open. The worker does not wait for such a child.
    """
    from bough.guest.agent_spawn import start as start_process

    request = {"argv": argv, "cwd": directory, "stdin": bool(data), "merge": True, "tool": True}
    process = start_process(request)
    if data:
        os.write(process.stdin, data)
        os.close(process.stdin)
    os.set_blocking(process.stdout, False)
    output = b""
    status = None
    while True:
        select.select([process.stdout], [], [], 0.05)
        try:
            chunk = os.read(process.stdout, 65536)
            if not chunk:
                break
            output = (output + chunk)[-tail:]
        except BlockingIOError:
            if status is not None:
                break
            pid, ended = os.waitpid(process.pid, os.WNOHANG)
            status = ended if pid else None
    os.close(process.stdout)
    if status is None:
        status = os.waitpid(process.pid, 0)[1]
    code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return code, output.decode("utf-8", "replace")


def run_or_fail(argv: list[str], data: bytes = b"") -> str:
    """Run a program as `run` does. Raises OperationFailed unless the exit status is 0."""
    code, output = run(argv, data)
    if code:
        raise OperationFailed(f"{' '.join(argv)[:200]} ended with {code}", output)
    return output


def list_of_text(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
