"""The manifest of an imported image: chosen by the user, the note of an export, and the disk itself."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from bough.errors import BadImage
from bough.images.contents import Contents
from bough.images.formats import Header, is_floppy
from bough.images.import_request import HARDWARE, ImportRequest, is_url
from bough.images.linux_disk.facts import LinuxFacts
from bough.images.linux_disk.preparation import Prepared
from bough.images.note import ExportNote
from bough.images.platforms import PLATFORMS

_FIRMWARE = {"x86_64": ("bios", "uefi"), "i386": ("bios",)}


def describe(
    header: Header,
    contents: Contents,
    request: ImportRequest,
    note: ExportNote | None,
    prepared: Prepared,
) -> dict[str, Any]:
    """Return the fields of the manifest that the image's digest covers."""
    media = media_of(header)
    arch = _choose_arch(request, contents, prepared.linux)
    known = _FIRMWARE.get(arch, ("uefi",))
    found = tuple(name for name in (header.firmware or contents.firmware) if name in known)
    firmware = found or known if request.firmware == "auto" else (request.firmware,)
    if media == "floppy" and request.firmware == "auto":
        firmware = ("bios",)
    if request.agent is False:
        note = None
    agent = _agent_of(request, note, prepared) if media == "disk" else None
    os_name, version = _name_system(request, note, prepared)
    return {
        "os": os_name,
        "version": version,
        "arch": arch,
        "firmware": list(firmware),
        "size_bytes": header.size_bytes,
        "agent": agent,
        "lived": agent is not None,
        "media": media,
        "cloud_init": request.cloud_init,
        **_hardware_of(request, note, prepared.linux),
    }


def _hardware_of(request: ImportRequest, note: ExportNote | None, linux: LinuxFacts | None) -> dict[str, str]:
    """Return the hardware that the user or the note of an export names, or that the guest has drivers for."""
    asked = {name: getattr(request, name) for name in HARDWARE}
    noted = {name: getattr(note, name) for name in HARDWARE} if note is not None else _choose_hardware(linux)
    return noted | {name: value for name, value in asked.items() if value != "auto"}


def media_of(header: Header) -> Literal["disk", "cdrom", "floppy"]:
    """Return the use of an image in a machine."""
    if header.format == "iso":
        return "cdrom"
    return "floppy" if header.format == "raw" and is_floppy(header.size_bytes) else "disk"


def _agent_of(
    request: ImportRequest, note: ExportNote | None, prepared: Prepared
) -> Literal["installed", "disk"] | None:
    """Return the origin of the guest's agent. The disk itself is believed more than a note."""
    if request.agent is False:
        return None
    if prepared.agent is not None and not (request.cloud_init and prepared.agent == "disk"):
        return prepared.agent
    if request.agent or (note is not None and note.agent):
        return "disk" if note is not None and note.agent_disk else "installed"
    return None


def _name_system(request: ImportRequest, note: ExportNote | None, prepared: Prepared) -> tuple[str, str]:
    """Return name and version of the operating system: as requested, of an export, or as on the disk."""
    if request.os != "unknown":
        return request.os, request.version
    if note is not None and note.os != "unknown":
        return note.os, note.version
    return prepared.os or request.os, prepared.version or request.version


def _choose_hardware(linux: LinuxFacts | None) -> dict[str, str]:
    """Return the hardware that the guest has drivers for, where that is not virtio."""
    if linux is None:
        return {}
    chosen = {}
    if linux.buses and "virtio" not in linux.buses:
        chosen["disk_bus"] = linux.buses[0]
    if linux.nics and "virtio" not in linux.nics:
        chosen["nic_model"] = linux.nics[0]
    if linux.virtio_serial is False:
        chosen["agent_port"] = "serial"
    return chosen


def describe_origin(request: ImportRequest, header: Header, checksum: str | None) -> dict[str, Any]:
    if request.origin is not None:
        return dict(request.origin)
    origin = {"source": request.source, "format": header.format}
    if checksum is not None:
        origin["sha256"] = checksum
    if request.checksum is not None:
        origin["checksum"] = request.checksum.lower()
    if is_url(request.source):  # keep no password or token
        parts = urlsplit(request.source)
        origin["source"] = parts._replace(
            netloc=parts.netloc.rpartition("@")[2], query="", fragment=""
        ).geturl()
    return origin


def _choose_arch(request: ImportRequest, contents: Contents, linux: LinuxFacts | None) -> str:
    found = contents.architectures
    if not found and linux is not None and linux.arch in PLATFORMS:
        found = frozenset({linux.arch})  # of programs: a disk without a boot loader shows nothing else
    if request.arch_given and found and request.arch not in found and not _runs(request.arch, found):
        raise BadImage(
            f"the disk boots {' or '.join(sorted(found))}, not {request.arch}",
            hint=f"use --arch {min(found)}, or leave --arch out",
        )
    if not request.arch_given and found and request.arch not in found:
        return min(found - {"i386"} or found)
    return request.arch


def _runs(arch: str, found: frozenset[str]) -> bool:
    return arch == "x86_64" and "i386" in found
