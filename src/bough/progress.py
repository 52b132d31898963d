"""How a long call tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One step of a long call.

    Attributes:
        step: what is being done now, for people: "installing packages".
        fraction: of this step, 0 to 1; None where nobody knows.
        detail: more about it: a package, a size, a rate.
    """

    step: str
    fraction: float | None = None
    detail: str = ""


Report = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """For callers that do not want to know."""
