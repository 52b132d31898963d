"""An import as a user requests it, with its checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote, urlsplit

from bough.errors import InvalidInput
from bough.images.formats import FORMATS
from bough.spec.disk import Bus
from bough.spec.nic import Model

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/:@-]{0,127}")
CHECKSUM = re.compile(r"(?:(sha256|sha512):)?([0-9a-f]{64}|[0-9a-f]{128})")
_ENDINGS = re.compile(
    r"\.(gz|xz|zst|bz2|raw|img|qcow2|vmdk|vdi|vhdx|vhd|ova|ovf|iso|tar|box)$", re.IGNORECASE
)
#: Hardware that a user may name for an image.
HARDWARE = {"disk_bus": get_args(Bus), "nic_model": get_args(Model), "agent_port": ("virtio", "serial")}


@dataclass(frozen=True)
class ImportRequest:
    """An import as the user requested it.

    Attributes:
        source: an absolute path, or an http(s) address.
        checksum: "sha256:..." or "sha512:..." of the source file, or the 64 digits of a sha256 alone.
        disk: the name of a disk in an OVA, or ova.ALL_DISKS.
        disk_bus, nic_model, agent_port: hardware of machines from the image.
        agent: the guest has bough's agent. False: leave the disk alone. None: find out by the disk and the
            note of `bough export`, and install the agent's starter into a foreign Linux.
        root: the volume with the root of the Linux, like "2" or "group/volume", if a disk has several.
        origin: the origin for the manifest, if `source` is a file of bough's own: a capture.
    """

    source: str
    arch: str
    label: str | None = None
    format: str = "auto"
    firmware: str = "auto"
    checksum: str | None = None
    os: str = "unknown"
    version: str = ""
    disk: str | None = None
    most_bytes: int | None = None
    cloud_init: bool = False
    arch_given: bool = False
    agent: bool | None = None
    disk_bus: str = "auto"
    nic_model: str = "auto"
    agent_port: str = "auto"
    root: str | None = None
    origin: Mapping[str, Any] | None = None


def check_request(request: ImportRequest) -> str:
    """Return the label of the image. Raises InvalidInput."""
    label = request.label or _label_of(request.source)
    if not _LABEL.fullmatch(label):
        raise InvalidInput(
            f"{label[:80]!r} is not a valid image name",
            hint="use --name with letters, digits and . _ + / : @ -, like web:2024",
        )
    if request.format not in ("auto", *FORMATS):
        raise InvalidInput(
            f"unknown format {request.format[:40]!r}", hint=f"one of: auto, {', '.join(FORMATS)}"
        )
    if request.firmware not in ("auto", "bios", "uefi"):
        raise InvalidInput(f"unknown firmware {request.firmware[:40]!r}", hint="one of: auto, bios or uefi")
    for name, known in HARDWARE.items():
        value = getattr(request, name)
        if value not in ("auto", *known):
            raise InvalidInput(f"unknown {name} {value[:40]!r}", hint=f"one of: auto, {', '.join(known)}")
    if request.checksum is not None and not CHECKSUM.fullmatch(request.checksum.lower()):
        raise InvalidInput(
            f"{request.checksum[:80]!r} is not a sha256 checksum",
            hint="use 64 hexadecimal digits; or sha512:<128 digits>",
        )
    return label


def _label_of(source: str) -> str:
    name = Path(unquote(urlsplit(source).path) if is_url(source) else source).name
    for _ in range(3):
        name = _ENDINGS.sub("", name)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-._+")[:128] or "imported"


def is_url(source: str) -> bool:
    return "://" in source
