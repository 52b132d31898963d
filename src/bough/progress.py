"""Progress of a long call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """A step of a long call.

    Attributes:
        step: the present step, for people: "installing packages".
        fraction: done part of this step, 0 to 1; None if unknown.
        detail: more about the step: a package, a size, a rate.
        notice: `step` is not a step but a sentence that stays on the terminal, such as a costly fallback.
        subject: the machine whose step it is, in a call about several machines.
    """

    step: str
    fraction: float | None = None
    detail: str = ""
    notice: bool = False
    subject: str = ""


def notice(text: str) -> Progress:
    """Return a sentence for the user that stays on the terminal after the call."""
    return Progress(text, notice=True)


Report = Callable[[Progress], None]


def about(subject: str, report: Report) -> Report:
    """Return a report of the steps of one machine of several."""
    return lambda step: report(replace(step, subject=subject))


def without_repeats(report: Report) -> Report:
    """Return a Report that passes on each notice once: a call may start several machines."""
    told: set[str] = set()

    def pass_on(progress: Progress) -> None:
        if not (progress.notice and progress.step in told):
            report(progress)
        if progress.notice:
            told.add(progress.step)

    return pass_on


def ignore_progress(_: Progress) -> None:
    """Drop a report of progress."""
