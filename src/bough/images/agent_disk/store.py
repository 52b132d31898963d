"""The agent disks of a home.

agent-disks/<arch>-<digest>.squashfs   read-only; the digest is the sha256 of the file
agent-disks/keys.json                  key of a recipe -> digest
agent-disks/.<arch>.lock               held during a build

A disk is complete when it has its name. A boot attaches the disk of today's recipe. A machine with saved
memory needs the very disk that the memory knows.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bough.errors import BadBundle, BoughError, BuildFailed
from bough.images.agent_disk.build import build_agent_disk
from bough.images.agent_disk.recipe import MOST_BYTES, agent_disk_recipe
from bough.images.apt import find_mirrors
from bough.images.one_build import only_one
from bough.paths import Home
from bough.progress import Report
from bough.storage import write_atomically, write_json

#: Name of a disk: architecture and digest.
DISK_NAME = re.compile(r"([a-z0-9_]{1,16})-([0-9a-f]{64})\.squashfs")
#: First bytes of a squashfs.
_MAGIC = b"hsqs"


@dataclass(frozen=True)
class AgentDisk:
    """An agent disk in the home."""

    arch: str
    digest: str


class AgentDiskStore:
    """The disks, and the build of missing ones."""

    def __init__(self, home: Home) -> None:
        self._home = home
        #: How often each disk is in use without a record that names it.
        self._used: Counter[AgentDisk] = Counter()

    def path(self, arch: str, digest: str) -> Path:
        return self._home.agent_disk(arch, digest)

    def has(self, arch: str, digest: str) -> bool:
        return self.path(arch, digest).is_file()

    def newest(self, arch: str) -> str | None:
        """Return the digest of the disk of today's recipe, if the disk is here."""
        digest = self._keys().get(_key_of(arch))
        return digest if digest is not None and self.has(arch, digest) else None

    async def provide(self, arch: str, report: Report) -> str:
        """Return the digest of the disk of today's recipe. Build the disk if it is missing.

        Of two calls at once, one builds, also in two processes.

        Raises:
            HostLacks, BuildFailed, NoSpace: nothing is left of the build.
            InvalidInput: settings.toml names an unusable mirror.
        """
        recipe = agent_disk_recipe(arch)
        if (found := self.newest(arch)) is not None:
            return found
        lock = self._home.agent_disks / f".{arch}.lock"
        async with only_one(lock, f"the agent disk for {arch}", report):
            if (found := self.newest(arch)) is not None:
                return found
            mirrors = find_mirrors(self._home.settings)
            built = await build_agent_disk(recipe, self._home.incoming, report, mirrors)
            digest = self.add(arch, built.content)
            write_json(self._home.agent_disk_keys, {**self._keys(), _key_of(arch): digest})
            return digest

    def add(self, arch: str, content: bytes) -> str:
        """Keep a disk. Return its digest.

        Raises:
            BuildFailed: this is no agent disk. NoSpace
        """
        if not content.startswith(_MAGIC) or len(content) > MOST_BYTES:
            raise BuildFailed("the agent disk is not as it should be")
        digest = hashlib.sha256(content).hexdigest()
        if not self.has(arch, digest):
            write_atomically(self.path(arch, digest), content, mode=0o444)
        return digest

    def take_in(self, arch: str, digest: str, content: bytes) -> None:
        """Keep a disk from a bundle. Raises BadBundle: the content is not what `digest` says."""
        if hashlib.sha256(content).hexdigest() != digest:
            raise BadBundle("the bundle was altered: the digest of its agent disk does not match")
        try:
            self.add(arch, content)
        except BuildFailed:
            raise BadBundle("the agent disk in the bundle is not a squashfs") from None

    @contextmanager
    def using(self, arch: str, digest: str) -> Iterator[None]:
        """Keep a disk until the block ends. The block makes a record that names the disk."""
        disk = AgentDisk(arch, digest)
        self._used[disk] += 1
        try:
            yield
        finally:
            self._used[disk] -= 1

    def all(self) -> list[AgentDisk]:
        names = (DISK_NAME.fullmatch(path.name) for path in self._home.agent_disks.iterdir())
        return [AgentDisk(match[1], match[2]) for match in names if match is not None]

    def collect(self, needed: Collection[AgentDisk]) -> list[AgentDisk]:
        """Remove the disks that are neither needed nor of a recipe of today. Return the removed disks."""
        here = self.all()
        if not here:
            return []
        keys = self._keys()
        used = {disk for disk, count in self._used.items() if count}
        removed = []
        for disk in here:
            if disk not in needed and disk not in used and keys.get(_key_of(disk.arch)) != disk.digest:
                self.path(disk.arch, disk.digest).unlink(missing_ok=True)
                removed.append(disk)
        if removed:
            left = {disk.digest for disk in here} - {disk.digest for disk in removed}
            left_keys = {key: digest for key, digest in keys.items() if digest in left}
            write_json(self._home.agent_disk_keys, left_keys)
        return removed

    def _keys(self) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError, TypeError):
            told = dict(json.loads(self._home.agent_disk_keys.read_bytes()))
            return {key: digest for key, digest in told.items() if isinstance(digest, str)}
        return {}  # missing or damaged: the disk is built again, with the same digest


@functools.cache
def _key_of(arch: str) -> str:
    """Return the key of today's recipe; "" without a recipe. A process reads the agent's files once."""
    try:
        return agent_disk_recipe(arch).key()
    except BoughError:
        return ""
