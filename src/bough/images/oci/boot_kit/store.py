"""The boot kits of a home.

boot-kits/<arch>-<digest>.img   read-only; the digest is the sha256 of the file
boot-kits/keys.json             key of a recipe -> digest
boot-kits/.<arch>.lock          held during a build

A kit is complete when it has its name. Disks contain a copy of their kit, so no machine needs the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import pydantic

from bough.images.apt import find_mirrors
from bough.images.oci.boot_kit.build import build_boot_kit
from bough.images.oci.boot_kit.recipe import boot_kit_recipe
from bough.images.one_build import only_one
from bough.paths import Home, make_directory
from bough.progress import Report
from bough.storage import sync_directory, write_json
from bough.tasks import finish

#: Name of a kit: architecture and digest.
KIT_NAME = re.compile(r"([a-z0-9_]{1,16})-([0-9a-f]{64})\.img")


@dataclass(frozen=True)
class BootKit:
    """A boot kit in the home.

    Attributes:
        digest: sha256 of the file.
        packages: name -> version of the packages that the kit was made from.
    """

    arch: str
    digest: str
    path: Path
    packages: dict[str, str]


@pydantic.dataclasses.dataclass(frozen=True)
class _Entry:
    """The kit of a recipe, in keys.json."""

    arch: str
    digest: Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")]
    packages: dict[str, str]


_Keys = pydantic.TypeAdapter(dict[str, _Entry])


class BootKitStore:
    """The kits, and the build of missing ones."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def newest(self, arch: str) -> BootKit | None:
        """Return the kit of today's recipe, if the kit is here. Raises HostLacks: there is no recipe."""
        entry = self._entries().get(boot_kit_recipe(arch).key())
        if entry is None:
            return None
        kit = BootKit(arch, entry.digest, self._path(arch, entry.digest), entry.packages)
        return kit if kit.path.is_file() else None

    async def provide(self, arch: str, report: Report) -> BootKit:
        """Return the kit of today's recipe. Build the kit if it is missing; remove older ones.

        Of two calls at once, one builds, also in two processes.

        Raises:
            HostLacks, BuildFailed, NoSpace: nothing is left of the build.
            InvalidInput: settings.toml names an unusable mirror.
        """
        if (found := self.newest(arch)) is not None:
            return found
        make_directory(self._home.boot_kits, 0o711)
        async with only_one(self._home.boot_kits / f".{arch}.lock", f"the boot kit for {arch}", report):
            if (found := self.newest(arch)) is not None:
                return found
            recipe = boot_kit_recipe(arch)
            mirrors = find_mirrors(self._home.settings)
            made = self._home.incoming / f"boot-kit-{secrets.token_hex(6)}.img"
            try:
                built = await build_boot_kit(recipe, made, self._home.incoming, report, mirrors)
                digest = await finish(asyncio.to_thread(self._keep, arch, built.path))
            finally:
                made.unlink(missing_ok=True)
            others = {key: entry for key, entry in self._entries().items() if entry.arch != arch}
            entries = {**others, recipe.key(): _Entry(arch, digest, built.packages)}
            write_json(self._home.boot_kit_keys, {key: asdict(entry) for key, entry in entries.items()})
            self._remove_others(arch, digest)
        kit = self.newest(arch)
        assert kit is not None
        return kit

    def _keep(self, arch: str, made: Path) -> str:
        """Give the file of a finished build its name. Return the digest."""
        with made.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fchmod(stream.fileno(), 0o444)
        made.rename(self._path(arch, digest))
        sync_directory(self._home.boot_kits)
        return digest

    def _remove_others(self, arch: str, digest: str) -> None:
        for path in self._home.boot_kits.iterdir():
            match = KIT_NAME.fullmatch(path.name)
            if match is not None and match[1] == arch and match[2] != digest:
                path.unlink(missing_ok=True)

    def _path(self, arch: str, digest: str) -> Path:
        return self._home.boot_kit(arch, digest)

    def _entries(self) -> dict[str, _Entry]:
        """Return key of a recipe -> entry. A damaged file counts as empty: the kit is built again."""
        with contextlib.suppress(OSError, ValueError):
            return _Keys.validate_json(self._home.boot_kit_keys.read_bytes())
        return {}
