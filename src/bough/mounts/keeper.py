"""The mounts of a machine: a file server for each stream that the guest requests.

A stream ends with the agent's session: by a reboot, a fork, or a new service. The guest's file system stays
and requests the next stream. So only the machine's spec keeps the mounts on disk.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bough.errors import AgentTimeout, BoughError, GuestRefused
from bough.guest.channel import AgentChannel
from bough.guest.facts import clean_name
from bough.guest.relay import relay
from bough.mounts.server import end_server, server_ids, start_server
from bough.progress import Progress, Report, ignore_progress
from bough.qemu.cgroup import find_groups
from bough.spec import MountSpec
from bough.tasks import end_tasks

_SET_TIMEOUT_S = 120.0
#: Limits how often a guest can make bough start a server.
_BETWEEN_STARTS_S = 0.2

Tell = Callable[[str, str], None]


class MountKeeper:
    """The mounts of a machine.

    Attributes:
        trouble: target -> why the directory is not mounted; has no entry for a mounted target.
        changing: lock for changes of the mounts in the spec.
    """

    def __init__(self, machine_id: str, hidden: Sequence[Path], tell: Tell) -> None:
        """Create a keeper without mounts.

        Args:
            hidden: directories of bough itself, which no guest may see.
            tell: called with the kind and the text of an event.
        """
        self.trouble: dict[str, str] = {}
        self.changing = asyncio.Lock()
        self._establishing = asyncio.Lock()
        self._machine_id = machine_id
        self._hidden = tuple(hidden)
        self._tell = tell
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._channel: AgentChannel | None = None
        self._set: dict[str, MountSpec] = {}

    def state(self, mount: MountSpec) -> str:
        """Return "mounted", "not mounted", or "-" for an unknown state."""
        if mount.target in self.trouble:
            return "not mounted"
        return "mounted" if mount.target in self._set else "-"

    async def establish(
        self,
        channel: AgentChannel,
        mounts: Sequence[MountSpec],
        *,
        default_owner: str,
        lazy: bool = True,
        report: Report = ignore_progress,
    ) -> list[str]:
        """Have the guest mount exactly these directories of bough. Failures are in `trouble`.

        Args:
            lazy: unmount a directory even if a process in the guest uses it. Otherwise such a directory stays
                mounted.

        Returns the targets that stay mounted, because a process uses them.

        Raises:
            AgentUnavailable: the agent disappeared meanwhile; call again when it answers.
        """
        async with self._establishing:
            if not mounts and not self._set:
                return []
            report(Progress("sharing directories"))
            return await self._establish(channel, mounts, default_owner, lazy)

    async def _establish(
        self, channel: AgentChannel, mounts: Sequence[MountSpec], default_owner: str, lazy: bool
    ) -> list[str]:
        self.trouble = {}
        self._serve(channel, mounts)
        asked = []
        for mount in mounts:
            try:
                asked.append(await asyncio.to_thread(_request, mount, default_owner))
            except OSError as error:
                self.trouble[mount.target] = f"{mount.source} is gone ({error.strerror})"
        busy = await self._ask(channel, mounts, {"mounts": asked, "lazy": lazy})
        self._set = {mount.target: mount for mount in mounts if mount.target not in self.trouble}
        kept = {_tag(mount) for mount in mounts}
        if not busy:
            await self._stop([tag for tag in self._serving if tag not in kept])
        for target, why in self.trouble.items():
            self._tell("mount-failed", f"{target}: {why}")
        return busy

    async def _ask(
        self, channel: AgentChannel, mounts: Sequence[MountSpec], arguments: dict[str, Any]
    ) -> list[str]:
        try:
            answer = await channel.call("set_mounts", arguments, timeout_s=_SET_TIMEOUT_S)
        except (GuestRefused, AgentTimeout) as error:
            why = error.message
            if error.details.get("errno") == "ENOSYS":
                why = "the agent in this guest is of an older version; build its image again"
            self.trouble.update({mount.target: why for mount in mounts})
            return []
        errors, busy = answer.get("errors"), answer.get("busy")
        for mount in mounts:
            if isinstance(errors, dict) and mount.target in errors:
                self.trouble.setdefault(mount.target, clean_name(errors[mount.target]) or "it failed")
        return [clean_name(target) for target in busy] if isinstance(busy, list) else []

    async def close(self) -> None:
        """Stop all file servers. The guest's file systems wait for the next keeper."""
        await self._stop(list(self._serving))
        self._channel = None
        self._set = {}

    # -- serving ------------------------------------------------------------------------------

    def _serve(self, channel: AgentChannel, mounts: Sequence[MountSpec]) -> None:
        """Start a task for each mount without a running task on this channel."""
        for mount in mounts:
            tag = _tag(mount)
            task = self._serving.get(tag)
            if task is None or task.done() or channel is not self._channel:
                if task is not None:
                    task.cancel()
                self._serving[tag] = asyncio.create_task(
                    self._serve_one(channel, mount, tag), name=f"{self._machine_id}: mount {mount.target}"
                )
        self._channel = channel

    async def _stop(self, tags: Sequence[str]) -> None:
        await end_tasks(*(self._serving.pop(tag) for tag in tags))

    async def _serve_one(self, channel: AgentChannel, mount: MountSpec, tag: str) -> None:
        """Serve streams, one after another, until the session ends."""
        clock = asyncio.get_running_loop().time
        told = ""
        while True:
            try:
                tunnel = await channel.open_mount(tag)
            except BoughError:
                return
            began = clock()
            try:
                why = await self._serve_stream(tunnel, mount)
            except BoughError as error:
                why = error.message
            finally:
                await tunnel.close()
            if why and why != told:  # limits the events that a guest can cause
                told = why
                self._tell("mount-lost", f"{mount.target}: {why}")
            await asyncio.sleep(max(0.0, began + _BETWEEN_STARTS_S - clock()))

    async def _serve_stream(self, tunnel: Any, mount: MountSpec) -> str:
        """Serve a stream. Return the reason for its end, or "" for an ordinary end."""
        groups = await asyncio.to_thread(self._groups)
        server = await start_server(mount, hidden=self._hidden, groups=groups)
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            await relay(tunnel, server.stdout, server.stdin)
        finally:
            why = await end_server(server)
        return why

    def _groups(self) -> list[str]:
        groups = (Path(base) / self._machine_id for base in find_groups())
        return [str(group) for group in groups if group.is_dir()]


def _tag(mount: MountSpec) -> str:
    """Return the mount's tag, a digest of all properties: different mounts have different tags."""
    return hashlib.sha256(mount.model_dump_json().encode()).hexdigest()[:16]


def _request(mount: MountSpec, default_owner: str) -> dict[str, Any]:
    uid, gid = server_ids(mount)
    return {
        "tag": _tag(mount),
        "target": mount.target,
        "writable": mount.writable,
        "owner": mount.owner or default_owner,
        "host_uid": uid,
        "host_gid": gid,
        "cache_s": mount.cache,
    }
