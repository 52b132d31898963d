"""Import a machine: check the manifest, read the parts to incoming/, and make a snapshot.

The machine comes from a bundle, or from a registry. The new machine continues from the snapshot.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bough.bundle import Piece, Source, read_manifest, read_pieces
from bough.errors import BadBundle, NotFound
from bough.images.agent_disk.store import AgentDiskStore
from bough.images.convert import check_space
from bough.images.store import ImageStore
from bough.machines.saved_state import SavedState
from bough.paths import SnapshotPaths
from bough.progress import Progress, Report
from bough.qemu.accelerators import probe_accelerators
from bough.qemu.binary import find_qemu
from bough.qemu.host import read_host_facts
from bough.qemu.jail_probe import probe_jail
from bough.qemu.questions import inspect_qemu
from bough.snapshots.bundle_manifest import BundleManifest, check_here, parse_manifest
from bough.snapshots.bundle_reading import Taken, make_snapshot, remove_work, take_parts
from bough.snapshots.store import SnapshotManifest
from bough.spec import check_against_host, check_name
from bough.tasks import run_stoppable


class Incoming(NamedTuple):
    """A machine from elsewhere, of which the manifest has been read.

    Attributes:
        manifest: as in a bundle, unchecked.
        read: yields the content of the parts, of the given sizes. Blocking.
    """

    manifest: dict[str, Any]
    read: Callable[[Sequence[int]], Iterator[Piece]]


def open_bundle(source: Source) -> Incoming:
    """Read the manifest of a bundle. Blocking. Raises BadBundle."""
    manifest, digest = read_manifest(source)
    return Incoming(manifest, partial(read_pieces, source, digest))


class Arrival:
    """A bundle with a valid manifest. `read` reads the rest.

    Attributes:
        manifest: the manifest of the snapshot; set by `read`.
        saved: memory and devices; set by `read`. None: the machine boots.
        cold: leave out the memory; the machine boots.
        force: allow a machine that is too large for this host.
        accelerator: "auto", or the accelerator to continue on.
    """

    manifest: SnapshotManifest
    saved: SavedState | None = None

    def __init__(
        self,
        incoming: Incoming,
        bundle: BundleManifest,
        images: ImageStore,
        agent_disks: AgentDiskStore,
        work: Path,
    ) -> None:
        self._incoming, self._bundle = incoming, bundle
        self._images, self._agent_disks, self._work = images, agent_disks, work
        self.cold = self.force = False
        self.accelerator = "auto"
        self.report: Report = lambda _: None

    async def check(self) -> None:
        home, bundle = self._images.home, self._bundle
        check_name(bundle.name)
        qemu = find_qemu(bundle.hardware.arch)
        jail = await probe_jail(qemu, home)
        accelerators = dict(await probe_accelerators(qemu, jail, home))
        facts = await inspect_qemu(qemu, home)
        self._spec, self._hardware = check_here(
            bundle, facts, accelerators, cold=self.cold, accelerator=self.accelerator
        )
        check_against_host(self._spec, await read_host_facts(home), force=self.force)
        self._image = self._find_image()
        check_space(self._work)

    def _find_image(self) -> Path | None:
        """Return the disk of the image below a disk of the bundle, if any.

        Raises:
            NotFound: the image, or the image of a CD or floppy, is missing on this host.
        """
        images, bundle = self._images, self._bundle
        wanted = {part.image for part in bundle.parts if part.image} | set(bundle.media.digests)
        for digest in wanted:
            try:
                images.resolve(digest)
            except NotFound:
                raise NotFound(
                    f"the bundle needs the image {bundle.spec.image} ({digest[:12]}), which is missing here",
                    hint="get the image first, or export the machine again without --without-image",
                    kind="image",
                ) from None
        base = next((part.image for part in bundle.parts if part.image), None)
        return images.path(base) if base is not None else None

    @property
    def name(self) -> str:
        return self._bundle.name

    @property
    def agent_disk(self) -> tuple[str, str] | None:
        """Return architecture and digest of the agent disk that the memory knows, if any."""
        bundle = self._bundle
        has_disk = bundle.agent_disk is not None and bundle.number("agent") is not None
        return (bundle.hardware.arch, str(bundle.agent_disk)) if has_disk and not self.cold else None

    async def read(self) -> SnapshotPaths:
        """Read the parts. The agent disk goes to the store; the caller keeps it (`AgentDiskStore.using`).

        Raises:
            BadBundle, NoSpace, NotFound
        """
        loop, report = asyncio.get_running_loop(), self.report
        told = [-1]

        def take(check: Callable[[], None]) -> Taken:
            def tell_on(fraction: float) -> None:
                check()
                tell(fraction)

            pieces = self._incoming.read([part.size_bytes for part in self._bundle.parts])
            return take_parts(pieces, self._bundle, self._work, self._image, tell_on)

        def tell(fraction: float) -> None:
            if int(fraction * 100) != told[0]:
                told[0] = int(fraction * 100)
                loop.call_soon_threadsafe(report, Progress("reading the bundle", fraction))

        taken = await run_stoppable(take)
        if self.agent_disk is not None:
            disk = taken.companions["agent"]
            await asyncio.to_thread(self._agent_disks.take_in, *self.agent_disk, disk)
        report(Progress("writing the disks"))
        self.saved = None if self.cold else taken.saved
        made, self.manifest = await make_snapshot(
            taken, self._bundle, self._spec, self._hardware, self._images.home, self._work
        )
        return made


@asynccontextmanager
async def taken_up(
    open_it: Callable[[], Incoming],
    images: ImageStore,
    agent_disks: AgentDiskStore,
    *,
    cold: bool,
    force: bool,
    accelerator: str,
    report: Report,
) -> AsyncIterator[Arrival]:
    """Check a bundle, and provide the arrival for the block.

    Afterwards remove the bundle's files, except files that the block moved into the store.

    Args:
        open_it: reads the manifest. Blocking.
        cold: leave out the memory; the machine boots.
        force: allow a machine that is too large for this host.
        accelerator: "auto", or the accelerator to continue on.

    Raises:
        BadBundle, NotFound, BeyondHost, HostLacks
    """
    incoming = await asyncio.to_thread(open_it)
    try:
        bundle = parse_manifest(incoming.manifest)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadBundle(f"the manifest of the bundle is not valid: {str(error)[:200]}") from error
    work = images.home.incoming / f"bundle-{secrets.token_hex(6)}"
    work.mkdir(mode=0o711)
    try:
        arrival = Arrival(incoming, bundle, images, agent_disks, work)
        arrival.cold, arrival.force, arrival.report = cold, force, report
        arrival.accelerator = accelerator
        await arrival.check()
        yield arrival
    finally:
        await remove_work(work)
