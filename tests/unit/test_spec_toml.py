"""Spec files, and flags merged into them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bough.errors import InvalidInput, NotFound
from bough.spec import MachineSpec, load_toml, merge, parse_spec

TEMPLATE = Path(__file__).parents[2] / "examples/machine.toml"


def test_text_and_file_are_the_same(tmp_path: Path) -> None:
    text = 'image = "debian:12"\n[environment]\nA = "1"\n'
    (tmp_path / "m.toml").write_text(text)
    assert (
        load_toml(text) == load_toml(tmp_path / "m.toml") == {"image": "debian:12", "environment": {"A": "1"}}
    )


def test_not_toml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text('image = "debian:12"\nmemory: 512MiB\n')
    with pytest.raises(InvalidInput, match=rf"{re.escape(str(path))} is not TOML: .*line 2") as caught:
        load_toml(path)
    assert caught.value.hint


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_bytes(b"image = 'x'\n\xff\xfe\n")
    with pytest.raises(InvalidInput, match="line 2 is not UTF-8"):
        load_toml(path)


def test_nested_too_deep() -> None:
    with pytest.raises(InvalidInput, match="not TOML"):
        load_toml("a = " + "[" * 100_000)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no file"):
        load_toml(tmp_path / "missing.toml")
    with pytest.raises(InvalidInput, match="cannot read"):
        load_toml(tmp_path)


def test_flags_over_file() -> None:
    file = {"image": "debian:12", "memory": "1G", "ports": ["80:80"], "environment": {"A": "1", "B": "1"}}
    flags = {"memory": "2G", "ports": ["81:81"], "environment": {"B": "2"}, "users": ["bob"]}
    assert merge(file, flags) == {
        "image": "debian:12",
        "memory": "2G",
        "ports": ["80:80", "81:81"],
        "environment": {"A": "1", "B": "2"},
        "users": ["bob"],
    }
    assert file["ports"] == ["80:80"]


def test_reading_toml_needs_no_pydantic() -> None:
    code = (
        "import sys; from bough.spec import load_toml; load_toml('a=1'); assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_template_is_valid_and_shows_every_setting() -> None:
    text = TEMPLATE.read_text()
    assert parse_spec(load_toml(TEMPLATE)).image == "debian:12"
    # Every setting that the example has as a comment is enabled.
    settings = re.sub(r"^# ?(?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE)
    shown = tomllib.loads(settings)
    assert set(shown) - {"name"} == set(MachineSpec.model_fields)
    shown.pop("name")
    shown["files"] = [one for one in shown["files"] if "source" not in one]
    parse_spec(shown)
