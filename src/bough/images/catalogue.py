"""The catalogue: images of other publishers, with addresses, checksums and signatures, as data.

bough contains a catalogue.toml. A command downloads a newer catalogue into BOUGH_HOME. Both are treated as
foreign data: bounded and validated. A catalogue names no file of the host.
"""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from bough.errors import Conflict, InvalidInput, NotFound
from bough.images.recipes import LABELS
from bough.paths import Home
from bough.spec.container_name import suggest_container
from bough.storage import write_json

BUILT_IN = Path(__file__).parent / "catalogue.toml"
MOST_BYTES = 2 * 1024 * 1024

Address = Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+/[!-~]*$", max_length=500)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
Text = Annotated[str, StringConstraints(pattern=r"^[ -~]*$", max_length=200)]
Fingerprint = Annotated[str, StringConstraints(pattern=r"^(?:[0-9A-F]{40}|[0-9A-F]{64})$")]
Arch = Annotated[str, StringConstraints(pattern=r"^(?:x86_64|aarch64|riscv64|i386)$")]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Key(_Data):
    """An OpenPGP key, or the key's address.

    Attributes:
        fingerprints: of primary keys. Only these keys count, wherever the key comes from.
        address: the publisher's address of the key.
        armour: the key itself.
    """

    fingerprints: Annotated[tuple[Fingerprint, ...], Field(min_length=1, max_length=8)]
    address: Address | None = None
    armour: Annotated[str, StringConstraints(max_length=256 * 1024)] | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Key:
        if (self.address is None) == (self.armour is None):
            raise ValueError("a key has either an address or armour")
        return self


class ImageFile(_Data):
    """An image file of a publisher.

    Attributes:
        checksums: address of a list of sha256 or sha512 sums that contains the file.
        signature: address of the list's signature; "inside": the list is clear-signed; None: the publisher
            signs nothing.
        key: name of the key that signs the list.
    """

    arch: Arch
    address: Address
    checksums: Address
    signature: Address | Annotated[str, StringConstraints(pattern="^inside$")] | None = None
    key: Name | None = None

    @model_validator(mode="after")
    def _has_both(self) -> ImageFile:
        if (self.signature is None) != (self.key is None):
            raise ValueError("a signature needs a key, and a key a signature")
        return self


class CatalogueImage(_Data):
    """An image in the catalogue, with one file for each architecture.

    Attributes:
        names: names that a user may ask for. The first name is the label, like "fedora:44".
        cloud_init: the image runs cloud-init, which installs bough's agent at the first boot.
    """

    names: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]*:[a-z0-9][a-z0-9.+-]*$")], ...],
        Field(min_length=1, max_length=8),
    ]
    title: Text
    os: Name
    version: Text
    cloud_init: bool = True
    note: Text = ""
    files: Annotated[tuple[ImageFile, ...], Field(min_length=1, max_length=8)]

    @property
    def label(self) -> str:
        return self.names[0]


class Catalogue(_Data):
    """A catalogue with its images and keys.

    Attributes:
        serial: grows with each version; a date, like 20261124.
    """

    format: Annotated[int, Field(ge=1, le=1)]
    serial: Annotated[int, Field(ge=1, lt=1 << 53)]
    keys: Annotated[dict[Name, Key], Field(max_length=200)] = {}
    images: Annotated[tuple[CatalogueImage, ...], Field(min_length=1, max_length=2000)]

    @model_validator(mode="after")
    def _is_whole(self) -> Catalogue:
        seen: set[str] = set()
        for image in self.images:
            for name in image.names:
                if name in seen:
                    raise ValueError(f"two images are called {name}")
                seen.add(name)
            if len({file.arch for file in image.files}) != len(image.files):
                raise ValueError(f"{image.label} has two files for one architecture")
            for file in image.files:
                if file.key is not None and file.key not in self.keys:
                    raise ValueError(f"{image.label} is signed by an unknown key: {file.key}")
        return self

    def find(self, reference: str, arch: str) -> tuple[CatalogueImage, ImageFile]:
        """Return the image and the file for an architecture.

        Raises:
            NotFound: the hint has the nearest name, or the architectures of the image.
        """
        named = {name: image for image in self.images for name in image.names}
        image = named.get(reference)
        if image is None:
            close = get_close_matches(reference, named, n=1)
            other = f"list the images: bough image search{suggest_container(reference)}"
            hint = f"did you mean '{close[0]}'?" if close else other
            raise NotFound(f"the catalogue has no image {reference[:80]!r}", hint=hint, kind="image")
        file = next((file for file in image.files if file.arch == arch), None)
        if file is None:
            others = ", ".join(file.arch for file in image.files)
            raise NotFound(f"there is no {image.label} for {arch}", hint=f"available: {others}", kind="image")
        return image, file

    def knows(self, reference: str) -> bool:
        return any(reference in image.names for image in self.images)

    def search(self, words: str = "", arch: str | None = None) -> Iterator[CatalogueImage]:
        """Yield the images with all `words` in names or title."""
        for image in self.images:
            text = f"{' '.join(image.names)} {image.title}".lower()
            fits = arch is None or any(file.arch == arch for file in image.files)
            if fits and all(word in text for word in words.lower().split()):
                yield image


def parse_catalogue(text: bytes, source: str) -> Catalogue:
    """Parse a catalogue in TOML.

    Raises:
        InvalidInput: the text is not a valid catalogue. The message has the first problem.
    """
    if len(text) > MOST_BYTES:
        raise InvalidInput(f"{source} is larger than 2 MiB, the limit for a catalogue")
    try:
        return Catalogue.model_validate(tomllib.loads(text.decode()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:100]
        reason = re.sub(r"^Value error, ", "", first["msg"])[:200]
        raise InvalidInput(
            f"{source} is not a valid catalogue: {place + ': ' if place else ''}{reason}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{source} is not a valid catalogue: {str(error)[:200]}") from None


class Catalogues:
    """The choice between the downloaded catalogue and bough's own: the newer one is in use."""

    def __init__(self, home: Home) -> None:
        self._path = home.catalogue

    def current(self) -> Catalogue:
        built_in = _built_in()
        kept = self._fetched()
        if kept is None:
            return built_in
        fetched, forced_over = kept
        return fetched if fetched.serial > built_in.serial or forced_over == built_in.serial else built_in

    @property
    def source(self) -> str | None:
        """The address of the last downloaded catalogue."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(self._path.read_bytes())["source"])
        return None

    def replace(self, text: bytes, source: str, *, force: bool = False) -> Catalogue:
        """Replace the catalogue with `text`, completely or not at all.

        Raises:
            InvalidInput: `text` is not a valid catalogue.
            Conflict: the new catalogue is older than the one in use, without `force`. A forced
                catalogue is in use until bough contains a newer one.
        """
        new, old = parse_catalogue(text, source), self.current()
        if new.serial < old.serial and not force:
            raise Conflict(
                f"the catalogue at {source} is older ({new.serial}) than the one in use ({old.serial})",
                hint="--force uses the older one; `bough image catalogue reset` undoes that",
            )
        kept: dict[str, Any] = {"source": source, "catalogue": new.model_dump(mode="json")}
        if force:
            kept["forced_over"] = _built_in().serial
        write_json(self._path, kept)
        return new

    def reset(self) -> None:
        """Return to bough's own catalogue."""
        self._path.unlink(missing_ok=True)

    def _fetched(self) -> tuple[Catalogue, int | None] | None:
        """Return the downloaded catalogue, and, if the user forced an older catalogue, the serial of bough's
        own.
        """
        # If the downloaded catalogue is damaged, bough's own is used.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept: dict[str, Any] = json.loads(self._path.read_bytes())
            return Catalogue.model_validate(kept["catalogue"]), kept.get("forced_over")
        return None


def _built_in() -> Catalogue:
    return parse_catalogue(BUILT_IN.read_bytes(), BUILT_IN.name)


def describe_catalogue(catalogues: Catalogues, words: str = "", arch: str | None = None) -> dict[str, Any]:
    """Return the entries that contain all `words`, and the catalogue's source. JSON-able."""
    current = catalogues.current()
    built = [
        {"names": [label], "title": "built here, from Debian's packages", "os": "debian", "files": []}
        for label in LABELS
        if all(word in f"{label} built here, from debian's packages" for word in words.lower().split())
    ]
    found = [image.model_dump(mode="json") for image in current.search(words, arch)]
    return {"serial": current.serial, "source": catalogues.source, "images": [*built, *found]}
