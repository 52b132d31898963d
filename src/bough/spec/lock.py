"""A lock: the version of each package of an image, for a later build. A lock holds no address."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema

from bough.errors import InvalidSpec
from bough.spec.model import Architecture, Table
from bough.spec.problems import Problem, quote, raise_if_any, told, translate

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}")
_VERSION = re.compile(r"[A-Za-z0-9.+:~-]{1,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_PACKAGES = 20_000


def _versions(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or len(value) > _MOST_PACKAGES:
        raise told("expected a table of packages and their versions")
    for name, version in value.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise told(f"expected names of Debian packages, got {quote(name)}")
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise told(f"expected a version of {name} like '1.22.1-9', got {quote(version)}")
    return dict(value)


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise told(f"expected 64 hexadecimal digits, got {quote(value)}")
    return value


def _format(value: Any) -> int:
    if value != 1 or isinstance(value, bool):
        raise told(
            f"expected 1, got {quote(value)}", "a newer bough wrote the file, or it is not a package lock"
        )
    return 1


_TEXT = WithJsonSchema({"type": "string"})
_TABLE = WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}})
Digest = Annotated[str, BeforeValidator(_digest), _TEXT]


class PackageLock(Table):
    """The package versions of an image.

    Attributes:
        recipe: digest of the recipe of its packages; the same recipe and versions give the same image.
        digest: digest of the image that is made from packages alone: the image itself, or a layer's base.
            None: the layer changed a version, or the base is not made from packages.
        base: digest of the base, if the base is not made from packages.
        packages: name -> version.
        boot_loader: the same, for the packages that the boot loader is made of; they are not installed.
    """

    lock: Annotated[int, BeforeValidator(_format)] = 1
    arch: Architecture
    recipe: Digest | None = None
    digest: Digest | None = None
    base: Digest | None = None
    packages: Annotated[dict[str, str], BeforeValidator(_versions), _TABLE]
    boot_loader: Annotated[dict[str, str], BeforeValidator(_versions), _TABLE] = Field(default_factory=dict)


def parse_lock(data: Mapping[str, Any]) -> PackageLock:
    """Check a lock. Raises InvalidSpec, with every problem."""
    try:
        return PackageLock.model_validate(dict(data))
    except ValidationError as error:
        found = [translate(one, PackageLock) for one in error.errors(include_url=False)]
        raise_if_any([Problem(f"lock: {one.place}", one.message, one.hint) for one in found])
        raise InvalidSpec("not a package lock") from error
