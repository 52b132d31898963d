"""Add the lines of a file to the problems of an error about the file's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bough.errors import InvalidInput

E = TypeVar("E", bound=InvalidInput)


def add_lines(error: E, file: Path, line_of: Callable[[str], int | None]) -> E:
    """Return the error with the line of each problem, as `line`, and with `file`.

    Args:
        error: with `problems`.
        line_of: place -> line of the file; None: the file has no such part.
    """
    problems = _sorted([{**one, "line": line_of(one["place"])} for one in error.problems])
    message = f"{file.name} has {len(problems)} problems"
    if len(problems) == 1:
        only = problems[0]
        message = ": ".join(
            str(part) for part in (_where(file, only["line"]), only["place"], only["message"]) if part
        )
    return type(error)(message, hint=error.hint, problems=problems, file=str(file))


def _sorted(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the problems in the order of the file. A problem of a shared part is told once."""
    once: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in problems:
        setting = one["place"].rpartition(".")[2]
        key = (one["line"], setting if one["line"] else one["place"], one["message"])
        once.setdefault(key, one)
    return sorted(once.values(), key=lambda one: one["line"] or 0)


def _where(file: Path, line: int | None) -> str:
    return f"{file.name}, line {line}" if line else file.name


def problems_of(error: InvalidInput) -> list[Mapping[str, Any]]:
    """Return the problems that an error names; none for an error without a list of problems."""
    found = error.details.get("problems")
    return found if isinstance(found, list) else []
