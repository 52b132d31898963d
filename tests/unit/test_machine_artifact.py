"""A machine of a registry: the parts of an artifact must be the parts of its machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bough.artifacts.document import ArtifactManifest, Description, parse_description, parse_manifest
from bough.artifacts.layout import read_blob
from bough.artifacts.writing import WholePart, write_layout
from bough.errors import BadBundle
from bough.snapshots.artifact import open_machine

PARTS = (("disk0", 8192, b"disk"), ("memory", 4096, b"memory"), ("devices", 7, b"devices"))


def make(root: Path, content: dict[str, Any]) -> tuple[ArtifactManifest, Description]:
    root.mkdir()
    parts = [WholePart(name, size, [(0, data)]) for name, size, data in PARTS]
    written = write_layout(root, "machine", content, parts, lambda _: None)
    manifest = parse_manifest(read_blob(root / "blobs", written.manifest))
    return manifest, parse_description(read_blob(root / "blobs", manifest.description), manifest)


def test_the_parts_of_a_machine(tmp_path: Path) -> None:
    incoming = open_machine(lambda: tmp_path / "a/blobs", *make(tmp_path / "a", {"bundle": {"name": "web"}}))
    assert incoming.manifest == {"name": "web"}
    pieces = list(incoming.read([size for _, size, _ in PARTS]))
    assert [(piece.part, piece.offset, bytes(piece.data).rstrip(b"\0")) for piece in pieces] == [
        (number, 0, data) for number, (_, _, data) in enumerate(PARTS)
    ]


@pytest.mark.parametrize("sizes", [[8192, 4096], [8192, 4096, 8], [8192, 1 << 40, 7], []])
def test_other_parts_than_the_machine_has(tmp_path: Path, sizes: list[int]) -> None:
    incoming = open_machine(lambda: tmp_path / "a/blobs", *make(tmp_path / "a", {"bundle": {}}))
    with pytest.raises(BadBundle, match="other sizes"):
        incoming.read(sizes)


@pytest.mark.parametrize("content", [{}, {"bundle": None}, {"bundle": [1]}, {"images": []}])
def test_no_machine(tmp_path: Path, content: dict[str, Any]) -> None:
    documents = make(tmp_path / "a", content)
    with pytest.raises(BadBundle, match="no machine"):
        open_machine(lambda: tmp_path / "a/blobs", *documents)
