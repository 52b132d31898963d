"""The reference and the example of a project's file are made from the code, and hold."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from bough.client.project_file import load_project
from bough.spec.project.healthcheck import KINDS, HealthCheckSpec
from bough.spec.project.model import ProjectNetwork
from bough.spec.project.parse import parse_project
from bough.spec.project.reference import render_example, render_page
from bough.spec.project.settings import HEALTH_SETTINGS, MACHINE_SETTINGS, NETWORK_SETTINGS, TOP_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/project.toml"


def test_every_setting_has_an_entry_and_no_other() -> None:
    assert set(HEALTH_SETTINGS) == set(HealthCheckSpec.model_fields)
    assert set(list(HEALTH_SETTINGS)[: len(KINDS)]) == set(KINDS)
    assert set(NETWORK_SETTINGS) == set(ProjectNetwork.model_fields)


def test_the_pages_are_made_from_the_tables() -> None:
    assert (ROOT / "docs/project-file.md").read_text() == render_page(), "run `make docs`"
    assert EXAMPLE.read_text() == render_example(), "run `make docs`"


def test_the_example_is_a_project() -> None:
    spec = parse_project(load_project(EXAMPLE, {}).data)
    assert list(spec.machines) == ["db", "web-1", "web-2"]
    assert spec.machines["web-1"].depends_on == {"db": "healthy"}


def test_the_example_shows_every_setting_with_a_valid_value(tmp_path: Path) -> None:
    # Every setting that the example has as a comment is enabled.
    text = re.sub(r"^# ?(?=[a-z_]+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    shown: dict[str, Any] = tomllib.loads(text.replace("${MEMORY:-512MiB}", "512MiB"))
    assert set(shown) == set(TOP_SETTINGS)
    machines = shown["machines"].values()
    assert {name for machine in machines for name in machine} >= set(MACHINE_SETTINGS)
    database = shown["machines"]["db"]
    check = database.pop("healthcheck")
    assert set(check) == set(HEALTH_SETTINGS)
    assert set(shown["networks"]["back"]) == set(NETWORK_SETTINGS)
    database["build"] = {"base": "debian:12"}
    database["lock"] = {"lock": 1, "arch": "x86_64", "packages": {}}
    shown["machines"]["web"]["depends_on"] = {"db": "started"}
    shown["machines"]["web"]["profiles"] = database["profiles"]
    parse_project(shown)
    for kind in KINDS:
        HealthCheckSpec.model_validate({kind: check[kind]})
