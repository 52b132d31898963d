"""A record of what a test does with machines: calls of the API, commands with their output, waits, times."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bough.client.connection import PREFIX, Connection
from bough.client.websocket import WebSocket
from bough.contract.commands import STATUS, STDERR, STDOUT
from bough.errors import BoughError

if TYPE_CHECKING:
    from bough.contract.request import Request
    from bough.progress import Report

#: The end of a command's output that is kept.
OUTPUT_BYTES = 64 * 1024
#: Steps of one test that are kept; more are counted.
MOST_STEPS = 2000
#: Requests that only look, or hold: no step of a test.
_UNSEEN = ("HoldMachine", "GetVersion", "PingMachine", "CaptureNetwork", "RunInMachine")


@dataclass
class Step:
    """A step of a test.

    Attributes:
        kind: "command", "wait", "call", "subtest", or "fork", "prepare" of the plugin itself.
        machine: name of the machine; "" if the step has none.
        began, ended: seconds since the epoch; `ended` is None while the step goes on.
        status: "", "0", "exit 1", "SIGTERM", or the message of an error. `failed`: not the user's wish.
    """

    kind: str
    title: str
    machine: str = ""
    began: float = field(default_factory=time.time)
    ended: float | None = None
    status: str = ""
    failed: bool = False
    output: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Recorder:
    """The steps of the test that runs now. Used from any thread."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.left_out = 0
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()

    def start_over(self) -> None:
        """Begin the record of the next test."""
        with self._lock:
            self.steps, self.left_out = [], 0

    def name(self, machine_id: str, name: str) -> None:
        """Show that name instead of the machine's id."""
        self._names[machine_id] = name

    def name_of(self, machine_id: str) -> str:
        return self._names.get(machine_id, machine_id)

    def add(self, step: Step) -> Step:
        with self._lock:
            if len(self.steps) < MOST_STEPS:
                self.steps.append(step)
            else:
                self.left_out += 1
        return step

    @contextlib.contextmanager
    def step(self, kind: str, title: str, machine: str = "") -> Iterator[Step]:
        """Record the block as a step."""
        step = self.add(Step(kind, title, machine))
        try:
            yield step
        except BaseException as error:
            step.status, step.failed = _first_line(error), True
            raise
        finally:
            step.ended = time.time()


class RecordingConnection(Connection):
    """A connection that records its calls."""

    def __init__(self, path: str, recorder: Recorder) -> None:
        super().__init__(path)
        self._recorder = recorder

    def send(self, request: Request, *, timeout: float | None = 60.0) -> Any:
        if not _is_step(request):
            return super().send(request, timeout=timeout)
        with self._recorder.step("call", _title(request), self._machine_of(request)):
            return super().send(request, timeout=timeout)

    def send_long(
        self, request: Request, *, timeout: float | None = None, progress: Report | None = None
    ) -> Any:
        if not _is_step(request):
            return super().send_long(request, timeout=timeout, progress=progress)
        with self._recorder.step("call", _title(request), self._machine_of(request)):
            return super().send_long(request, timeout=timeout, progress=progress)

    def open(self, request: Request) -> WebSocket:
        if type(request).__name__ != "ExecInMachine":
            return super().open(request)
        return RecordedCommand(
            self._open(),
            PREFIX + request.render_target(),
            lambda title, kind: self._recorder.add(Step(kind, title, self._machine_of(request))),
        )

    def section(self, name: str) -> contextlib.AbstractContextManager[Any]:
        return self._recorder.step("subtest", name)

    def _machine_of(self, request: Request) -> str:
        reference = request.__dict__.get("reference") or request.__dict__.get("machine") or ""
        return self._recorder.name_of(reference) if isinstance(reference, str) else ""


class RecordedCommand(WebSocket):
    """The WebSocket of a command, which records the command, its output and its end."""

    def __init__(self, stream: Any, target: str, begin: Any) -> None:
        self._begin = begin
        self._step: Step | None = None
        self._output = bytearray()
        super().__init__(stream, target)

    def send_text(self, text: str) -> None:
        if self._step is None:
            self._step = self._begin(*_describe_command(text))
        super().send_text(text)

    def receive(self, timeout: float | None = None) -> bytes | str | None:
        try:
            message = super().receive(timeout)
        except TimeoutError:
            raise
        except BoughError as error:
            self._end(error.message, failed=True)
            raise
        if isinstance(message, bytes) and message:
            self._take(message)
        return message

    def _take(self, message: bytes) -> None:
        if message[0] in (STDOUT, STDERR):
            self._output += message[1:]
            del self._output[:-OUTPUT_BYTES]
        elif message[0] == STATUS:
            self._end(*_describe_status(message[1:]))

    def _end(self, status: str, failed: bool) -> None:
        step = self._step
        if step is not None and step.ended is None:
            step.status, step.failed, step.ended = status, failed, time.time()
            step.output = plain_text(bytes(self._output))

    def close(self) -> None:
        self._end("closed", failed=False)
        super().close()


def plain_text(data: bytes) -> str:
    """Return guest output as text without control characters, for a page and a log."""
    text = data.decode(errors="replace").replace("\r\n", "\n").replace("\x1e", "")
    text = re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])", "", text)
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


def _is_step(request: Request) -> bool:
    return request.route.method != "GET" and type(request).__name__ not in _UNSEEN


def _title(request: Request) -> str:
    """Return "start machine" for a StartMachine, with its settings."""
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(request).__name__).lower()
    given = {name: value for name, value in request.to_dict().items() if name not in ("reference", "machine")}
    told = ", ".join(f"{name}={json.dumps(value, default=str)[:200]}" for name, value in given.items())
    return f"{words} ({told})" if told else words


def _describe_command(text: str) -> tuple[str, str]:
    """Return title and kind of the command in a `Command` message."""
    from bough.guest_checks import describe_wait

    words = [word if isinstance(word, str) else repr(word) for word in json.loads(text).get("argv", ())]
    if (wait := describe_wait(words)) is not None:
        return wait, "wait"
    if len(words) == 3 and words[:2] == ["sh", "-c"]:
        return words[2], "command"
    import shlex

    return shlex.join(words), "command"


def _describe_status(content: bytes) -> tuple[str, bool]:
    try:
        status = json.loads(content)
    except ValueError:
        return "unreadable status", True
    if status.get("error"):
        return str(status["error"].get("message")), True
    if status.get("signal"):
        return f"SIG{status['signal']}", True
    code = status.get("exit_code")
    return ("0", False) if code == 0 else (f"exit {code}", True)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:500]
