"""bough's init: process 1 of a guest whose image has no init, such as a container image's.

It mounts what a container finds, starts the agent and starts it again, reaps, runs the container program on
request, and ends the guest in order. Nothing ends this process. The agent is a fork of it, so that Python
starts once.

Signals are those of busybox's init: USR1 and USR2 power off, TERM and INT (Ctrl-Alt-Delete) restart.
"""

# pathlib and contextlib cost an emulated guest 20 ms each to load.
# ruff: noqa: PTH123

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal costs what enum costs
import os
import select
import sys
import time

from bough.guest import agent_init_setup as setup
from bough.guest.agent_init_door import Door
from bough.guest.agent_init_program import Console, Program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from bough.guest.agent_init_door import Visitor

    Values = dict[str, object]

_POWER_OFF, _REBOOT = "poweroff", "reboot"
_MEANINGS = {
    _signal.SIGUSR1: _POWER_OFF,
    _signal.SIGUSR2: _POWER_OFF,
    30: _POWER_OFF,  # SIGPWR
    _signal.SIGTERM: _REBOOT,
    _signal.SIGINT: _REBOOT,
}
#: Time for the program, and then for all other processes, to end by themselves.
_PROGRAM_S, _OTHERS_S = 10.0, 2.0
#: Time for the host to take the program's end, before the machine powers off.
_TAKE_S = 2.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.2, 5.0
_LONG_LIFE_S = 10.0
_OOM_SCORE = b"-900"


def main() -> NoReturn:
    """Be process 1. The image's own init takes over if the machine is to have that."""
    words = setup.find_image_init()
    if words:
        _hand_over(words)
    setup.prepare_guest()
    process = None
    while True:
        try:
            process = process or InitProcess()
            process.run()
        except BaseException as error:
            setup.say(f"init goes on after {type(error).__name__}: {error}")
            time.sleep(0.5)


def _hand_over(words: list[str]) -> None:
    """Become the image's init. A child starts the agent, and starts it again. Return only on failure."""
    setup.attempt("the modules", setup.show_modules)
    setup.attempt("loading drivers", setup.load_drivers)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _supervise()
        finally:
            os._exit(1)
    try:
        os.execve(words[0], words, setup.INIT_ENVIRONMENT)
    except OSError as error:
        setup.say(f"the image's init {words[0]} cannot be started: {error.strerror}")
        os.kill(pid, _signal.SIGKILL)
        os.waitpid(pid, 0)


def _supervise() -> NoReturn:
    keeping = AgentKeeping()
    while True:
        keeping.start()
        keeping.ended(os.waitpid(keeping.pid, 0)[0])
        time.sleep(keeping.until_start() or 0.0)


class AgentKeeping:
    """The agent's process, and the time of its next start."""

    def __init__(self) -> None:
        self.pid = -1
        self._next_at = 0.0
        self._began = 0.0
        self._pause = _FIRST_PAUSE_S
        self._started_before = False

    def until_start(self) -> float | None:
        """Return the seconds until the next start; None while the agent runs."""
        return None if self.pid > 0 else max(0.0, self._next_at - time.monotonic())

    def start(self) -> None:
        """Start the agent. The first one is a fork of this process, later ones start with a new Python."""
        self._began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _become_agent(again=self._started_before)
        self.pid = pid
        self._started_before = True

    def ended(self, pid: int) -> bool:
        """Return whether this was the agent's process."""
        if pid != self.pid:
            return False
        now = time.monotonic()
        if now - self._began > _LONG_LIFE_S:
            self._pause = _FIRST_PAUSE_S
        self.pid, self._next_at = -1, now + self._pause
        self._pause = min(2 * self._pause, _LAST_PAUSE_S)
        return True


def _become_agent(*, again: bool) -> NoReturn:
    """Replace this child by the agent's front (agent_keeper.py)."""
    try:
        os.setsid()
        _signal.set_wakeup_fd(-1)
        for number in (_signal.SIGCHLD, *_MEANINGS):
            _signal.signal(number, _signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(_OOM_SCORE)
        from bough.guest import agent_keeper

        if again:
            from bough.guest.agent_python import python_words

            words = python_words()
            os.execv(words[0], [*words, "-I", "-S", "-c", agent_keeper.CODE.format(sys.path[0], [])])
        os._exit(agent_keeper.main([]))
    except BaseException as error:
        setup.say(f"the agent ended: {type(error).__name__}: {error}")
    finally:
        os._exit(1)


class InitProcess:
    """The loop of process 1."""

    def __init__(self) -> None:
        self._wakeup, write_end = os.pipe()
        for fd in (self._wakeup, write_end):
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
        for number in (_signal.SIGCHLD, *_MEANINGS):
            _signal.signal(number, lambda *_: None)
        _signal.set_wakeup_fd(write_end)
        setup.attempt("Ctrl-Alt-Delete", setup.catch_ctrl_alt_del)
        setup.attempt("loading drivers", setup.load_drivers)
        self._agent = AgentKeeping()
        self._agent.start()
        self._console = Console()
        self._program: Program | None = None
        self._ending = ""
        self._end_at: float | None = None
        self._door = Door(setup.RUN, self._serve)
        from bough.guest.agent_events import KernelEvents

        self._events = KernelEvents()

    def run(self) -> None:
        """Serve. Return never; an error leaves the loop, and the caller calls again."""
        while True:
            self._wait()
            self._check_deadlines()

    def _wait(self) -> None:
        poll = select.poll()
        sources = {self._wakeup: self._signalled, **self._door.sources(), **self._events.sources(self.end)}
        program = self._program
        if program is not None:
            if program.failure >= 0:
                sources[program.failure] = self._program_told
            if program.output >= 0 and not self._console.is_full:
                sources[program.output] = self._copy_output
        for fd in sources:
            poll.register(fd, select.POLLIN)
        if self._console.is_waiting:
            sources[self._console.fd] = self._console.flush
            poll.register(self._console.fd, select.POLLOUT)
        seconds = self._until_deadline()
        for fd, _ in poll.poll(None if seconds is None else seconds * 1000 + 1):
            action = sources.get(fd)
            if action is not None:
                action()

    def _until_deadline(self) -> float | None:
        waits = [] if self._ending else [self._agent.until_start()]
        if self._end_at is not None:
            waits.append(max(0.0, self._end_at - time.monotonic()))
        known = [wait for wait in waits if wait is not None]
        return min(known) if known else None

    def _check_deadlines(self) -> None:
        if not self._ending and self._agent.until_start() == 0.0:
            self._agent.start()
        if self._end_at is not None and time.monotonic() >= self._end_at:
            self._end_at = None
            if not self._ending:
                self.end(_POWER_OFF)
            else:
                self._finish_end()

    def _signalled(self) -> None:
        for number in os.read(self._wakeup, 4096):
            if number in _MEANINGS:
                self.end(_MEANINGS[number])
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._agent.ended(pid):
                continue
            if self._program is not None and pid == self._program.pid:
                self._program_ended(self._program, status)

    # -- the program --------------------------------------------------------------------------------

    def _serve(self, visitor: Visitor, asked: Values) -> None:
        operation = asked.get("operation")
        if operation == "start":
            self._start(visitor, asked)
        elif operation == "await":
            visitor.awaits = "end"
        elif operation == "taken" and self._program is not None and self._program.status is not None:
            self._end_at = time.monotonic()
        self._answer()

    def _start(self, visitor: Visitor, asked: Values) -> None:
        if self._program is not None and self._program.status is not None:
            visitor.answer({"message": "the program of this machine has ended", "errno": None})
            return
        if self._program is None and self._ending:
            visitor.answer({"message": "the guest shuts down", "errno": None})
            return
        if self._program is None:
            try:
                self._program = Program(asked)
            except OSError as error:
                from bough.guest.agent_errors import describe_error

                visitor.answer(describe_error(error))
                return
        visitor.awaits = "start"

    def _program_told(self) -> None:
        assert self._program is not None
        self._program.read_failure()
        self._answer()

    def _copy_output(self) -> None:
        if self._program is not None:
            self._program.read_output(self._console)

    def _program_ended(self, program: Program, status: int) -> None:
        while program.failure >= 0:
            program.read_failure()
        while program.output >= 0 and program.read_output(self._console):
            pass
        program.status = status
        self._answer()
        if self._ending:
            self._end_at = time.monotonic()
        elif self._program is program:
            self._end_at = time.monotonic() + _TAKE_S

    def _answer(self) -> None:
        """Answer the requests that wait for the program's start or end."""
        program = self._program
        if program is None:
            return
        if program.has_begun:
            told: Values = {"pid": program.pid} if program.error is None else program.error
            for visitor in self._door.waiting("start"):
                visitor.answer(told)
        if program.error is not None:
            self._program = None  # the host may try another one
        elif program.status is not None:
            for visitor in self._door.waiting("end"):
                visitor.answer(program.describe_end())

    # -- the end ------------------------------------------------------------------------------------

    def end(self, what: str) -> None:
        """Begin an orderly end: "poweroff" or "reboot". The program gets its stop signal first."""
        if self._ending:
            return
        self._ending = what
        self._end_at = time.monotonic()
        if self._program is not None and self._program.status is None:
            self._program.stop()
            self._end_at += _PROGRAM_S

    def _finish_end(self) -> NoReturn:
        """End all processes and the guest."""
        from bough.guest import agent_init_end

        if self._program is not None:
            self._program.kill()
        agent_init_end.end_guest(restarts=self._ending == _REBOOT, grace_s=_OTHERS_S)
