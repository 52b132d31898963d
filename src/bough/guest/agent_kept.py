"""Messages from an agent to its keeper, and the next agent's adoption of kept commands.

Shared memory of all agents counts the bytes passed on by each stream of a kept command. The next agent
compares the counts with the bytes sent and received by the host, so every gap in a stream is noticed.
"""

# contextlib costs an emulated guest 20 ms to load.
# ruff: noqa: SIM105

from __future__ import annotations

import os
from mmap import mmap

from bough.guest import agent_messages, wire
from bough.guest.agent_command import Command
from bough.guest.agent_spawn import Process
from bough.guest.agent_tally import SLOT_BYTES, SLOTS, Mark

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Protocol

    from bough.guest import agent_command

    class Agent(agent_command.Agent, Protocol):
        """The parts of agent.Agent that keep commands."""

        def keeper_died(self) -> None: ...


#: Age at which a command is kept. Most commands end sooner, without the delay of being kept.
KEEP_AFTER_S = 1.0


class Keeping:
    """The agent's end of the keeper's socket."""

    def __init__(self, control: _socket.socket) -> None:
        self._control = control
        self._memory: mmap | None = None
        self._free = list(range(SLOTS))
        self._due = False
        self._agent: Agent | None = None

    def attach(self, agent: Agent) -> None:
        """Adopt the commands of the previous agent, and watch the keeper from now on."""
        self._agent = agent
        while not self._take(agent):
            pass
        agent.watch(self._control.fileno(), 1, lambda _: self._keeper_said(agent))

    def _take(self, agent: Agent) -> bool:
        """Handle a message up to `begin`. Return whether the message was `begin`."""
        said, fds = agent_messages.receive(self._control)
        values = wire.decode_map(said)
        if "tally" in values:
            self._memory = mmap(fds[0], SLOTS * SLOT_BYTES)
            os.close(fds[0])
        elif "record" in values:
            self._adopt(agent, values, fds)
        return "begin" in values

    def _adopt(self, agent: Agent, values: dict[str, object], fds: list[int]) -> None:
        record = wire.decode_map(values["record"])  # type: ignore[arg-type]
        streams = dict(zip(values["streams"], fds))  # type: ignore[call-overload]  # noqa: B905
        slot = int(record["slot"])  # type: ignore[call-overload]
        self._free.remove(slot)
        terminal = streams.get("terminal", -1)
        process = Process(
            int(record["pid"]),  # type: ignore[call-overload]
            os.dup(terminal) if terminal >= 0 else streams.get("stdin", -1),
            os.dup(terminal) if terminal >= 0 else streams.get("stdout", -1),
            streams.get("stderr", -1),
            terminal,
        )
        command = Command.adopt(agent, int(record["id"]), process, self._marks(slot))  # type: ignore[call-overload]
        command.slot = slot
        status = values.get("status")
        if isinstance(status, int):
            command.exited_before(status)

    def _keeper_said(self, agent: Agent) -> None:
        try:
            said, _ = agent_messages.receive(self._control)
        except OSError:
            said = b""
        if not said:
            agent.unwatch(self._control.fileno())
            agent.keeper_died()
            return
        values = wire.decode_map(said)
        for session in agent.sessions.values():
            if isinstance(session, Command) and session.pid == values.get("pid"):
                session.exited_before(int(values["status"]))  # type: ignore[call-overload]
                return

    def _marks(self, slot: int) -> list[Mark]:
        assert self._memory is not None
        at = slot * SLOT_BYTES
        return [Mark(self._memory, at + 8 * stream) for stream in range(3)]

    # -- commands of this agent -----------------------------------------------------------------------

    def expect(self) -> None:
        """Keep a newly started command if the command runs for long."""
        if not self._due and self._agent is not None:
            self._due = True
            self._agent.call_later(KEEP_AFTER_S, self.keep_all)

    def keep_all(self) -> None:
        self._due = False
        assert self._agent is not None
        for session in self._agent.sessions.values():
            if isinstance(session, Command) and session.is_open and session.slot < 0:
                self._keep(session)

    def _keep(self, command: Command) -> None:
        if not self._free:
            return
        streams = command.streams()
        slot = self._free.pop()
        record = wire.encode({"id": command.id, "pid": command.pid, "slot": slot})
        values = {"pid": command.pid, "keep": record, "streams": list(streams)}
        command.mark(self._marks(slot))
        command.slot = slot
        self._tell(values, list(streams.values()))

    def close(self, command: Command, stream: str) -> None:
        """Tell the keeper to close the copy of a stream after the agent has closed the stream."""
        self._tell({"pid": command.pid, "close": stream})

    def forget(self, command: Command) -> None:
        if command.slot >= 0:
            self._tell({"pid": command.pid, "forget": True})
            self._free.append(command.slot)
            command.slot = -1

    def _tell(self, values: dict[str, object], fds: list[int] | None = None) -> None:
        try:
            agent_messages.send(self._control, wire.encode(values), fds or [])
        except OSError:
            pass  # the keeper has ended; the socket will report the end
