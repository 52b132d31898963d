"""Commands of the agent: programs started by the host, with streams."""

from __future__ import annotations

import os
import select

from bough.guest import agent_session, agent_spawn, wire
from bough.guest.agent_session import MAX_WINDOW, Inlet, Outlet, Session, first_credit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from bough.guest.agent_tally import Mark

    class Keeper(Protocol):
        """The parts of agent_kept.Keeping that commands use."""

        def expect(self) -> None: ...
        def close(self, command: Command, stream: str) -> None: ...
        def forget(self, command: Command) -> None: ...

    class Agent(agent_session.Agent, Protocol):
        """The parts of agent.Agent that commands use."""

        @property
        def keeping(self) -> Keeper | None: ...
        def on_exit(self, pid: int, action: Callable[[int], None]) -> None: ...


# Time for an aborted command to end without a kill.
_GRACE_S = 2.0
_LOOK_EACH_S = 1.0
_NAMES = {wire.STDIN: "stdin", wire.STDOUT: "stdout", wire.STDERR: "stderr"}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


class Command(Session):
    """A command, in its own session (setsid).

    Attributes:
        slot: slot in the memory that the next agent reads (agent_kept.py); -1: the command is not kept.
        is_open: the command runs, and the streams are watched.
    """

    agent: Agent
    slot = -1
    is_open = False
    can_resume = True
    #: Streams of an adopted command whose count is unknown.
    _torn: frozenset[int] = frozenset()
    #: The command was adopted, and no host has resumed the command yet.
    _waits = False
    _early_status: int | None = None

    def __init__(self, agent: Agent, session_id: int, request: dict[str, object]) -> None:
        self.agent = agent
        self.id = session_id
        self._status: dict[str, object] | None = None
        self._window = first_credit(request)
        self._process = process = agent_spawn.start(request, apart=agent.carries)
        # Kept open until the command's end: closing the terminal would hang up a program that has closed all
        # streams before the exit.
        self._terminal = process.terminal
        self.pid = process.pid
        agent.on_exit(process.pid, self._exited)
        self._inlet = Inlet(self, process.stdin, wire.STDIN, self._end_of_input)
        self._outlets: list[Outlet] = []
        if process.failure >= 0:
            agent.watch(process.failure, select.EPOLLIN, self._begun)
        else:
            self._opened()

    def handle(self, kind: int, stream: int, payload: memoryview) -> None:
        if kind == wire.DATA:
            self._inlet.data(payload)
        elif kind == wire.EOF:
            self._inlet.finish()
        elif kind == wire.CREDIT:
            (count,) = wire.CREDIT_PAYLOAD.unpack(payload)
            for outlet in self._outlets:
                if outlet.stream == stream:
                    outlet.add_credit(count)
        elif kind == wire.SIGNAL:
            from bough.guest.agent_signals import signal_group

            signal_group(self.pid, bytes(payload).decode("ascii", "replace"))
        elif kind == wire.RESIZE and self._terminal >= 0:
            agent_spawn.set_terminal_size(self._terminal, *wire.SIZE_PAYLOAD.unpack(payload))
        elif kind == wire.ABORT:
            self._close()
            self._kill()
            if self._status is not None:
                self.finish(self._status)

    def abandon(self) -> None:
        self._forget()
        self._close()
        self._kill()

    def output_ended(self, _outlet: Outlet) -> None:
        self._finish_if_over()

    def _opened(self) -> None:
        process = self._process
        self.agent.send_values(wire.OPENED, self.id, {"pid": self.pid})
        self._outlets = [Outlet(self, process.stdout, wire.STDOUT, self._window)]
        if process.stderr >= 0:
            self._outlets.append(Outlet(self, process.stderr, wire.STDERR, self._window))
        process.stdout = process.stderr = -1
        self.is_open = True
        if self.agent.keeping is not None:
            self.agent.keeping.expect()

    # -- from one agent to the next (agent_kept.py) ---------------------------------------------------

    @classmethod
    def adopt(cls, agent: Agent, session_id: int, process: agent_spawn.Process, marks: list[Mark]) -> Command:
        """Adopt a command of the previous agent. The command waits until a host resumes it."""
        self = cls.__new__(cls)
        self.agent = agent
        self.id = session_id
        self._status = None
        self._window = 0
        self._process = process
        self._terminal = process.terminal
        self.pid = process.pid
        self._waits = True
        self._inlet = Inlet(self, process.stdin, wire.STDIN, self._end_of_input)
        outlets = ((process.stdout, wire.STDOUT), (process.stderr, wire.STDERR))
        self._outlets = [Outlet(self, fd, stream, 0) for fd, stream in outlets]
        process.stdin = process.stdout = process.stderr = -1
        self._torn = frozenset(stream for stream, mark in enumerate(marks) if mark.read() is None)
        for end in self._ends():
            end.passed = marks[end.stream].read() or 0
            end.mark = marks[end.stream]
        self.is_open = True
        agent.sessions[session_id] = self
        agent.call_later(_LOOK_EACH_S, self._look)
        return self

    def _look(self, *, again: bool = False) -> None:
        """Check that an adopted command still runs.

        The keeper reports the command's end, unless the keeper was killed too, or is no subreaper.
        """
        if self.agent.sessions.get(self.id) is not self or self._status is not None:
            return
        gone = self._early_status is None and not self._waits and not _lives(self.pid)
        if gone and again:
            for outlet in self._outlets:
                outlet.drain_until_empty()
            self._status = {"error": "the agent was killed: the exit status is not known"}
            self._finish_if_over()
        else:
            self.agent.call_later(_LOOK_EACH_S, lambda: self._look(again=gone))

    def exited_before(self, wait_status: int) -> None:
        """Handle the keeper's report of how the command ended."""
        if self._waits:
            self._early_status = wait_status
        else:
            self._exited(wait_status)

    def streams(self) -> dict[str, int]:
        """Return the descriptors that the next agent needs."""
        if self._terminal >= 0:
            return {"terminal": self._terminal}
        return {_NAMES[end.stream]: end.fd for end in self._ends() if end.fd >= 0}

    def _ends(self) -> list[Inlet | Outlet]:
        return [self._inlet, *self._outlets]

    def mark(self, marks: list[Mark]) -> None:
        for end in self._ends():
            end.mark = marks[end.stream]
            end.mark.set(end.passed)

    def closed(self, stream: int) -> None:
        if self.slot >= 0 and self._terminal < 0 and self.agent.keeping is not None:
            self.agent.keeping.close(self, _NAMES[stream])

    def describe(self, state: dict[str, object]) -> dict[str, object]:
        """Return the account of the streams for the host.

        `lost`: bytes of stdout and stderr that were read and did not arrive; -1: perhaps some.
        """
        received = state.get("received")
        lost = {wire.STDOUT: 0, wire.STDERR: 0}
        if isinstance(received, list) and len(received) == 2:
            for outlet in self._outlets:
                lost[outlet.stream] = outlet.passed - received[outlet.stream - 1]
        for stream in self._torn - {wire.STDIN}:
            lost[stream] = -1
        written = None if wire.STDIN in self._torn else self._inlet.passed
        return {"id": self.id, "written": written, "lost": list(lost.values())}

    def resume(self, state: dict[str, object]) -> None:
        self._waits = False
        self._inlet.start_over()
        credit = state.get("credit")
        if isinstance(credit, list) and len(credit) == 2:
            for outlet in self._outlets:
                outlet.credit = min(credit[outlet.stream - 1], MAX_WINDOW)
                outlet.resume()
        if self._inlet.fd < 0:
            self.agent.send(wire.STOP, self.id, b"", wire.STDIN)
        if self._early_status is not None:
            self._exited(self._early_status)

    def finish(self, values: dict[str, object]) -> None:
        self._forget()
        super().finish(values)

    def _forget(self) -> None:
        if self.slot >= 0 and self.agent.keeping is not None:
            self.agent.keeping.forget(self)

    # -- its end --------------------------------------------------------------------------------------

    def _begun(self, _events: int) -> None:
        """Report the start of a command in a separate child, or the error."""
        told = os.read(self._process.failure, 65536)
        self._close_failure()
        if not told:
            self._opened()
            return
        self._close()
        if self.agent.sessions.pop(self.id, None) is self:
            self.agent.send_values(wire.ERROR, self.id, wire.decode_map(told))

    def _close_failure(self) -> None:
        if self._process.failure >= 0:
            self.agent.unwatch(self._process.failure)
            os.close(self._process.failure)
            self._process.failure = -1

    def _end_of_input(self, fd: int) -> None:
        if self._terminal >= 0:
            os.write(fd, b"\x04")

    def _exited(self, wait_status: int) -> None:
        self._status = agent_spawn.describe_exit(wait_status)
        if self._process.failure >= 0:
            self._begun(0)  # the child's end closed the other side, so the read does not block
        # A child of the command may hold the pipes open for years. The command's own output is in the pipes
        # now.
        for outlet in self._outlets:
            if self._terminal < 0:
                outlet.drain_until_empty()
            elif outlet.fd >= 0:
                self._drain_terminal(outlet)
        self._finish_if_over()

    def _drain_terminal(self, outlet: Outlet) -> None:
        # The end of a session's leader hangs up the terminal: reads give the rest, then an error. If another
        # process reopened the terminal, reads would block instead, so look again later. The kernel passes
        # output to this side in a work queue, and a busy system delays the queue. A read waits for the queue;
        # the number of bytes to read does not.
        def look() -> None:
            if outlet.fd >= 0:
                outlet.readable(0)
            if outlet.fd >= 0 and agent_spawn.bytes_to_read(outlet.fd) == 0:
                outlet.end()
            elif outlet.fd >= 0:
                self.agent.call_later(0.1, look)

        self.agent.call_later(0.1, look)

    def _finish_if_over(self) -> None:
        if self._status is not None and all(outlet.fd < 0 for outlet in self._outlets):
            self._close()
            self.finish(self._status)

    def _close(self) -> None:
        self._close_failure()
        self._inlet.close()
        for outlet in self._outlets:
            outlet.close()
        process = self._process
        for fd in (process.stdout, process.stderr):
            if fd >= 0:
                os.close(fd)
        process.stdout = process.stderr = -1
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    def _kill(self) -> None:
        """Hang up, as the end of a login does. After a grace period, kill all remaining processes."""
        from bough.guest.agent_signals import signal_session

        session = self.pid
        if not signal_session(session, ("CONT", "HUP", "TERM")):
            return

        def kill() -> None:
            # Repeat until no process is left: a process may fork during the search.
            if signal_session(session, ("KILL",)):
                self.agent.call_later(0.05, kill)

        self.agent.call_later(_GRACE_S, kill)
