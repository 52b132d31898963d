"""The lines of a machine's file, in errors about its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bough.client.machine_file import MachineFile, load_machine_file
from bough.errors import BeyondHost, InvalidSpec
from bough.spec import HostLimits, check_against_host, parse_spec

TEXT = """\
image = "debian:12"
memory = "lots"
ports = ["8080:80", "x"]

[environment]
A = "b"
"1" = "c"
"""


def read(tmp_path: Path, text: str = TEXT) -> MachineFile:
    path = tmp_path / "machine.toml"
    path.write_text(text)
    return load_machine_file(path)


def locate(file: MachineFile, **options: Any) -> InvalidSpec:
    sent = {**file.data, **options}
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(sent)
    return file.locate(caught.value, sent)


def lines(error: InvalidSpec) -> dict[str, int | None]:
    return {one["place"]: one.get("line") for one in error.problems}


def test_each_problem_has_its_line(tmp_path: Path) -> None:
    error = locate(read(tmp_path))
    assert lines(error) == {"memory": 2, "ports[1]": 3, 'environment["1"]': 7}
    assert error.message == "machine.toml has 3 problems"
    assert error.file == str(tmp_path / "machine.toml")


def test_a_single_problem(tmp_path: Path) -> None:
    error = locate(read(tmp_path, 'image = "debian:12"\nmemroy = "1GiB"\n'))
    assert error.message == "machine.toml, line 2: memroy: no such setting"
    assert error.hint == "did you mean 'memory'?"


def test_a_setting_that_is_missing(tmp_path: Path) -> None:
    assert locate(read(tmp_path, "vcpus = 1\n")).message == "machine.toml: image: is missing"


def test_the_problem_of_an_option_has_no_line(tmp_path: Path) -> None:
    file = read(tmp_path, 'image = "debian:12"\nmemory = "1GiB"\nports = ["80"]\n')
    error = locate(file, memory="few")
    assert error.message.startswith("memory: ")
    assert "line" not in error.problems[0]
    error = locate(file, ports=["80", "y"])
    assert error.message.startswith("ports[1]: ")


def test_problems_of_the_file_and_of_options(tmp_path: Path) -> None:
    error = locate(read(tmp_path, 'image = "debian:12"\nmemory = "few"\n'), vcpus=-1)
    assert lines(error) == {"vcpus": None, "memory": 2}
    assert error.message == "the spec has 2 problems"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec) as caught:
        read(tmp_path, 'image = "debian:12"\n[[files]]\npath = "/a"\nsource = "absent"\n')
    assert caught.value.message.startswith("machine.toml, line 4: files[0].source: cannot read ")


def test_what_the_host_lacks(tmp_path: Path) -> None:
    file = read(tmp_path, 'image = "debian:12"\nmemory = "8GiB"\n')
    with pytest.raises(BeyondHost) as caught:
        check_against_host(parse_spec(file.data), HostLimits(2, 1 << 30, 1 << 40))
    error = file.locate(caught.value, file.data)
    assert isinstance(error, BeyondHost)
    assert error.message.startswith("machine.toml, line 2: memory: 8 GiB requested")
