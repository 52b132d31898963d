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
        notice: `step` is no step but a sentence that is to stay on the terminal: a fallback that costs much.
    """

    step: str
    fraction: float | None = None
    detail: str = ""
    notice: bool = False


def notice(text: str) -> Progress:
    """A sentence for the user that stays when the call has ended."""
    return Progress(text, notice=True)


Report = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """For callers that do not want to know."""
