"""Commands of a guest without an agent: each ends, or continues with the next agent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from bough.errors import AgentUnavailable, BoughError, ProtocolError
from bough.guest.session import ExecSession, Session

#: Enough for a restart of the agent on a busy host.
PATIENCE_S = 120.0


class SuspendedCommands:
    """Commands that wait for the next agent, at most PATIENCE_S. Then the commands end with an error."""

    def __init__(self, loop: asyncio.AbstractEventLoop, machine: str) -> None:
        self._loop = loop
        self._machine = machine
        self._sessions: dict[int, ExecSession] = {}
        self._deadline: asyncio.TimerHandle | None = None

    def __contains__(self, session_id: int) -> bool:
        return session_id in self._sessions

    def take(self, sessions: dict[int, Session]) -> None:
        """Move the resumable sessions out of `sessions`."""
        found = {id_: one for id_, one in sessions.items() if isinstance(one, ExecSession) and one.can_resume}
        for id_, session in found.items():
            session.suspend()
            del sessions[id_]
        self._sessions |= found
        if found and self._deadline is None:
            text = f"the agent of machine {self._machine!r} disconnected for over {PATIENCE_S:g} s"
            failure = AgentUnavailable(f"{text}: the command may still run", machine=self._machine)
            self._deadline = self._loop.call_later(PATIENCE_S, self.end, failure)

    def render(self) -> dict[str, object]:
        """Return the commands' part of a hello."""
        going_on = {str(id_): one.render_state() for id_, one in self._sessions.items() if one.can_resume}
        return {"sessions": going_on} if going_on else {}

    def match(self, states: object) -> list[tuple[ExecSession, Mapping[str, object]]]:
        """Return the commands that the agent continues, according to the welcome. The others end.

        Raises:
            ProtocolError: the welcome is malformed.
        """
        if states is not None and not (isinstance(states, list) and len(states) <= len(self._sessions)):
            raise ProtocolError("a malformed list of commands")
        found = []
        for state in states or ():
            known = isinstance(state, dict) and isinstance(state.get("id"), int)
            session = self._sessions.pop(state["id"], None) if known else None
            if session is None:
                raise ProtocolError("a command that was not requested")
            found.append((session, state))
        text = f"the agent of machine {self._machine!r} was restarted"
        self.end(AgentUnavailable(f"{text}: how the command ended is not known", machine=self._machine))
        return found

    def end(self, failure: BoughError) -> None:
        sessions, self._sessions = self._sessions, {}
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        for session in sessions.values():
            session.end(failure)
