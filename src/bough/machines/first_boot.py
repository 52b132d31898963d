"""What a new machine is told when it answers for the first time: who it is, and what it was asked to be."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from bough.errors import BoughError, GuestRefused
from bough.guest.channel import AgentChannel
from bough.guest.qga import QgaChannel
from bough.guest.session import ExecRequest
from bough.machines.record import FirstBoot, MachineRecord

#: Commands of the first boot may install packages in an emulated guest.
COMMANDS_TIMEOUT_S = 3600.0
CLOUD_INIT_TIMEOUT_S = 1800.0


async def set_up_guest(channel: AgentChannel, record: MachineRecord) -> FirstBoot:
    """Grow the root file system, then users, keys, files, environment and commands.

    The agent keeps what it has done, so that a machine that dies in the middle goes on with the next
    step. A refusal of the guest is kept in the record, not raised: the machine runs.

    Raises:
        AgentUnavailable: it went away in the middle; call again when it answers.
    """
    try:
        if record.media.seed:
            await _wait_cloud_init(channel)
        await channel.call("grow_root", {}, timeout_s=120)
        await channel.call("first_boot", render_first_boot(record), timeout_s=COMMANDS_TIMEOUT_S)
    except GuestRefused as error:
        return FirstBoot(done=True, error=_explain(error))
    return FirstBoot(done=True)


async def run_script(channel: AgentChannel | QgaChannel, script: str, *, timeout_s: float = 300) -> str:
    """What a shell script printed in the guest: untrusted, its first MiB."""
    session = await channel.exec(ExecRequest(["/bin/sh", "-c", script], stdin=False))
    heard = bytearray()
    async with asyncio.timeout(timeout_s):
        async for stream, data in session:
            if stream == "stdout":
                heard += data[: 1024 * 1024 - len(heard)]
    return heard.decode(errors="replace")


async def _wait_cloud_init(channel: AgentChannel) -> None:
    """Until it has set up the guest: both of us at once would be in each other's way."""
    session = await channel.exec(ExecRequest(["cloud-init", "status", "--wait"], stdin=False))
    try:
        async with asyncio.timeout(CLOUD_INIT_TIMEOUT_S):
            async for _ in session:
                pass
    except TimeoutError:
        await session.abort()


def render_first_boot(record: MachineRecord) -> dict[str, Any]:
    spec = record.spec
    return {
        "hostname": spec.hostname or record.name,
        "ssh_keys": list(spec.ssh_keys),
        "users": [user.model_dump(mode="json") for user in spec.users],
        "environment": dict(spec.environment),
        "files": [
            {
                "path": file.path,
                "content": base64.b64encode(file.data).decode(),
                "mode": file.mode,
                "owner": file.owner,
            }
            for file in spec.files
        ],
        "commands": list(spec.commands),
    }


def _explain(error: BoughError) -> str:
    output = str(error.details.get("output", "")).strip()
    return f"{error.message}\n{output[-2000:]}" if output else error.message
