"""Operations: what the host asks for by name."""

from __future__ import annotations

from bough.guest import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bough.guest.agent import Agent


def start(agent: Agent, call: int, operation: str, arguments: dict[str, object]) -> None:
    agent.send_values(wire.ERROR, call, {"message": f"unknown operation {operation[:50]}", "errno": None})
