"""Remove the rests of interrupted writes. Call this at the start of the service, before any write."""

from __future__ import annotations

from pathlib import Path

from bough.paths import Home
from bough.storage import is_unfinished_write


def sweep_unfinished_writes(home: Home) -> None:
    """Remove unfinished writes. No unfinished write was acknowledged, and the old files are intact."""
    nouns = (home.images, home.machines, home.snapshots)
    below = (directory for noun in nouns for directory in _below(noun))
    for directory in (
        home.root,
        home.agent_disks,
        home.networks,
        home.projects,
        home.project_snapshots,
        *below,
    ):
        for path in directory.iterdir():
            if is_unfinished_write(path.name) and path.is_file() and not path.is_symlink():
                path.unlink()


def sweep_runtime(home: Home) -> None:
    """Remove the sockets of deleted machines, left by a kill during a delete."""
    machines = {path.name for path in home.machines.iterdir()}
    for root in _below(home.runtime):
        if root.name in home.runtime_names:
            continue
        entries = list(root.iterdir())
        # A link stands for a socket without a name.
        if root.name not in machines and all(path.is_socket() or path.is_symlink() for path in entries):
            for path in entries:
                path.unlink()
            root.rmdir()


def _below(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_dir() and not path.is_symlink()]
