"""Output for people: tables, errors, progress. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bough.errors import BoughError
    from bough.progress import Progress, Report

#: Details of an error with the end of a log; shown indented below the error.
_TAILS = {"qemu_stderr": "qemu", "console": "console", "output": "output", "log": "log"}
_TAIL_LINES = 15


def show_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def show_table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> None:
    """Print columns as wide as the content, with spaces between, readable in every program."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def clean(text: str) -> str:
    """Return a guest's output, made harmless for a terminal.

    Escape sequences (ECMA-48) and control characters are removed; newlines and tabs stay.
    """
    import re

    # No character is scanned twice: a guest can print megabytes of endless sequences.
    text = re.sub(
        r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)", "", text
    )
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        c for c in text if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f" and c not in _BIDI)
    )


#: Characters that reorder or hide the neighbouring text.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


def show_error(error: BoughError) -> None:
    """Print `error: ...`, the details, and the hint."""
    lines = [f"error: {clean(error.message)}"]
    problems = error.details.get("problems")
    if isinstance(problems, list) and len(problems) > 1:
        for problem in problems:
            more = f" ({problem['hint']})" if problem.get("hint") else ""
            line = f"line {problem['line']}: " if problem.get("line") else ""
            lines.append(f"  {line}{clean(problem['place'])}: {clean(problem['message'])}{more}")
    for key, label in _TAILS.items():
        text = clean(str(error.details.get(key) or "")).strip()
        lines += [f"  {label}: {line}" for line in text.split("\n")[-_TAIL_LINES:] if line.strip()]
    hint: str | None = error.hint
    if not hint and isinstance(problems, list) and len(problems) == 1:
        hint = problems[0].get("hint")
    if hint:
        lines += ["", f"hint: {hint}"]
    print("\n".join(lines), file=sys.stderr)


def is_fancy() -> bool:
    """Return whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def progress(quiet: bool = False) -> Iterator[Report]:
    """Show the progress of a long call: a bar on a terminal, else a line per step. The bar is erased at the
    end.
    """
    if quiet:
        yield lambda _: None
    elif is_fancy():
        with _bar() as report:
            yield report
    else:
        yield _Lines()


def _render_notice(step: Progress) -> str:
    return f"note: {clean(step.step)}"


class _Lines:
    """Progress as one line per step."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, step: Progress) -> None:
        if step.notice:
            print(_render_notice(step), file=sys.stderr, flush=True)
        elif step.step != self._last:
            self._last = step.step
            print(f"{step.step}...", file=sys.stderr, flush=True)


@contextmanager
def _bar() -> Iterator[Report]:
    # rich takes 50 ms to import, so it is imported only if a call turns out to be long.
    shown: list[Any] = []

    def report(step: Progress) -> None:
        if step.notice:
            if shown:
                shown[0][0].console.print(_render_notice(step), markup=False, highlight=False)
            else:
                print(_render_notice(step), file=sys.stderr, flush=True)
            return
        if not shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[detail]}"),
                console=Console(stderr=True),
                transient=True,
            )
            bar.start()
            shown.append((bar, bar.add_task(step.step, total=None, detail="")))
        bar, task = shown[0]
        total = None if step.fraction is None else 1.0
        bar.update(
            task, description=step.step, total=total, completed=step.fraction or 0, detail=step.detail[:60]
        )

    try:
        yield report
    finally:
        if shown:
            shown[0][0].stop()


def ago(moment: str | None) -> str:
    """Return the time since an ISO time, like '3 min 5 s'; '-' for None."""
    if not moment:
        return "-"
    from datetime import UTC, datetime

    from bough.units import format_duration

    return format_duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()))
