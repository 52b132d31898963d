r"""The boot loaders on an EFI system partition: which one a machine is to start.

A disk that can be carried from one computer to another has its loader at \EFI\BOOT, where every firmware
looks (UEFI specification 3.5.1.1). An installed system may have it in its vendor's directory alone, and a
boot entry in the computer's variables, which an image of the disk has not. The files' names are hostile.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from bough.errors import HostLacks
from bough.images.confined import Confinement, find_program, run_confined

SECTOR = 512
_MOST_OUTPUT = 64 * 1024
_MOST_S = 60.0
#: How the names of loaders end for each architecture (UEFI specification 3.5.1.1).
_SUFFIXES = {"x64": "x86_64", "aa64": "aarch64", "riscv64": "riscv64", "ia32": "i386"}
#: As a FAT without long names has it.
_SHORT = {"BOOTRISC": "riscv64"}
_FILE = re.compile(
    rb"::(/EFI/([A-Za-z0-9._+ -]{1,64})/(?:[A-Za-z0-9._+ -]{1,64}/)?([A-Za-z0-9._+~-]{1,64})\.efi)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
#: Which one of a vendor's is started: shim starts the GRUB beside it.
_PREFERRED = ("shim", "grub", "systemd-boot", "bootmgfw")
#: They are started by others: fallback, MOK manager, firmware updates.
_NO_LOADERS = re.compile(r"(fb|mm|fwup|memtest|bootmgr|memtest86)", re.IGNORECASE)


class EfiLoader(BaseModel):
    r"""A vendor's boot loader, and the partition that it is on. For a disk without one at \EFI\BOOT.

    identity: of the partition, as hexadecimal digits: its GUID as it is on the disk, or an MBR's signature.
    """

    model_config = ConfigDict(frozen=True)
    path: str = Field(max_length=255, pattern=r"^[\\A-Za-z0-9._+ ~-]+$")
    partition: int = Field(ge=1, le=128)
    first_sector: int = Field(ge=1, lt=1 << 55)
    sectors: int = Field(ge=1, lt=1 << 55)
    identity: str = Field(pattern=r"^([0-9a-f]{8}|[0-9a-f]{32})$")


@dataclass(frozen=True)
class EspFile:
    """`arch` is None where the name does not tell it; `is_fallback`: every firmware finds it."""

    path: str
    arch: str | None
    is_fallback: bool


async def list_loaders(disk: Path, first_sector: int, confinement: Confinement) -> list[EspFile]:
    """Empty where it is no FAT, or mtools is not installed."""
    try:
        mdir = find_program("mdir")
    except HostLacks:
        return []
    heard = bytearray()

    async def told(data: bytes) -> None:
        heard.extend(data)
        if len(heard) > _MOST_OUTPUT:
            raise _TooManyFiles

    argv = [mdir, "-/", "-b", "-i", f"{disk}@@{first_sector * SECTOR}", "::/EFI"]
    confinement.give(disk)
    try:
        async with asyncio.timeout(_MOST_S):
            await run_confined(confinement, argv, read_only=(disk,), on_output=told)
    except (_TooManyFiles, TimeoutError):
        pass  # what is known by now
    finally:
        confinement.take_back(disk)
    return parse_loaders(bytes(heard[:_MOST_OUTPUT]))


class _TooManyFiles(Exception):
    """A directory that is its own child, say."""


def parse_loaders(listing: bytes) -> list[EspFile]:
    """Of what `mdir -/ -b` prints."""
    found = []
    for path, vendor, name in _FILE.findall(listing):
        text, stem = path.decode(), name.decode()
        is_fallback = vendor.upper() == b"BOOT"
        arch = _SHORT.get(stem.upper()) or _arch_of(stem)
        if is_fallback and (arch is None or not stem.upper().startswith("BOOT")):
            continue
        if is_fallback or not _NO_LOADERS.match(stem):
            found.append(EspFile(text.replace("/", "\\"), arch, is_fallback))
    return found


def _arch_of(stem: str) -> str | None:
    lower = stem.lower()
    return next((arch for suffix, arch in _SUFFIXES.items() if lower.endswith(suffix)), None)


def choose_loader(files: list[EspFile], arch: str) -> EspFile | None:
    """The vendor's loader that a boot entry is to name; None: the firmware finds one by itself, or none is
    there."""
    fitting = [file for file in files if file.arch in (arch, None)]
    if any(file.is_fallback for file in fitting):
        return None
    return min((file for file in fitting if not file.is_fallback), key=_rank, default=None)


def _rank(file: EspFile) -> tuple[int, str]:
    stem = file.path.rpartition("\\")[2].lower()
    places = [place for place, name in enumerate(_PREFERRED) if stem.startswith(name)]
    return (places[0] if places else len(_PREFERRED), file.path)
