"""Reports to the host on which TCP ports of a list a program listens."""

from __future__ import annotations

from bough.guest import wire
from bough.guest.agent_dial import listeners
from bough.guest.agent_errors import Refused
from bough.guest.agent_session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bough.guest.agent_session import Agent

# The kernel reports no event for a new listener. Poll often at first, then as rarely as programs poll that
# wait for a port.
_FIRST_LOOK_S = 0.1
_LAST_LOOK_S = 1.0
_MAX_PORTS = 256


class Listeners(Session):
    """Send a report at once, then one for each change, until the host aborts the session."""

    def __init__(self, agent: Agent, session_id: int, request: dict[str, object]) -> None:
        ports, window = request.get("listening"), request.get("window")
        if not isinstance(ports, list) or len(ports) > _MAX_PORTS or not isinstance(window, int):
            raise Refused("expected a list of ports and a window")
        self.agent = agent
        self.id = session_id
        self._ports = {port for port in ports if isinstance(port, int)}
        self._credit = window
        self._told: list[int] | None = None
        self._interval_s = _FIRST_LOOK_S
        agent.send_values(wire.OPENED, session_id, {})
        # The agent knows the session only after this method has returned.
        agent.call_later(0, self._look)

    def handle(self, kind: int, stream: int, payload: memoryview) -> None:
        if kind == wire.ABORT:
            self.finish({"code": 0})
        elif kind == wire.CREDIT and stream == wire.STDOUT:
            self._credit += wire.CREDIT_PAYLOAD.unpack(payload)[0]

    def abandon(self) -> None:
        pass

    def _look(self) -> None:
        if self.agent.sessions.get(self.id) is not self:
            return
        found = sorted({port for _, port in listeners() if port in self._ports})
        report = wire.encode({"listening": found})
        if found != self._told and self._credit >= len(report) + wire.FRAME_COST:
            self._told = found
            self._credit -= len(report) + wire.FRAME_COST
            self.agent.send(wire.DATA, self.id, report, wire.STDOUT)
        self.agent.call_later(self._interval_s, self._look)
        self._interval_s = min(self._interval_s * 1.2, _LAST_LOOK_S)
