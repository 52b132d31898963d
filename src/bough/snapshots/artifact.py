"""A machine as an artifact of a registry: a bundle's manifest and parts, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bough.artifacts.document import ArtifactManifest, Description
from bough.artifacts.reading import read_pieces
from bough.artifacts.writing import WholePart
from bough.bundle import Piece
from bough.errors import BadBundle
from bough.progress import Report
from bough.snapshots.export import Flat
from bough.snapshots.imports import Incoming


def describe_machine(flat: Flat) -> dict[str, object]:
    """Return the description's content."""
    return {"bundle": flat.manifest.model_dump(mode="json")}


def machine_parts(flat: Flat, report: Report) -> list[WholePart]:
    """Return the parts of a machine, to write in a thread."""
    return [
        WholePart(part.name, part.size_bytes, content)
        for part, (_, content) in zip(flat.manifest.parts, flat.parts(report), strict=True)
    ]


def open_machine(
    find_blobs: Callable[[], Path], manifest: ArtifactManifest, description: Description
) -> Incoming:
    """Return the machine of an artifact.

    Args:
        find_blobs: returns the directory of the blobs, when the parts are read.

    Raises:
        BadBundle: the description has no machine.
    """
    bundle = description.content.get("bundle")
    if not isinstance(bundle, dict):
        raise BadBundle("the artifact was altered: it describes no machine")

    def read(sizes: Sequence[int]) -> Iterator[Piece]:
        if [part.size_bytes for part in description.parts] != list(sizes):
            raise BadBundle("the artifact was altered: its parts have other sizes than its machine")
        return read_pieces(find_blobs(), manifest, description)

    return Incoming(bundle, read)
