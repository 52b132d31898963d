"""The recipe of an image: a base, and additions to it. Frozen data, valid by construction."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema

from bough.spec import values
from bough.spec.model import (
    Architecture,
    DiskSize,
    FileSpec,
    Hostname,
    Image,
    Label,
    ShellCommand,
    Table,
    UserSpec,
    VariableName,
    VariableValue,
)
from bough.spec.problems import Problem, quote, raise_if_any, told, translate

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}(?:=[A-Za-z0-9.+:~-]{1,99})?")
_URI = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]+(?:/[A-Za-z0-9._~%+@=/-]*)?")
_SUITE = re.compile(r"[A-Za-z0-9.][A-Za-z0-9._/-]{0,99}")
_KEY_BEGIN = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
_MOST_KEY_BYTES = 256 * 1024
#: See CLEAN_SCRIPT of images/layers.py.
_CLEANED = (
    *("/etc/ssh/ssh_host_", "/etc/machine-id", "/var/lib/dbus/machine-id", "/var/lib/bough/", "/var/log/"),
    *("/var/lib/systemd/random-seed", "/var/lib/dhcp/", "/var/lib/apt/lists/"),
)
#: The boot loader and the initrd read these directories, and both see the root file system only.
_ON_ROOT = ("/boot", "/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/dev", "/proc", "/sys", "/run")


def _package(value: Any) -> str:
    if not isinstance(value, str) or not _PACKAGE.fullmatch(value):
        raise told(f"expected the name of a Debian package like 'nginx', got {quote(value)}")
    return value


def _uri(value: Any) -> str:
    if not isinstance(value, str) or not _URI.fullmatch(value) or len(value) > 500:
        raise told(f"expected an address like 'https://example.org/debian', got {quote(value)}")
    return value.rstrip("/")


def _suite(value: Any) -> str:
    if not isinstance(value, str) or not _SUITE.fullmatch(value):
        raise told(f"expected a suite or component like 'bookworm-backports' or 'main', got {quote(value)}")
    return value


def _key(value: Any) -> str:
    if not isinstance(value, str) or not value.lstrip().startswith(_KEY_BEGIN) or not value.isascii():
        hint = "in a recipe file, key is the path of a file beside it; in the API, key is the key itself"
        raise told(f"expected a public OpenPGP key in ASCII armour, got {quote(value)}", hint)
    if len(value) > _MOST_KEY_BYTES or _KEY_BEGIN in value.lstrip()[1:]:
        raise told("expected one key of at most 256 KiB")
    lines = [line.strip() for line in value.strip().splitlines()]
    if any(not re.fullmatch(r"[\x20-\x7e]*", line) for line in lines):
        raise told("expected a public OpenPGP key in ASCII armour; this one is damaged")
    return "\n".join(lines) + "\n"


def _mount(value: Any) -> str:
    if value == "swap":
        return "swap"
    path = values.guest_path(value)
    if path in _ON_ROOT or not re.fullmatch(r"[A-Za-z0-9._/-]+", path):
        raise told(f"expected a directory like '/home' or '/var', or 'swap', got {quote(value)}")
    return path


_TEXT = WithJsonSchema({"type": "string"})
Package = Annotated[str, BeforeValidator(_package), _TEXT]
Suite = Annotated[str, BeforeValidator(_suite), _TEXT]
FileSystem = Literal["ext4", "xfs", "btrfs"]


class SourceSpec(Table):
    """A further source of apt's packages.

    Attributes:
        name: of its file below /etc/apt/sources.list.d.
        types: "deb-src": apt finds sources, too.
        key: the key that signs the source, in ASCII armour; for this source alone. None: Debian's keys.
    """

    name: Label
    uri: Annotated[str, BeforeValidator(_uri), _TEXT]
    suites: Annotated[tuple[Suite, ...], Field(strict=False, min_length=1, max_length=16)]
    components: Annotated[tuple[Suite, ...], Field(strict=False, max_length=16)] = ("main",)
    types: Annotated[
        tuple[Literal["deb", "deb-src"], ...], Field(strict=False, min_length=1, max_length=2)
    ] = ("deb",)
    key: Annotated[str, BeforeValidator(_key), _TEXT] | None = None


class PartitionSpec(Table):
    """A partition beside the root partition.

    Attributes:
        mount: the mount point, or "swap".
    """

    mount: Annotated[str, BeforeValidator(_mount), _TEXT]
    size: DiskSize
    file_system: FileSystem = "ext4"


class RecipeSpec(Table):
    """A recipe, validated.

    Attributes:
        base: debian:11 to 13, testing or sid: made from packages; any other image: a layer over it.
        arch: of the processor; default: the part of `base` after an "@", or the host's.
        packages: names of Debian packages; "name=version" asks for exactly that version.
        recommends: also install recommended packages, as apt does in a machine.
        sources: further sources of apt.
        kernel: package of the kernel; default: the kernel for virtual machines. Only with a base of debian:*.
        agent: whether the image has the guest agent. Only with a base of debian:*. Without the agent, no
            step of the recipe may need a running guest.
        file_system: of the root. Only with a base of debian:*.
        partitions: beside the root partition, which stays the last one and grows. Only with debian:*.
    """

    base: Image
    arch: Architecture | None = None
    label: Image | None = None
    packages: Annotated[tuple[Package, ...], Field(strict=False, max_length=1000)] = ()
    recommends: bool = True
    sources: Annotated[tuple[SourceSpec, ...], Field(strict=False, max_length=32)] = ()
    kernel: Package | None = None
    file_system: FileSystem = "ext4"
    partitions: Annotated[tuple[PartitionSpec, ...], Field(strict=False, max_length=16)] = ()
    agent: bool = True
    cloud_init: bool = False
    size: DiskSize | None = None
    hostname: Hostname | None = None
    users: Annotated[tuple[UserSpec, ...], Field(strict=False, max_length=64)] = ()
    files: Annotated[tuple[FileSpec, ...], Field(strict=False, max_length=256)] = ()
    environment: Annotated[dict[VariableName, VariableValue], Field(max_length=256)] = Field(
        default_factory=dict
    )
    commands: Annotated[tuple[ShellCommand, ...], Field(strict=False, max_length=256)] = ()

    @property
    def is_debian(self) -> bool:
        return self.base.startswith("debian:")

    @property
    def needs_move(self) -> bool:
        """Return whether the disk's layout differs from the layout of an image from packages."""
        return self.file_system != "ext4" or bool(self.partitions)

    @property
    def file_systems(self) -> frozenset[str]:
        return frozenset({self.file_system, *(p.file_system for p in self.partitions if p.mount != "swap")})

    @property
    def needs_machine(self) -> bool:
        """Return whether a step of the recipe needs a running guest."""
        more = self.users or self.files or self.commands or self.environment or self.size or self.hostname
        from_apt = (self.packages or self.sources) and not self.is_debian
        return bool(more or self.needs_move or from_apt)


def parse_recipe(data: Mapping[str, Any]) -> RecipeSpec:
    """Check a recipe.

    Raises:
        InvalidSpec: with every problem.
    """
    found: list[Problem] = []
    base = data.get("base")
    if isinstance(base, str) and not base.startswith("debian:"):
        for name in ("kernel", "agent", "cloud_init", "file_system", "partitions"):
            if name in data:
                hint = f"base is {base}; use commands to change it"
                found.append(Problem(name, "has an effect only with a base of debian:*", hint))
    try:
        recipe = RecipeSpec.model_validate(dict(data))
    except ValidationError as error:
        raise_if_any([*(translate(one, RecipeSpec) for one in error.errors(include_url=False)), *found])
        raise
    if not recipe.agent and recipe.needs_machine:
        hint = "keep the agent, or put these settings into another recipe"
        through = "files, users, commands, size, file_system and partitions need the agent"
        found.append(Problem("agent", through, hint))
    found += [
        *_of_one_machine(recipe.files),
        *_repeated(recipe.sources, "sources", "name"),
        *_repeated(recipe.partitions, "partitions", "mount"),
    ]
    raise_if_any(found)
    return recipe


def _of_one_machine(files: Sequence[FileSpec]) -> Iterator[Problem]:
    """Find files that are removed from every image: a recipe's file would be lost silently."""
    for index, file in enumerate(files):
        if file.path.startswith(_CLEANED):
            hint = "each machine makes its own; use commands of the machine to change it"
            yield Problem(f"files[{index}].path", "belongs to one machine and is removed from images", hint)


def _repeated(tables: Sequence[Table], name: str, key: str) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, table in enumerate(tables):
        first = seen.setdefault(getattr(table, key), index)
        if first != index:
            yield Problem(f"{name}[{index}].{key}", f"is already used by {name}[{first}]", None)
