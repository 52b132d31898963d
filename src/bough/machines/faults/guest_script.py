"""Run a shell script in a guest, through the agent."""

from __future__ import annotations

import asyncio
from typing import Protocol

from bough.errors import AgentTimeout, GuestRefused
from bough.guest.channel import AgentChannel
from bough.guest.qga import QgaChannel
from bough.guest.session import ExecRequest

_MOST_OUTPUT = 4096


class Host(Protocol):
    """The parts of a machine that a script needs."""

    @property
    def name(self) -> str: ...
    async def agent(self) -> AgentChannel | QgaChannel: ...


async def run_script(machine: Host, script: str, *words: str, timeout_s: float = 120.0) -> str:
    """Run a script of /bin/sh as root, with `words` as $1, $2, ... Return the output.

    Raises:
        GuestRefused: the script has failed; the message is the script's last line.
        AgentUnavailable, AgentTimeout
    """
    channel = await machine.agent()
    request = ExecRequest(argv=["/bin/sh", "-c", script, "sh", *words], cwd="/", stdin=False)
    session = await channel.exec(request)
    output = b""
    try:
        async with asyncio.timeout(timeout_s):
            async for _, data in session:
                output = (output + data)[-_MOST_OUTPUT:]
    except TimeoutError:
        raise AgentTimeout(
            f"the guest of machine '{machine.name}' did not finish within {timeout_s:g} s",
            machine=machine.name,
            timeout_s=timeout_s,
        ) from None
    finally:
        await session.abort()
    text = output.decode(errors="replace").strip()
    if session.exit.error is not None:
        raise session.exit.error
    if session.exit.code != 0:
        last = "".join(one for one in text.rpartition("\n")[2] if one.isprintable())
        raise GuestRefused(
            f"the guest of machine '{machine.name}' refused: {last[:200] or 'no reason given'}",
            machine=machine.name,
        )
    return text
