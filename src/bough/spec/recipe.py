"""How an image is to be made: a base, and what is added to it. Frozen data, valid by construction."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema

from bough.spec import fields
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
#: Found there by the boot loader and the initrd, which look at the root alone.
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
        hint = "in a file of the recipe, key names a file beside it; over the API it is the key itself"
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
    path = fields.guest_path(value)
    if path in _ON_ROOT or not re.fullmatch(r"[A-Za-z0-9._/-]+", path):
        raise told(f"expected a directory like '/home' or '/var', or 'swap', got {quote(value)}")
    return path


_TEXT = WithJsonSchema({"type": "string"})
Package = Annotated[str, BeforeValidator(_package), _TEXT]
Suite = Annotated[str, BeforeValidator(_suite), _TEXT]
FileSystem = Literal["ext4", "xfs", "btrfs"]


class SourceSpec(Table):
    """Where apt finds more packages. Attributes:

    name: of its file below /etc/apt/sources.list.d.
    types: "deb-src" has apt find sources, too.
    key: what it is signed with, in ASCII armour; trusted for this source alone. Without: Debian's keys.
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
    """A partition beside the root's. Attributes:

    mount: the directory that it holds, or "swap".
    """

    mount: Annotated[str, BeforeValidator(_mount), _TEXT]
    size: DiskSize
    file_system: FileSystem = "ext4"


class RecipeSpec(Table):
    """Attributes:
    base: debian:11 to 13, testing or sid: made from packages; any other image: a layer upon it.
    arch: of the processor; default: what `base` says after an "@", or the host's.
    packages: of Debian; "name=version" asks for that very one.
    recommends: packages come with what they recommend, as apt installs them in a machine.
    sources: further ones of apt.
    kernel: its package, instead of the one for virtual machines. Only upon debian:*.
    agent: whether it has the guest agent. Only upon debian:*, and nothing that a layer does without.
    file_system: of the root. Only upon debian:*.
    partitions: beside the root's, which stays the last one and grows. Only upon debian:*.
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
        """Whether its disk is laid out in another way than that of an image from packages."""
        return self.file_system != "ext4" or bool(self.partitions)

    @property
    def file_systems(self) -> frozenset[str]:
        return frozenset({self.file_system, *(p.file_system for p in self.partitions if p.mount != "swap")})

    @property
    def needs_machine(self) -> bool:
        """Whether something is left to do that only a running guest can."""
        more = self.users or self.files or self.commands or self.environment or self.size or self.hostname
        from_apt = (self.packages or self.sources) and not self.is_debian
        return bool(more or self.needs_move or from_apt)


def parse_recipe(data: Mapping[str, Any]) -> RecipeSpec:
    """Raises:
    InvalidSpec: with every problem.
    """
    found: list[Problem] = []
    base = data.get("base")
    if isinstance(base, str) and not base.startswith("debian:"):
        for name in ("kernel", "agent", "cloud_init", "file_system", "partitions"):
            if name in data:
                hint = f"base is {base}; commands can change what is in it"
                found.append(Problem(name, "means something only upon a base of debian:*", hint))
    try:
        recipe = RecipeSpec.model_validate(dict(data))
    except ValidationError as error:
        raise_if_any([*(translate(one, RecipeSpec) for one in error.errors(include_url=False)), *found])
        raise
    if not recipe.agent and recipe.needs_machine:
        hint = "leave the agent in, or put this into another recipe"
        through = "files, users, commands, size, file_system and partitions are done through the agent"
        found.append(Problem("agent", through, hint))
    found += [
        *_of_one_machine(recipe.files),
        *_repeated(recipe.sources, "sources", "name"),
        *_repeated(recipe.partitions, "partitions", "mount"),
    ]
    raise_if_any(found)
    return recipe


def _of_one_machine(files: Sequence[FileSpec]) -> Iterator[Problem]:
    """Files that every image is cleaned of: one that a recipe writes would be lost without a word."""
    for index, file in enumerate(files):
        if file.path.startswith(_CLEANED):
            hint = "each machine of the image makes its own; commands of a machine can change that"
            yield Problem(f"files[{index}].path", "is of one machine, and an image has none of it", hint)


def _repeated(tables: Sequence[Table], name: str, key: str) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, table in enumerate(tables):
        first = seen.setdefault(getattr(table, key), index)
        if first != index:
            yield Problem(f"{name}[{index}].{key}", f"is already that of {name}[{first}]", None)
