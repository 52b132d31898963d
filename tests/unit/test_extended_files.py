"""Machines of a project that extend tables of other files."""

from __future__ import annotations

from pathlib import Path

import pytest

from bough.client.project_file import load_project
from bough.errors import InvalidSpec
from bough.spec.project.model import ProjectMachine
from bough.spec.project.parse import parse_project

BASE = """\
[shared.common]
image = "debian:12"
memory = "${MEMORY:-256MiB}"
files = [{ path = "/etc/motd", source = "motd" }]

[machines.server]
extends = "common"
build = "recipe.toml"
mounts = ["data:/srv"]

[machines.unused]
image = "${NOBODY_SETS_THIS}"
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return the directory of the project, beside the directory `common` of what it extends."""
    common, shop = tmp_path / "common", tmp_path / "shop"
    common.mkdir()
    shop.mkdir()
    (common / "data").mkdir()
    (common / "base.toml").write_text(BASE)
    (common / "motd").write_text("hello\n")
    (common / "recipe.toml").write_text('base = "debian:12"\npackages = ["nginx"]\n')
    return shop


def read(shop: Path, text: str) -> dict[str, ProjectMachine]:
    (shop / "bough.toml").write_text(text)
    return parse_project(load_project(shop, {}).data).machines


def problem(shop: Path, text: str) -> tuple[str, str | None, int | None]:
    with pytest.raises(InvalidSpec) as error:
        read(shop, text)
    (found,) = [one for one in error.value.problems if one["place"].endswith("extends")]
    return found["message"], found["hint"], found["line"]


def test_a_machine_of_another_file_with_what_it_extends(base: Path) -> None:
    web = read(
        base,
        '[machines.web]\nextends = { file = "../common/base.toml", machine = "server" }\nmemory = "1GiB"\n',
    )["web"]
    assert web.spec.memory == 1 << 30
    assert web.build is not None
    assert web.build.packages == ("nginx",)
    assert web.spec.mounts[0].source == str(base.parent / "common" / "data")
    assert web.spec.files[0].content_base64 == "aGVsbG8K"


def test_several_extend_one_table_and_a_whole_file(base: Path) -> None:
    (base / "one.toml").write_text('image = "debian:12"\nvcpus = 3\n')
    machines = read(
        base,
        """
[shared.own]
extends = { file = "../common/base.toml", machine = "common" }
[machines.a]
extends = ["own", { file = "one.toml" }]
[machines.b]
extends = "own"
vcpus = 2
""",
    )
    assert [machines[role].spec.vcpus for role in "ab"] == [3, 2]
    assert {machine.spec.memory for machine in machines.values()} == {256 << 20}


@pytest.mark.parametrize(
    ("entry", "message", "hint"),
    [
        ('{ file = "none.toml", machine = "a" }', "no file", None),
        (
            '{ file = "../common/base.toml", machine = "servr" }',
            "base.toml has no machine and no shared part 'servr'",
            "did you mean 'server'?",
        ),
        (
            '{ file = "../common/base.toml" }',
            "base.toml has 2 machines",
            'name one of them: { file = "base.toml", machine = "server" }',
        ),
        ('{ file = "../common/base.toml", service = "server" }', "expected a name, or { file =", None),
        ("{ file = 3 }", "expected a file and the name of a machine", None),
        (
            '{ file = "../common/base.toml", machine = "unused" }',
            "image: the variable NOBODY_SETS_THIS is not set",
            None,
        ),
    ],
)
def test_what_makes_no_sense_is_told_with_its_line(
    base: Path, entry: str, message: str, hint: str | None
) -> None:
    told = problem(base, f'[machines.a]\nimage = "debian:12"\nextends = {entry}\n')
    assert message in told[0]
    assert hint is None or told[1] == hint
    assert told[2] == 3


def test_a_circle_of_files(base: Path) -> None:
    (base / "x.toml").write_text('[machines.x]\nextends = { file = "y.toml", machine = "y" }\n')
    (base / "y.toml").write_text('[machines.y]\nextends = { file = "x.toml", machine = "x" }\n')
    told = problem(base, '[machines.a]\nimage = "debian:12"\nextends = { file = "x.toml", machine = "x" }\n')
    assert told[0] == "extends itself: x.toml:x -> y.toml:y -> x.toml:x"


def test_a_long_chain_of_files(base: Path) -> None:
    for number in range(30):
        (base / f"{number}.toml").write_text(
            f'[machines.x]\nextends = {{ file = "{number + 1}.toml", machine = "x" }}\n'
        )
    told = problem(base, '[machines.a]\nimage = "debian:12"\nextends = { file = "0.toml", machine = "x" }\n')
    assert told[0] == "more than 20 files extend each other"
