"""The scripts that all builds from unpacked packages share."""

from __future__ import annotations

from pathlib import Path

SCRIPTS = Path(__file__).parent / "inside"


def read_scripts(*directories: Path) -> bytes:
    """Return the names and contents of the scripts in these directories, for the digest of a recipe."""
    files = sorted(path for directory in directories for path in directory.iterdir() if path.is_file())
    return b"".join(path.name.encode() + b"\0" + path.read_bytes() + b"\0" for path in files)
