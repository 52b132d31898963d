"""The settings of a spec that the client reads from files."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from bough.client.spec_files import resolve_sources
from bough.errors import InvalidSpec


def test_files_are_read_and_paths_made_absolute(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0\xff")
    spec = {
        "image": "debian:12",
        "kernel": "vmlinuz",
        "files": [{"path": "/a", "source": "a", "mode": "0600"}, {"path": "/b", "content": ""}],
    }
    resolved = resolve_sources(spec, tmp_path)
    assert resolved["kernel"] == f"{tmp_path}/vmlinuz"
    content = base64.b64encode(b"\0\xff").decode()
    assert resolved["files"][0] == {"path": "/a", "mode": "0600", "content_base64": content}
    assert resolved["files"][1] == spec["files"][1]  # type: ignore[index]
    assert "source" in spec["files"][0]  # type: ignore[operator, index]


def test_all_that_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    files = [
        {"path": "/a", "source": "absent"},
        {"path": "/b", "source": "."},
        {"path": "/c", "source": "x", "content": "y"},
    ]
    with pytest.raises(InvalidSpec) as caught:
        resolve_sources({"files": files}, tmp_path)
    assert [one["place"] for one in caught.value.problems] == [f"files[{n}].source" for n in range(3)]
    assert "No such file" in caught.value.problems[0]["message"]


def test_what_makes_no_sense_is_left_to_the_service() -> None:
    assert resolve_sources({"files": 3, "kernel": 4}) == {"files": 3, "kernel": 4}
