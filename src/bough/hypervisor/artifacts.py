"""Images and machines in registries: push them, and pull them back."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bough.artifacts.document import Kind
from bough.artifacts.writing import WholePart, Written, write_layout
from bough.errors import NotFound
from bough.hypervisor.bundles import Bundles
from bough.hypervisor.half_made import HalfMade
from bough.hypervisor.image_source import ImageSource
from bough.images.artifact import describe_images, parts_of, related_images
from bough.images.oci.artifacts import check_kind, find_artifact, parse_place, push_layout
from bough.images.oci.kept_layouts import KeptLayouts
from bough.images.oci.skopeo import Skopeo
from bough.images.store import ImageManifest, ImageStore
from bough.machines.machine import Machine
from bough.machines.plan import host_arch
from bough.paths import Home
from bough.progress import Progress, Report
from bough.snapshots.artifact import describe_machine, machine_parts, open_machine
from bough.snapshots.bundle_reading import remove_work
from bough.spec.container_name import ContainerName
from bough.storage import check_space
from bough.tasks import run_stoppable
from bough.units import MIB, format_size

#: Share of the data that the chunks of a usual disk take, and a reserve for other programs.
_PACKED = 2
_SPARE_BYTES = 256 * MIB


@dataclass(frozen=True)
class Pushed:
    """An artifact in a registry; see contract/answers.py."""

    reference: str
    digest: str
    chunks: int
    stored_bytes: int


class Artifacts:
    """Use cases of registries."""

    def __init__(
        self,
        home: Home,
        store: ImageStore,
        source: ImageSource,
        bundles: Bundles,
        kept: KeptLayouts,
        half_made: HalfMade,
    ) -> None:
        self._home = home
        self._store = store
        self._source = source
        self._bundles = bundles
        self._kept = kept
        self._half_made = half_made

    async def push_image(self, reference: str, target: str, *, report: Report) -> dict[str, Any]:
        """Write an image to a registry.

        Raises:
            NotFound: no such image. InvalidInput: no place in a registry.
            DownloadFailed: the registry refuses the push, or cannot be reached. NoSpace, HostLacks
        """
        name = parse_place(target)
        images = related_images(self._store, self._find_image(reference, name))
        with ExitStack() as used:
            for image in images:
                used.enter_context(self._source.using(image.digest))
            data_bytes = sum(self._store.path(image.digest).stat().st_blocks * 512 for image in images)
            parts = parts_of(self._store, images)
            return await self._push(name, "image", describe_images(images), parts, data_bytes, report)

    def _find_image(self, reference: str, name: ContainerName) -> ImageManifest:
        try:
            return self._store.resolve(reference)
        except NotFound as error:
            if not self._bundles.knows(reference):
                raise
            hint = f"push the machine or the snapshot: bough export {reference} {name}"
            raise NotFound(error.message, hint=hint, kind="image") from error

    async def push_machine(
        self, reference: str, target: str, *, disks_only: bool, report: Report
    ) -> dict[str, Any]:
        """Write a machine or a snapshot to a registry. A running machine is pushed with its memory.

        Raises:
            as Bundles.export and push_image.
        """
        name = parse_place(target)
        async with self._bundles.flattened(reference, disks_only=disks_only, report=report) as flat:
            data_bytes = sum(disk.stat().st_blocks * 512 for disk in flat.disks)
            if flat.subject.saved is not None:
                data_bytes += sum(length for _, length in flat.subject.saved.memory.extents())
            parts = machine_parts(flat, report)
            return await self._push(name, "machine", describe_machine(flat), parts, data_bytes, report)

    async def _push(
        self,
        name: ContainerName,
        kind: Kind,
        content: dict[str, Any],
        parts: list[WholePart],
        data_bytes: int,
        report: Report,
    ) -> dict[str, Any]:
        skopeo = Skopeo(name, host_arch(), self._home.incoming)
        with self._half_made.working():
            async with self._work() as work:
                check_space(
                    work, data_bytes // _PACKED + _SPARE_BYTES, f"the push of {format_size(data_bytes)}"
                )
                layout = work / "layout"
                layout.mkdir()
                told = _Teller(f"packing {format_size(data_bytes)}", data_bytes, report)

                def write(check: Callable[[], None]) -> Written:
                    return write_layout(layout, kind, content, parts, partial(told.tell, check))

                written = await run_stoppable(write)
                await push_layout(layout, written, skopeo, report)
        return asdict(Pushed(str(name), written.manifest.digest, written.chunks, written.stored_bytes))

    @asynccontextmanager
    async def _work(self) -> AsyncIterator[Path]:
        work = self._home.incoming / f"push-{secrets.token_hex(6)}"
        work.mkdir(mode=0o711)
        try:
            yield work
        finally:
            await remove_work(work)

    async def pull_machine(self, origin: str, *, report: Report, **options: Any) -> Machine:
        """Create the machine of an artifact. The machine runs if the artifact has its memory.

        Args:
            options: as Bundles.import_bundle.

        Raises:
            InvalidInput: the name is an image's. NotFound, DownloadFailed, and as Bundles.import_bundle.
        """
        name = parse_place(origin, may_have_digest=True)
        skopeo = Skopeo(name, host_arch(), self._home.incoming)
        report(Progress(f"looking for {name}"))
        artifact = check_kind(await find_artifact(name, skopeo), "machine", name)
        places: list[Path] = []

        @asynccontextmanager
        async def ready() -> AsyncIterator[None]:
            async with artifact.fetched(self._kept, report) as blobs:
                places.append(blobs)
                yield

        opening = partial(open_machine, lambda: places[0], artifact.manifest, artifact.description)
        return await self._bundles.import_from(opening, ready(), report=report, **options)


class _Teller:
    """Reports the share of the packed bytes, from the thread that packs."""

    def __init__(self, step: str, total: int, report: Report) -> None:
        self._step, self._total, self._report = step, total or 1, report
        self._done, self._percent = 0, -1
        self._loop = asyncio.get_running_loop()

    def tell(self, check: Callable[[], None], count: int) -> None:
        check()
        self._done += count
        percent = min(100, self._done * 100 // self._total)
        if percent != self._percent:
            self._percent = percent
            self._loop.call_soon_threadsafe(self._report, Progress(self._step, percent / 100))
