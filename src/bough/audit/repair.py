"""Do what is safe, when asked to: nothing of value is ever deleted.

lost+found/<time>/<path as it was below the home>, and in lost+found/<time>/why.json what was moved and why.
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
    """Where this repair moves things to; made when the first one comes."""

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
        # The reason is on disk before the thing is away.
        self._moved.append({"from": str(path), "to": str(target), "why": why})
        write_json(self.root / "why.json", self._moved)
        shutil.move(path, target)
        sync_directory(target.parent)
        sync_directory(path.parent)
        return target


def repair(findings: list[Finding], home: Home) -> list[Finding]:
    """The same, each with what was done. Call it in the same step in which they were found."""
    aside = Aside(home)
    labels_done = False
    told = []
    for finding in findings:
        if finding.repair is None or finding.repair is Repair.LEAKS:
            told.append(finding)
            continue
        try:
            if finding.repair is Repair.LABELS and labels_done:
                told.append(replace(finding, repaired="the labels are written again"))
                continue
            told.append(replace(finding, repaired=_repair_one(finding, home, aside)))
            labels_done = labels_done or finding.repair is Repair.LABELS
        except OSError as error:
            told.append(replace(finding, error=f"it could not be repaired: {error.strerror or error}"))
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
            return f"its mode is {finding.mode:04o} now"
        case Repair.LABELS:
            aside.take(path, finding.problem)
            ImageStore(home).rewrite_labels(aside.root / path.name)
            return "the labels are written again"
        case Repair.LEAKS:
            return ""
        case _:
            assert_never(kind)


def _whole(finding: Finding, home: Home) -> Path:
    """An image is set aside as a whole."""
    path = finding.path
    return path.parent if path.parent.parent == home.images else path
