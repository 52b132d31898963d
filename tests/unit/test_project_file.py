"""The client reads a project's file: variables, paths, files, and the line of each problem."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.client.project_file import find_project_file, load_project, read_environment
from bough.errors import InvalidInput, InvalidSpec, NotFound
from bough.spec.model import MachineSpec
from bough.spec.problems import render_place
from bough.spec.project.healthcheck import HealthCheckSpec
from bough.spec.project.lines import find_lines, line_of, split_place
from bough.spec.project.model import ProjectNetwork
from bough.spec.project.parse import parse_project
from bough.spec.project.variables import NUMBERS, SWITCHES, BadVariable, names_in, replace_in_text
from bough.spec.recipe import RecipeSpec

SHOP = """\
[shared.base]
image = "debian:12"
environment = { LEVEL = "${LEVEL:-info}" }

[machines.db]
extends = "base"
memory = "${DB_MEMORY:-512MiB}"

[machines.web]
extends = "base"
depends_on = ["db"]
vcpus = "${CPUS}"
"""


def write(directory: Path, text: str = SHOP, name: str = "bough.toml") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def lines_of(error: InvalidSpec) -> dict[str, int | None]:
    return {one["place"]: one["line"] for one in error.problems}


# Variables


def test_variables_come_from_the_environment_and_from_the_file_beside(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "CPUS=3\nLEVEL='from file' # why\nexport DB_MEMORY=1GiB\n", ".env")
    file = load_project(tmp_path, {"LEVEL": "from environment"})
    spec = parse_project(file.data)
    assert spec.machines["db"].spec.memory == 1 << 30
    assert spec.machines["web"].spec.vcpus == 3
    assert spec.machines["web"].spec.environment == {"LEVEL": "from environment"}


def test_only_variables_that_the_file_names_are_read(tmp_path: Path) -> None:
    class Watched(dict[str, str]):
        asked: set[str] = set()  # noqa: RUF012

        def __contains__(self, name: object) -> bool:
            self.asked.add(str(name))
            return super().__contains__(name)

        def __iter__(self) -> Any:
            raise AssertionError("the whole environment was read")

    environment = Watched({"CPUS": "1", "SECRET": "not to be read"})
    assert "not to be read" not in str(load_project(write(tmp_path), environment).data)
    assert environment.asked == {"CPUS", "LEVEL", "DB_MEMORY"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${A}", "a"),
        ("x${A}y${A}", "xaya"),
        ("${A:-b} ${N:-b} ${E:-b}", "a b b"),
        ("${A-b} ${N-b} ${E-b}", "a b "),
        ("${A:+b} ${N:+b} ${E:+b}", "b  "),
        ("${A+b} ${N+b} ${E+b}", "b  b"),
        ("${N:-${A}}", "a"),
        ("${N:-${M:-${A}}}", "a"),
        ("$$A $${A} $$$$", "$A ${A} $$"),
        ("$HOME $1 $(date) 5$", "$HOME $1 $(date) 5$"),
        ("${N:-}", ""),
        ("${A:?told}", "a"),
    ],
)
def test_variables_are_composes(text: str, result: str) -> None:
    assert replace_in_text(text, {"A": "a", "E": ""}.get) == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${N}", "the variable N is not set"),
        ("${E:?}", "the variable E is empty"),
        ("${N:?give a password}", "N: give a password"),
        ("${A", "'${' without a '}'"),
        ("${}", "'${}' names no variable"),
        ("${A B}", "'${A B}' names no variable"),
        ("${#A}", "'${#A}' names no variable"),
    ],
)
def test_bad_variables_are_told(text: str, message: str) -> None:
    with pytest.raises(BadVariable) as error:
        replace_in_text(text, {"A": "a", "E": ""}.get)
    assert error.value.message == message


@given(st.text(alphabet="${}AB:-?+ $", max_size=30))
def test_no_text_breaks_the_replacement(text: str) -> None:
    with contextlib.suppress(BadVariable):
        replace_in_text(text, {"A": "a"}.get)


def test_the_variables_of_a_file_are_known() -> None:
    assert names_in({"a": ["${B:-${C}}", {"d": "$$E ${F}"}]}) == {"B", "C", "F"}


def fields_of(*models: Any, kind: type) -> set[str]:
    """Return the settings of the models, and of the tables in them, that are of the kind."""
    found: set[str] = set()
    for model in models:
        schema = model.model_json_schema()
        for one in [schema, *schema.get("$defs", {}).values()]:
            for name, field in one.get("properties", {}).items():
                types = {part.get("type") for part in field.get("anyOf", [field])}
                wanted = "integer" if kind is int else "boolean"
                if wanted in types and "string" not in types:
                    found.add(name)
    return found


def test_every_number_and_switch_may_be_a_variable() -> None:
    models = (MachineSpec, RecipeSpec, HealthCheckSpec, ProjectNetwork)
    assert fields_of(*models, kind=int) <= NUMBERS
    assert fields_of(*models, kind=bool) <= SWITCHES


def test_the_file_of_variables_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="line 2 is not NAME=VALUE"):
        read_environment(write(tmp_path, "A=1\nB C D\n", ".env"))
    (tmp_path / ".env").write_bytes(b"A=\xff")
    with pytest.raises(InvalidInput, match="is not UTF-8"):
        read_environment(tmp_path / ".env")
    assert read_environment(tmp_path / "none") == {}


# Paths and files


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        [shared.base]
        files = [{ path = "/etc/motd", source = "motd" }]
        [machines.db]
        extends = "base"
        build = "images/db.toml"
        lock = "images/db.lock"
        mounts = ["src:/srv/src"]
        """,
    )
    write(tmp_path, "hello\n", "motd")
    recipe = 'base = "debian:12"\nlabel = "db"\nfiles = [{ path = "/a", source = "a" }]\n'
    write(tmp_path, recipe, "images/db.toml")
    write(tmp_path, "beside the recipe\n", "images/a")
    write(tmp_path, 'lock = 1\narch = "x86_64"\n[packages]\nbash = "5.2"\n', "images/db.lock")
    spec = parse_project(load_project(tmp_path, {}).data)
    machine = spec.machines["db"]
    assert machine.spec.files[0].data == b"hello\n"
    assert machine.spec.mounts[0].source == str(tmp_path / "src")
    assert machine.build is not None
    assert machine.build.files[0].data == b"beside the recipe\n"
    assert machine.spec.image == "db"
    assert machine.lock is not None
    assert machine.lock.packages == {"bash": "5.2"}


def test_the_directory_names_the_project(tmp_path: Path) -> None:
    text = '[machines.db]\nimage = "debian:12"\n'
    assert load_project(write(tmp_path / "My Shop", text), {}).name == "my-shop"
    assert load_project(write(tmp_path / "a", f'name = "b"\n{text}'), {}).name == "b"


def test_the_file_is_found_in_directories_above(tmp_path: Path) -> None:
    file = write(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    assert find_project_file(tmp_path / "a/b") == file
    file.unlink()
    with pytest.raises(NotFound, match=r"no bough\.toml in"):
        find_project_file(tmp_path / "a/b")


# Problems and their lines


def test_all_problems_have_their_line(tmp_path: Path) -> None:
    pytest.importorskip("tree_sitter_toml")
    write(
        tmp_path,
        """\
[shared.base]
image = "debian:12"
memry = "1GiB"

[machines.db]
extends = "base"
ports = [
  "80",
  "x:y",
]
password = "${PASSWORD:?choose one}"

[[machines.db.files]]
path = "/a"
source = "none"

[machines.web]
depends_on = { db = "healthy" }
build = "none.toml"

[machines.web.healthcheck]
prot = 80
""",
    )
    with pytest.raises(InvalidSpec) as error:
        load_project(tmp_path, {})
    assert lines_of(error.value) == {
        "machines.db.memry": 3,
        "machines.db.ports[1]": 9,
        "machines.db.password": 11,
        "machines.db.files[0].source": 15,
        "machines.web.depends_on.db": 18,
        "machines.web.build": 19,
        "machines.web.healthcheck.prot": 22,
    }
    assert error.value.file == str(tmp_path / "bough.toml")


def test_one_problem_is_the_message(tmp_path: Path) -> None:
    pytest.importorskip("tree_sitter_toml")
    with pytest.raises(InvalidSpec) as error:
        load_project(write(tmp_path), {})
    text = "bough.toml, line 12: machines.web.vcpus: the variable CPUS is not set"
    assert error.value.message == text


def test_problems_that_the_service_finds_get_their_line(tmp_path: Path) -> None:
    pytest.importorskip("tree_sitter_toml")
    file = load_project(write(tmp_path, 'name = "db"\nimage = "debian:12"\nmemory = 5\n'), {})
    with pytest.raises(InvalidSpec) as error:
        parse_project(file.data)
    assert lines_of(file.locate(error.value)) == {"machines.db.memory": 3}
    text = 'name = "db"\nimage = "debian:12"\nmemory = "${NONE}"\n'
    with pytest.raises(InvalidSpec, match=r"bough.toml, line 3: machines\.db\.memory: the variable NONE"):
        load_project(write(tmp_path, text), {})


def test_lines_of_every_form_of_toml() -> None:
    pytest.importorskip("tree_sitter_toml")
    text = """\
a = 1
b.c = 2

[d."e f"]
'g' = { h = 1, i = [
  2,  # comment
  { j = 3 },
] }
[[k]]
l = 1
[[k]]
[k.m]
n = 1
[[k.o]]
p = \"\"\"
x
\"\"\"
"""
    lines = find_lines(text)
    assert {path: lines[path] for path in lines if path} == {
        ("a",): 1, ("b",): 2, ("b", "c"): 2, ("d",): 4, ("d", "e f"): 4, ("d", "e f", "g"): 5,
        ("d", "e f", "g", "h"): 5, ("d", "e f", "g", "i"): 5, ("d", "e f", "g", "i", 0): 6,
        ("d", "e f", "g", "i", 1): 7, ("d", "e f", "g", "i", 1, "j"): 7, ("k",): 9, ("k", 0): 9,
        ("k", 0, "l"): 10, ("k", 1): 11, ("k", 1, "m"): 12, ("k", 1, "m", "n"): 13, ("k", 1, "o"): 14,
        ("k", 1, "o", 0): 14, ("k", 1, "o", 0, "p"): 15,
    }  # fmt: skip
    assert line_of(("k", 1, "z", 5), lines) == 11
    assert line_of(("z",), lines) is None


@given(st.lists(st.text(min_size=1, max_size=8) | st.integers(0, 99), max_size=5))
def test_a_place_can_be_split_again(parts: list[str | int]) -> None:
    if parts and isinstance(parts[0], int):
        parts = ["a", *parts]
    assert split_place(render_place(parts)) == tuple(parts)


def test_a_file_that_is_no_toml_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"bough\.toml is not TOML: .*line 2"):
        load_project(write(tmp_path, "a = 1\nb\n"), {})
    with pytest.raises(NotFound, match="no file .*/none"):
        load_project(tmp_path / "none", {})


def test_dates_become_text(tmp_path: Path) -> None:
    text = '[machines.db]\nimage = "debian:12"\nclock = 2024-01-01\n'
    assert load_project(write(tmp_path, text), {}).data["machines"]["db"]["clock"] == "2024-01-01"
