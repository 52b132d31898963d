"""How an image is to be made: a base, and what is added to it. Frozen data, valid by construction."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema

from bough.spec.model import (
    DiskSize,
    FileSpec,
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


def _package(value: Any) -> str:
    if not isinstance(value, str) or not _PACKAGE.fullmatch(value):
        raise told(f"expected the name of a Debian package like 'nginx', got {quote(value)}")
    return value


Package = Annotated[str, BeforeValidator(_package), WithJsonSchema({"type": "string"})]


class RecipeSpec(Table):
    """Attributes:
    base: debian:11 to 13, testing or sid: made from packages; any other image: a layer upon it.
    packages: of Debian; "name=version" asks for that very one.
    kernel: its package, instead of the one for virtual machines. Only upon debian:*.
    agent: whether it has the guest agent. Only upon debian:*, and nothing that a layer does without.
    """

    base: Image
    label: Image | None = None
    packages: Annotated[tuple[Package, ...], Field(strict=False, max_length=1000)] = ()
    kernel: Package | None = None
    agent: bool = True
    cloud_init: bool = False
    size: DiskSize | None = None
    hostname: Label | None = None
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
    def needs_machine(self) -> bool:
        """Whether something is left to do that only a running guest can."""
        more = self.users or self.files or self.commands or self.environment or self.size or self.hostname
        return bool(more or (self.packages and not self.is_debian))


def parse_recipe(data: Mapping[str, Any]) -> RecipeSpec:
    """Raises:
    InvalidSpec: with every problem.
    """
    found: list[Problem] = []
    base = data.get("base")
    if isinstance(base, str) and not base.startswith("debian:"):
        for name in ("kernel", "agent", "cloud_init"):
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
        found.append(Problem("agent", "files, users, commands and size are done through the agent", hint))
    raise_if_any(found)
    return recipe
