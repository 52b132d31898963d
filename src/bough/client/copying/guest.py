"""The part of a machine that a copy needs: a name, and commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bough.client.process import Process


class Guest(Protocol):
    """The machine that a copy reads from, or writes to."""

    @property
    def name(self) -> str: ...

    def spawn(self, *argv: str, env: Mapping[str, str] | None = None, as_image: bool = True) -> Process: ...
