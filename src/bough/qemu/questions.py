"""Programs that answer a question and end: a QEMU without a machine, or with a probe guest."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bough.errors import HostLacks
from bough.paths import Home
from bough.progress_watch import ProgressWatch, Stalled
from bough.qemu.binary import QemuBinary, QemuFacts
from bough.qemu.facts import cached_fact
from bough.qemu.pid import Wrapped
from bough.qemu.subprocesses import end_subprocess, start_subprocess
from bough.tasks import end_tasks

T = TypeVar("T")
S = TypeVar("S")

#: After this processor time an incomplete guest gets no further attempt.
_HAD_ITS_TIME = 0.75
_QUESTION_S = 20.0
_QUESTION_MOST_S = 120.0
_LOOK_EVERY_S = 0.1
QUESTION = ("-nodefaults", "-no-user-config", "-display", "none", "-machine", "none")


async def inspect_qemu(qemu: QemuBinary, home: Home) -> QemuFacts:
    """Return the facts about a QEMU. Raises HostLacks if QEMU does not start."""

    async def find() -> Any:
        machines, cpus = await ask(qemu, "tcg", "query-machines", "query-cpu-definitions")
        return {
            "machine_types": sorted(entry["name"] for entry in machines if not entry.get("deprecated")),
            "cpu_models": sorted(entry["name"] for entry in cpus if not entry.get("deprecated")),
        }

    known = await cached_fact(home, f"qemu-{qemu.arch}", [qemu.path], find)
    return QemuFacts(tuple(known["machine_types"]), tuple(known["cpu_models"]))


async def ask(qemu: QemuBinary, accelerator: str, *commands: str) -> list[Any]:
    """Return the answers of a QEMU without a machine. Raises HostLacks if it does not start."""
    argv = [qemu.path, *QUESTION, "-accel", accelerator, "-qmp", "stdio"]
    done = await run_program(argv, question(), input_=render_questions(*commands, "quit"))
    if done is None or done.status != 0:
        why = done.stderr.decode(errors="replace").strip()[-300:] if done else "it did not answer"
        raise HostLacks(f"{qemu.path} does not start with {accelerator}: {why}", hint="bough doctor")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    # The first answer belongs to qmp_capabilities.
    return [answer["return"] for answer in answers if "return" in answer][1 : len(commands) + 1]


def render_questions(*commands: str) -> bytes:
    return "".join(json.dumps({"execute": name}) for name in ("qmp_capabilities", *commands)).encode()


@dataclass(frozen=True)
class Done:
    """The end of a program."""

    status: int
    stdout: bytes
    stderr: bytes


class Watched:
    """A program with a bound on its processor time: the host may be busy.

    Args:
        quiet_s: processor time of the program; with `start_s`, from its first output on.
        start_s: processor time until its first output.
        most_s: the end of each of the two in any case.

    Attributes:
        heard: set at the first output.
        took_s: seconds until its end, or until bough gave up.
        used_s: processor time of the last part, with or without an output.
    """

    def __init__(self, quiet_s: float, *, most_s: float, start_s: float | None = None) -> None:
        self._quiet_s, self._start_s, self._most_s = quiet_s, start_s, most_s
        self._given_s = quiet_s
        self.heard = asyncio.Event()
        self.took_s = self.used_s = 0.0

    @property
    def had_its_time(self) -> bool:
        """Return whether the program, and not a busy host, used up the time."""
        return self.used_s > _HAD_ITS_TIME * self._given_s

    async def run(self, pid: int, work: Awaitable[T]) -> T:
        """Run the program. Raises Stalled."""
        program = Wrapped(pid)
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self.heard.set())
        try:
            if self._start_s is not None:
                await self._watch(program, self._start_s, self.heard.wait())
            return await self._watch(program, self._quiet_s, task)
        finally:
            await end_tasks(task)

    async def _watch(self, program: Wrapped, quiet_s: float, work: Awaitable[S]) -> S:
        watch = ProgressWatch(quiet_s, most_s=self._most_s, work=program, look_every_s=_LOOK_EVERY_S)
        before_s, self._given_s = program.last_s, quiet_s
        try:
            return await watch.run(work)
        finally:
            self.took_s += watch.waited_s
            self.used_s = program.last_s - before_s


def question() -> Watched:
    return Watched(_QUESTION_S, most_s=_QUESTION_MOST_S)


async def run_program(
    argv: Sequence[str], watched: Watched, *, input_: bytes = b"", pass_fds: Sequence[int] = ()
) -> Done | None:
    """Return the output; None if time ran out. After a timeout or a cancelled call no process of the program
    is left.
    """
    questions = _filled_pipe(input_)
    try:
        # A separate session, to kill all processes: bubblewrap leaves the child alive.
        process = await start_subprocess(
            *argv,
            stdin=questions,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=tuple(pass_fds),
        )
    finally:
        os.close(questions)
    try:
        stdout, stderr = await watched.run(process.pid, _listen(process, watched.heard))
    except Stalled:
        return None
    finally:
        await end_subprocess(process)
    return Done(process.returncode or 0, stdout, stderr)


def _filled_pipe(content: bytes) -> int:
    """Return the read end of a pipe with all questions. A QEMU of a service that was killed then ends by
    itself at the last one, "quit": at the end of its input alone it would run on.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(write_end, False)  # the pipe holds 64 KiB; the questions have less than 1 KiB
        os.write(write_end, content)
    finally:
        os.close(write_end)
    return read_end


async def _listen(process: asyncio.subprocess.Process, heard: asyncio.Event) -> tuple[bytes, bytes]:
    """Return standard output and standard error when the process has ended."""

    async def read(stream: asyncio.StreamReader | None) -> bytes:
        data = bytearray()
        while stream is not None and (piece := await stream.read(65536)):
            data += piece
            if stream is process.stdout:
                heard.set()
        return bytes(data)

    stdout, stderr, _ = await asyncio.gather(read(process.stdout), read(process.stderr), process.wait())
    return stdout, stderr
