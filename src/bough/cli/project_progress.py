"""The progress of several machines at once: a live table on a terminal, else a line for each step."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bough.cli.output import clean, is_fancy

if TYPE_CHECKING:
    from rich.table import Table

    from bough.progress import Progress, Report

_PER_SECOND = 8


@contextmanager
def machines_progress() -> Iterator[Report]:
    """Show the steps of each machine until the block ends. The table stays on the terminal."""
    if not is_fancy():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live

    table = _LiveTable()
    console = Console(stderr=True)
    with Live(console=console, get_renderable=table.render, refresh_per_second=_PER_SECOND):
        yield table


def _step_text(step: Progress) -> str:
    parts = [clean(step.step)]
    if step.fraction is not None:
        parts.append(f"{step.fraction:.0%}")
    if step.detail:
        parts.append(clean(step.detail)[:60])
    return " ".join(parts)


class _Lines:
    """A line for each new step of a machine."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def __call__(self, step: Progress) -> None:
        if not step.notice and self._last.get(step.subject) == step.step:
            return
        self._last[step.subject] = step.step
        subject = f"{step.subject}: " if step.subject else ""
        print(f"{'note: ' if step.notice else ''}{subject}{clean(step.step)}", file=sys.stderr, flush=True)


class _LiveTable:
    """A row for each machine: its step, and the seconds since its first step."""

    def __init__(self) -> None:
        self._steps: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._notices: list[str] = []

    def __call__(self, step: Progress) -> None:
        now = time.monotonic()
        if step.notice:
            self._notices.append(f"{step.subject + ': ' if step.subject else ''}{clean(step.step)}")
            return
        self._began.setdefault(step.subject, now)
        self._took[step.subject] = now - self._began[step.subject]
        self._steps[step.subject] = _step_text(step)

    def render(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False)
        for note in self._notices:
            table.add_row(Text("note"), Text(note))
        for subject, text in self._steps.items():
            done = text in _ENDS
            seconds = self._took[subject] if done else time.monotonic() - self._began[subject]
            table.add_row(Text(subject), Text(text), Text(f"{seconds:.1f} s", style="dim"))
        return table


_ENDS = ("up", "done", "stopped", "suspended", "failed", "deleted")
