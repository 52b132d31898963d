"""The error of a call about several machines of a project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bough.errors import BoughError, ProjectFailed
from bough.projects.record import ProjectRecord


def project_failed(
    record: ProjectRecord,
    what: str,
    failures: Mapping[str, BoughError],
    blocked: Mapping[str, str] | None = None,
) -> ProjectFailed:
    """Return an error with the failure of each machine, and the ends of the first one's output and console.

    Args:
        what: what the project is not: "up".
        failures: role -> error; one at least.
        blocked: role -> the machine that it waited for in vain.
    """
    problems = [_problem(role, error.message, error.hint) for role, error in failures.items()]
    problems += [
        _problem(one, f"not started: it waits for {other}") for one, other in (blocked or {}).items()
    ]
    role, first = next(iter(failures.items()))
    others = "" if len(problems) == 1 else f", and {len(problems) - 1} more"
    tails = {name: first.details.get(name) for name in ("output", "console", "qemu_stderr")}
    return ProjectFailed(
        f"project '{record.name}' is not {what}: {first.message}{others}",
        hint=first.hint or _console_hint(first, role, record),
        project=record.name,
        problems=problems,
        failures={name: error.to_dict() for name, error in failures.items()},
        blocked=dict(blocked or {}),
        **{name: str(value) for name, value in tails.items() if value},
    )


def _console_hint(error: BoughError, role: str, record: ProjectRecord) -> str | None:
    """Return what to look at; None: the error is about no machine, so perhaps there is none."""
    return f"look at its console: bough logs {role}.{record.name}" if error.details.get("machine") else None


def _problem(role: str, message: str, hint: str | None = None) -> dict[str, Any]:
    return {"place": role, "message": message, "hint": hint}
