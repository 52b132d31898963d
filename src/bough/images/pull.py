"""Pull an image of the catalogue: check the signature of the checksums, then download and import the file.

list of checksums  ->  signature, by a key of known fingerprint  ->  checksum of this file  ->  import
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bough.errors import BadImage, NotFound
from bough.images.catalogue import MOST_BYTES, Catalogue, CatalogueImage, ImageFile
from bough.images.confined import Confinement
from bough.images.download import download
from bough.images.import_request import ImportRequest
from bough.images.imports import import_image
from bough.images.signature import check_signature, parse_key
from bough.images.store import ImageManifest, ImageStore
from bough.paths import Home
from bough.progress import Progress, Report
from bough.tasks import finish

_MOST_TEXT_BYTES = 4 * 1024 * 1024
#: Formats: "DIGITS  name" and "DIGITS *name" (coreutils), "SHA256 (name) = DIGITS" (BSD, Fedora, FreeBSD).
_GNU = re.compile(r"([0-9a-fA-F]{128}|[0-9a-fA-F]{64})(?:[ \t]+\*?(\S+))?\s*")
_BSD = re.compile(r"SHA(?:256|512) ?\(([^()\n]+)\) ?= ?([0-9a-fA-F]{128}|[0-9a-fA-F]{64})\s*")


async def pull_image(
    store: ImageStore,
    catalogue: Catalogue,
    reference: str,
    arch: str,
    confinement: Confinement,
    report: Report,
    *,
    label: str | None = None,
    signed: bool = True,
) -> ImageManifest:
    """Return the image, stored under `label` or the name in the catalogue.

    The file is downloaded only if the store lacks an image with this checksum under the label.

    Args:
        signed: False: do not check the signature, even if the catalogue has one.

    Raises:
        NotFound, BadImage, DownloadFailed, HostLacks, NoSpace
    """
    image, file = catalogue.find(reference, arch)
    label = label or image.label
    text = await _read_checksums(store.home, catalogue, image, file, confinement, report, signed)
    checksum = find_checksum(text, file.address)
    known = _known(store, label, arch)
    if known is not None and (known.origin or {}).get("checksum") == checksum:
        return known
    request = ImportRequest(
        source=file.address,
        arch=arch,
        arch_given=True,
        label=label,
        checksum=checksum,
        os=image.os,
        version=image.version,
        cloud_init=image.cloud_init,
    )
    return await import_image(store, request, confinement, report)


async def _read_checksums(
    home: Home,
    catalogue: Catalogue,
    image: CatalogueImage,
    file: ImageFile,
    confinement: Confinement,
    report: Report,
    signed: bool,
) -> str:
    text = await fetch(file.checksums, home, report)
    if file.signature is not None and file.key is not None and signed:
        key = catalogue.keys[file.key]
        armour = key.armour.encode() if key.armour else await fetch(str(key.address), home, report)
        signature = None if file.signature == "inside" else await fetch(file.signature, home, report)
        report(Progress(f"checking the signature of {image.label}"))
        work = home.incoming / f"signature-{secrets.token_hex(6)}"
        work.mkdir(mode=0o711)
        try:
            text = await check_signature(
                text, signature, parse_key(armour), key.fingerprints, work, confinement
            )
        finally:
            await finish(asyncio.to_thread(shutil.rmtree, work, True))
    return text.decode(errors="replace")


async def fetch(address: str, home: Home, report: Report, *, most_bytes: int = _MOST_TEXT_BYTES) -> bytes:
    """Download a small file.

    Raises:
        DownloadFailed
    """
    async with download(address, home.downloads, most_bytes=most_bytes, report=report) as path:
        return await asyncio.to_thread(Path.read_bytes, path)


async def fetch_catalogue(address: str, home: Home, report: Report) -> bytes:
    return await fetch(address, home, report, most_bytes=MOST_BYTES)


def find_checksum(text: str, address: str) -> str:
    """Return the checksum of the file at `address` from a list: "sha256:..." or "sha512:...".

    A list with a single entry needs no matching name. Some publishers list the dated file for an address that
    ends in "latest".

    Raises:
        BadImage: the list does not contain the file.
    """
    name = unquote(urlsplit(address).path).rpartition("/")[2]
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _BSD.fullmatch(line.strip()):
            _keep(found, match[1], match[2])
        elif match := _GNU.fullmatch(line.strip()):
            _keep(found, match[2] or name, match[1])
    digits = found.get(name) or (next(iter(found.values())) if len(found) == 1 else None)
    if digits is None:
        raise BadImage(
            f"the list of checksums has no entry for {name[:100]}",
            hint="the catalogue may be old: bough image catalogue update",
        )
    return f"sha{len(digits) * 4}:{digits.lower()}"


def _keep(found: dict[str, str], name: str, digits: str) -> None:
    """Store a checksum. If a file has two, the longer checksum wins."""
    name = name.rpartition("/")[2]
    if len(digits) > len(found.get(name, "")):
        found[name] = digits


def _known(store: ImageStore, label: str, arch: str) -> ImageManifest | None:
    try:
        return store.resolve(label, arch)
    except NotFound:
        return None
