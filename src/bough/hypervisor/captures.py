"""Captures: an image of a live Linux host, by way of a machine that copies the host's files."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.errors import BuildFailed, Conflict, InvalidInput, NotFound
from bough.hypervisor.creation import Creation
from bough.hypervisor.half_made import HalfMade
from bough.hypervisor.image_source import ImageSource
from bough.hypervisor.import_guests import ImportGuests
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.lifetimes import Lifetimes
from bough.images.capture.plan import CapturePlan, make_plan
from bough.images.capture.source import SourceHost
from bough.images.confined import Confinement, find_program, run_confined
from bough.images.disk import DiskIdentity
from bough.images.import_request import ImportRequest, check_request
from bough.images.imports import import_image
from bough.images.moves import TARGET_SERIAL
from bough.images.overlays import render_chain
from bough.images.store import ImageManifest, ImageStore
from bough.machines.capture_machine import CaptureMachine
from bough.machines.disks.creation import create_disk, disk_chain
from bough.machines.machine import Machine
from bough.machines.plan import host_arch
from bough.machines.record import MachineDisk
from bough.machines.state import State
from bough.paths import Home
from bough.progress import Progress, Report, notice
from bough.qemu.binary import find_qemu
from bough.qemu.jail_probe import probe_jail
from bough.spec.ssh_address import SshAddress, parse_address
from bough.storage import check_space, no_space_is_told, write_json
from bough.tasks import finish

_BASE = "debian:12"
_NOTE = "capture.json"
_BOOT_S = 600.0
_HOOK_S = 600.0
_MEMORY = "1GiB"
#: `format` in the origin of an image of a host.
_FORMAT = "capture"


@dataclass(frozen=True)
class CaptureRequest:
    """A capture as a user asked for it.

    Attributes:
        address: ssh://[user@]host[:port].
        control: socket of the client's ssh connection.
        label: of the image.
        exclude: patterns of rsync(1).
        disk_bytes: size of the image's disk; None: as much as the host needs.
        bandwidth: bytes per second; None: no bound.
        before, after: commands for the host, as root, around the last pass of the copy.
        quiet: hold back mail and periodic commands in the copy.
        scrub: remove keys and passwords from the copy.
    """

    address: str
    control: str
    label: str
    exclude: Sequence[str] = ()
    disk_bytes: int | None = None
    bandwidth: int | None = None
    before: str | None = None
    after: str | None = None
    quiet: bool = True
    scrub: bool = False

    def render_origin(self) -> dict[str, Any]:
        """Return the origin for the image's manifest: what a refresh needs."""
        return {
            "source": str(parse_address(self.address)),
            "format": _FORMAT,
            "exclude": list(self.exclude),
            "before": self.before,
            "after": self.after,
            "quiet": self.quiet,
            "scrub": self.scrub,
        }


@dataclass(frozen=True)
class Refresh:
    """A refresh of a captured image as a user asked for it.

    Attributes:
        control, bandwidth: as of a capture.
        address: where the host is now; None: where it was.
    """

    reference: str
    control: str
    address: str | None = None
    bandwidth: int | None = None


class Captures:
    """Makes images of live hosts.

    A capture that breaks leaves its machine, stopped: the same capture continues there. The user may delete
    the machine.
    """

    def __init__(
        self,
        home: Home,
        store: ImageStore,
        source: ImageSource,
        creation: Creation,
        inventory: Inventory,
        lifetimes: Lifetimes,
        half_made: HalfMade,
        import_guests: ImportGuests,
    ) -> None:
        self._home = home
        self._store = store
        self._source = source
        self._creation = creation
        self._inventory = inventory
        self._lifetimes = lifetimes
        self._half_made = half_made
        self._import_guests = import_guests

    async def look(self, request: CaptureRequest, report: Report) -> CapturePlan:
        """Return what a capture would copy. Changes nothing.

        Raises:
            InvalidInput: the host cannot be captured. DownloadFailed: it cannot be reached.
        """
        address = parse_address(request.address)
        report(Progress(f"looking at {address}"))
        host = SourceHost(address, Path(request.control))
        return make_plan(await host.look(), request.exclude, request.disk_bytes)

    async def capture(self, request: CaptureRequest, report: Report) -> ImageManifest:
        """Copy a host, and return its image.

        Raises:
            InvalidInput: the host cannot be captured; BuildFailed, DownloadFailed: the copy stopped, and its
                machine stays; Conflict: another capture of that name; NoSpace, HostLacks.
        """
        return await self._capture(request, None, report)

    async def refresh(self, asked: Refresh, report: Report) -> ImageManifest:
        """Copy what changed on the host since an image of it was made. The label moves to the new image.

        Raises:
            InvalidInput: the image is not of a host. Further errors as of `capture`.
        """
        image = self._store.resolve(asked.reference)
        request = _request_again(image, asked)
        with self._source.using(image.digest):
            return await self._capture(request, image, report)

    def address_of(self, reference: str) -> str:
        """Return the address of the host that an image was made of. Raises NotFound, InvalidInput."""
        return str(_origin_of(self._store.resolve(reference))["source"])

    async def _capture(
        self, request: CaptureRequest, before: ImageManifest | None, report: Report
    ) -> ImageManifest:
        address = parse_address(request.address)
        host = SourceHost(address, Path(request.control))
        report(Progress(f"looking at {address}"))
        facts = await host.look()
        plan = make_plan(facts, request.exclude, request.disk_bytes)
        check_request(ImportRequest(source="/", arch=plan.arch, label=request.label))
        check_space(self._home.root, 2 * plan.used_bytes, "a capture")
        for text in plan.notes:
            report(notice(text))
        base = await self._source.find(_BASE, plan.arch, report)
        machine = await self._machine_for(request, address, base, before, plan, report)
        try:
            making = CaptureMachine(machine, host, facts, plan, report)
            await machine.start(report)
            await machine.wait_ready(timeout_s=_BOOT_S, report=report)
            await making.prepare(
                DiskIdentity.derive(f"capture/{request.label}/{address}"), DiskIdentity.derive(base.recipe)
            )
            await self._copy(request, host, making, report)
            firmware = await making.finish(quiet=request.quiet, scrub=request.scrub)
        finally:
            if machine.state is State.RUNNING:
                await finish(machine.stop())
        for text in making.notes:
            report(notice(text))
        manifest = await self._take(machine, plan, request, firmware, report)
        await finish(self._lifetimes.delete(machine, force=True))
        return manifest

    async def _copy(
        self, request: CaptureRequest, host: SourceHost, making: CaptureMachine, report: Report
    ) -> None:
        """Copy the files; with commands around it, once more while the host is quiet."""
        await making.copy(request.bandwidth)
        if request.before is None and request.after is None:
            return
        try:
            if request.before is not None:
                report(Progress("running the command before the last pass"))
                await host.run_hook(request.before, _HOOK_S)
            await making.copy(request.bandwidth)
        finally:
            if request.after is not None:
                report(Progress("running the command after the last pass"))
                await finish(host.run_hook(request.after, _HOOK_S))

    # -- the machine ----------------------------------------------------------------------------

    async def _machine_for(
        self,
        request: CaptureRequest,
        address: SshAddress,
        base: ImageManifest,
        before: ImageManifest | None,
        plan: CapturePlan,
        report: Report,
    ) -> Machine:
        """Return the machine of an earlier attempt, or a new one whose second disk continues `before`."""
        name = f"capture-{re.sub('[^a-z0-9]+', '-', request.label.lower()).strip('-')}"[:60]
        note = {"address": str(address), "disk_bytes": before.size_bytes if before else plan.disk_bytes}
        try:
            machine = self._inventory.find(name)
        except NotFound:
            spec = {
                "image": base.digest,
                "memory": _MEMORY,
                "disks": [{"size": note["disk_bytes"], "serial": TARGET_SERIAL, "bus": "virtio"}],
            }
            machine = await self._creation.create(spec, name=name, force=True, report=report)
            if before is not None:
                await self._continue_image(machine, before)
            write_json(machine.paths.root / _NOTE, note)
            return machine
        self._check_machine(machine, note, plan)
        report(notice(f"the copy continues in the machine {name}"))
        return machine

    async def _continue_image(self, machine: Machine, image: ImageManifest) -> None:
        """Make the second disk an overlay on an image."""
        disk = machine.record.disks[1]
        layer = str(self._home.image(image.digest).disk.relative_to(self._home.root))
        (machine.paths.disks / disk.file).unlink()
        await create_disk(machine.paths.disks / disk.file, disk.size_bytes, layer)
        machine.record.disks[1] = MachineDisk(file=disk.file, size_bytes=disk.size_bytes, layers=[layer])
        machine.record.write(machine.paths)

    def _check_machine(self, machine: Machine, note: dict[str, Any], plan: CapturePlan) -> None:
        try:
            known = json.loads((machine.paths.root / _NOTE).read_text())
        except (OSError, ValueError):
            known = None
        hint = f"bough delete {machine.name} --force, or choose another --name"
        if not isinstance(known, dict) or known.get("address") != note["address"]:
            raise Conflict(
                f"the machine {machine.name} is not that of a capture of {note['address']}", hint=hint
            )
        if known.get("disk_bytes") != plan.disk_bytes and known.get("disk_bytes", 0) < plan.used_bytes:
            raise Conflict(f"the disk of the earlier attempt in {machine.name} is too small now", hint=hint)
        if machine.state is State.RUNNING:
            raise Conflict(f"the machine {machine.name} runs: another capture uses it, or a user", hint=hint)

    # -- the image ------------------------------------------------------------------------------

    async def _take(
        self,
        machine: Machine,
        plan: CapturePlan,
        request: CaptureRequest,
        firmware: list[str],
        report: Report,
    ) -> ImageManifest:
        """Make an image of the machine's second disk, and install the start of the agent."""
        confinement = Confinement(await probe_jail(find_qemu(host_arch()), self._home))
        chain = disk_chain(machine.record.disks[1], machine.paths, self._home)
        work = self._home.incoming / f"capture-{secrets.token_hex(6)}"
        work.mkdir(mode=0o711)
        try:
            with no_space_is_told(f"the image {request.label}", self._home.root), self._half_made.working():
                raw = work / "disk.raw"
                await _flatten(chain, raw, machine.record.disks[1].size_bytes, confinement, report)
                asked = ImportRequest(
                    source=str(raw),
                    arch=plan.arch,
                    label=request.label,
                    format="raw",
                    firmware=firmware[0] if len(firmware) == 1 else "auto",
                    arch_given=True,
                    origin=request.render_origin(),
                )
                guests = self._import_guests.provide
                return await import_image(self._store, asked, confinement, report, guests)
        finally:
            await finish(asyncio.to_thread(shutil.rmtree, work, True))


def _origin_of(image: ImageManifest) -> dict[str, Any]:
    origin = image.origin or {}
    if origin.get("format") != _FORMAT:
        raise InvalidInput(
            f"the image {image.label} is not of a live host", hint="bough image capture makes such an image"
        )
    return origin


def _request_again(image: ImageManifest, asked: Refresh) -> CaptureRequest:
    """Return the request that made an image, with the connection of a refresh."""
    origin = _origin_of(image)
    return CaptureRequest(
        asked.address or str(origin["source"]),
        asked.control,
        image.label,
        exclude=[str(pattern) for pattern in origin.get("exclude", ())],
        disk_bytes=image.size_bytes,
        bandwidth=asked.bandwidth,
        before=origin.get("before"),
        after=origin.get("after"),
        quiet=bool(origin.get("quiet", True)),
        scrub=bool(origin.get("scrub", False)),
    )


async def _flatten(
    chain: Sequence[Path], target: Path, size_bytes: int, confinement: Confinement, report: Report
) -> None:
    report(Progress("writing the image"))
    with target.open("xb") as stream:
        stream.truncate(size_bytes)
    for path in (target, chain[0]):
        confinement.give(path)
    convert = (find_program("qemu-img"), "convert", "-n", "--target-is-zero", "-O", "raw")
    done = await run_confined(
        confinement, [*convert, render_chain(chain), str(target)], read_only=chain, writable=(target,)
    )
    if done.status != 0:
        raise BuildFailed("the image could not be written", output=done.output)
    confinement.take_back(target)
