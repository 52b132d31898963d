r"""Choose the boot loader on an EFI system partition.

A portable disk has its loader in \EFI\BOOT, which every firmware searches (UEFI specification 3.5.1.1). An
installed system may have its loader only in the vendor's directory. The computer's variables then have a boot
entry, which an image of the disk lacks. File names on the partition are not trusted.
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
#: Endings of loader names for each architecture (UEFI specification 3.5.1.1).
_SUFFIXES = {"x64": "x86_64", "aa64": "aarch64", "riscv64": "riscv64", "ia32": "i386"}
#: Loader names on a FAT without long names.
_SHORT = {"BOOTRISC": "riscv64"}
_FILE = re.compile(
    rb"::(/EFI/([A-Za-z0-9._+ -]{1,64})/(?:[A-Za-z0-9._+ -]{1,64}/)?([A-Za-z0-9._+~-]{1,64})\.efi)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
#: Loaders of a vendor in order of preference: shim starts the GRUB in the same directory.
_PREFERRED = ("shim", "grub", "systemd-boot", "bootmgfw")
#: Programs that other loaders start: fallback, MOK manager, firmware updates.
_NO_LOADERS = re.compile(r"(fb|mm|fwup|memtest|bootmgr|memtest86)", re.IGNORECASE)


class EfiLoader(BaseModel):
    r"""A vendor's boot loader and its partition, for a disk without a loader in \EFI\BOOT.

    Attributes:
        identity: the partition's GUID as on the disk, or the MBR's signature, as hexadecimal digits.
    """

    model_config = ConfigDict(frozen=True)
    path: str = Field(max_length=255, pattern=r"^[\\A-Za-z0-9._+ ~-]+$")
    partition: int = Field(ge=1, le=128)
    first_sector: int = Field(ge=1, lt=1 << 55)
    sectors: int = Field(ge=1, lt=1 << 55)
    identity: str = Field(pattern=r"^([0-9a-f]{8}|[0-9a-f]{32})$")


@dataclass(frozen=True)
class EspFile:
    """A loader on the partition.

    `arch` is None if the name contains no architecture. `is_fallback`: every firmware finds the loader.
    """

    path: str
    arch: str | None
    is_fallback: bool


async def list_loaders(disk: Path, first_sector: int, confinement: Confinement) -> list[EspFile]:
    """List the loaders of a partition; an empty list without a FAT, or without mtools on the host."""
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
        pass  # use the output so far
    finally:
        confinement.take_back(disk)
    return parse_loaders(bytes(heard[:_MOST_OUTPUT]))


class _TooManyFiles(Exception):
    """The listing is too long, as of a directory that contains itself."""


def parse_loaders(listing: bytes) -> list[EspFile]:
    """Parse the output of `mdir -/ -b`."""
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
    """Return the vendor's loader for a boot entry.

    None: the firmware finds a loader without an entry, or the partition has no loader.
    """
    fitting = [file for file in files if file.arch in (arch, None)]
    if any(file.is_fallback for file in fitting):
        return None
    return min((file for file in fitting if not file.is_fallback), key=_rank, default=None)


def _rank(file: EspFile) -> tuple[int, str]:
    stem = file.path.rpartition("\\")[2].lower()
    places = [place for place, name in enumerate(_PREFERRED) if stem.startswith(name)]
    return (places[0] if places else len(_PREFERRED), file.path)
