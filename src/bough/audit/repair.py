"""Make the safe repairs on request. A repair never deletes valuable data.

Files are moved to lost+found/<time>/<path below the home>. lost+found/<time>/why.json lists the moved files
with the reasons.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import assert_never

from bough.audit.finding import Finding, Repair
from bough.images.store import ImageStore
from bough.paths import Home
from bough.storage import sync_directory, write_json


class Aside:
    """The directory for the files of this repair; created for the first file."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.root = home.lost_and_found / datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S.%f")
        self._moved: list[dict[str, str]] = []

    def take(self, path: Path, why: str) -> Path:
        home = self._home
        relative = path.relative_to(home.root)
        target = self.root / relative
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.lost_and_found.chmod(0o700)
        # Write the reason to disk before the move.
        self._moved.append({"from": str(path), "to": str(target), "why": why})
        write_json(self.root / "why.json", self._moved)
        shutil.move(path, target)
        sync_directory(target.parent)
        sync_directory(path.parent)
        return target


def repair(findings: list[Finding], home: Home) -> list[Finding]:
    """Repair the findings, and return the findings with the results.

    Call this in the same step of the event loop as the check.
    """
    aside = Aside(home)
    labels_done = False
    told = []
    for finding in findings:
        if finding.repair is None or finding.repair is Repair.LEAKS:
            told.append(finding)
            continue
        try:
            if finding.repair is Repair.LABELS and labels_done:
                told.append(replace(finding, repaired="labels rebuilt"))
                continue
            told.append(replace(finding, repaired=_repair_one(finding, home, aside)))
            labels_done = labels_done or finding.repair is Repair.LABELS
        except OSError as error:
            told.append(replace(finding, error=f"the repair failed: {error.strerror or error}"))
    return told


def _repair_one(finding: Finding, home: Home, aside: Aside) -> str:
    path, kind = finding.path, finding.repair
    assert kind is not None
    match kind:
        case Repair.SET_ASIDE:
            return f"moved to {aside.take(_whole(finding, home), finding.problem)}"
        case Repair.REMOVE:
            with contextlib.suppress(FileNotFoundError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            return "removed"
        case Repair.MODE:
            assert finding.mode is not None
            path.chmod(finding.mode)
            return f"mode set to {finding.mode:04o}"
        case Repair.LABELS:
            aside.take(path, finding.problem)
            ImageStore(home).rewrite_labels(aside.root / path.name)
            return "labels rebuilt"
        case Repair.LEAKS:
            return ""
        case _:
            assert_never(kind)


def _whole(finding: Finding, home: Home) -> Path:
    """Return the path to set aside: for a file of an image, the whole image."""
    path = finding.path
    return path.parent if path.parent.parent == home.images else path
