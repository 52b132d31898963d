"""What a new machine is told when it answers for the first time: who it is, and what it was asked to be."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from bough.errors import BoughError, DeadlineExceeded, GuestRefused
from bough.guest.channel import AgentChannel
from bough.guest.qga import QgaChannel
from bough.guest.session import ExecRequest
from bough.machines.record import FirstBoot, MachineRecord
from bough.progress_watch import ProgressWatch, Stalled

#: Commands of the first boot may install packages in an emulated guest.
COMMANDS_TIMEOUT_S = 3600.0
CLOUD_INIT_TIMEOUT_S = 1800.0
INSTALL_TIMEOUT_S = 600.0
_INSTALL_SSHFS = """
command -v sshfs >/dev/null && exit 0
if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q install -y --no-install-recommends sshfs ||
        { apt-get -q update && apt-get -q install -y --no-install-recommends sshfs; }
elif command -v dnf >/dev/null; then dnf -q -y install fuse-sshfs
elif command -v zypper >/dev/null; then zypper -q -n install sshfs
elif command -v apk >/dev/null; then apk add sshfs
elif command -v pacman >/dev/null; then pacman -Sy --noconfirm sshfs
fi
"""


async def set_up_guest(
    channel: AgentChannel, record: MachineRecord, mount: Callable[[], Awaitable[None]]
) -> FirstBoot:
    """Grow the root file system, then users, keys, files, environment, mounts and commands.

    The agent keeps what it has done, so that a machine that dies in the middle goes on with the next
    step. A refusal of the guest is kept in the record, not raised: the machine runs.

    Raises:
        AgentUnavailable: it went away in the middle; call again when it answers.
    """
    try:
        if record.media.seed:
            await _wait_cloud_init(channel)
        await channel.call("grow_root", {}, timeout_s=120)
        wanted = render_first_boot(record)
        if record.spec.mounts:
            # After the users, who may own them; before the commands, which may need them.
            if await _knows_mounts(channel):
                await channel.call("first_boot", {**wanted, "more": True}, timeout_s=COMMANDS_TIMEOUT_S)
            if record.media.seed:
                await _install_sshfs(channel)
            await mount()
        await channel.call("first_boot", wanted, timeout_s=COMMANDS_TIMEOUT_S)
    except GuestRefused as error:
        return FirstBoot(done=True, error=_explain(error))
    return FirstBoot(done=True)


async def _knows_mounts(channel: AgentChannel) -> bool:
    """An older agent takes no notice of `more`, and would be done."""
    try:
        await channel.call("set_mounts", {"mounts": []}, timeout_s=60)
    except GuestRefused:
        return False
    return True


async def _install_sshfs(channel: AgentChannel) -> None:
    """Cloud images come without; what cannot be installed is told when it is missed."""
    with contextlib.suppress(BoughError):
        await run_script(channel, _INSTALL_SSHFS, timeout_s=INSTALL_TIMEOUT_S)


async def run_script(
    channel: AgentChannel | QgaChannel,
    script: str,
    *,
    timeout_s: float = 300,
    watch: ProgressWatch | None = None,
) -> str:
    """What a shell script printed in the guest: untrusted, its first MiB.

    Args:
        timeout_s: time of the guest's own without a sign of progress.
        watch: how long to wait, instead of that.

    Raises:
        DeadlineExceeded: the script was ended. AgentUnavailable: the agent went away.
    """
    session = await channel.exec(ExecRequest(["/bin/sh", "-c", script], stdin=False))
    heard = bytearray()

    async def listen() -> None:
        async for stream, data in session:
            if stream == "stdout":
                heard.extend(data[: 1024 * 1024 - len(heard)])

    try:
        await (watch or channel.patience(timeout_s)).run(listen())
    except Stalled as stalled:
        raise DeadlineExceeded(f"the guest was not done {stalled}") from None
    finally:
        await session.abort()  # nothing, where it has ended
    return heard.decode(errors="replace")


async def _wait_cloud_init(channel: AgentChannel) -> None:
    """Until it has set up the guest: both of us at once would be in each other's way."""
    session = await channel.exec(ExecRequest(["cloud-init", "status", "--wait"], stdin=False))

    async def listen() -> None:
        async for _ in session:
            pass

    try:
        await channel.patience(CLOUD_INIT_TIMEOUT_S).run(listen())
    except Stalled:
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
