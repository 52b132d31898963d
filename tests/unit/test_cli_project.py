"""The output of commands about several machines."""

from __future__ import annotations

from typing import Any

import pytest

from bough.cli.logs import _Lines
from bough.cli.project import _load_rows, _print_steps
from bough.cli.project_progress import machines_progress
from bough.progress import Progress, about, notice


def test_lines_of_consoles_have_names_in_front(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _Lines({"db": None, "web": None}, raw=False)  # type: ignore[dict-item]
    lines.write("db", "one\r\ntwo")
    lines.write("web", "\x1b[31mred\x1b[0m\n\n")
    lines.write("db", " halves\n")
    assert capsys.readouterr().out == "db  | one\nweb | red\ndb  | two halves\n"


def test_a_line_without_an_end_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _Lines({"db": None}, raw=True)  # type: ignore[dict-item]
    lines.write("db", "x" * 5000)
    assert capsys.readouterr().out == f"db | {'x' * 5000}\n"


def test_a_pipe_gets_a_line_for_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    with machines_progress() as report:
        db = about("db", report)
        for step in ("booting", "booting", "up"):
            db(Progress(step))
        about("web", report)(notice("the machine boots"))
        report(Progress("pulling"))
    assert capsys.readouterr().err == "db: booting\ndb: up\nnote: web: the machine boots\npulling\n"


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([], "nothing to do: the machines run as the file says\n"),
        ([("machine", "db", "keep", [])], "nothing to do: the machines run as the file says\n"),
        (
            [("network", "back", "create", []), ("machine", "db", "restart", ["memory", "vcpus"])],
            "network back: create\ndb: stop, change and start (memory, vcpus)\n",
        ),
    ],
)
def test_steps_are_told_first(steps: Any, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    named = [dict(zip(("noun", "name", "action", "settings"), step, strict=True)) for step in steps]
    _print_steps(named, to_stderr=False)
    assert capsys.readouterr().out == told


def test_load_is_the_part_of_a_processor_since_the_last_look() -> None:
    mib = 1 << 20
    load = {"memory_total_bytes": 512 * mib, "memory_available_bytes": 384 * mib, "load_1": 0.5, "tasks": 80}
    before = (10.0, {"db": {**load, "cpu_busy_s": 3.0}, "web": None})
    after = (12.0, {"db": {**load, "cpu_busy_s": 4.0}, "web": None})
    assert _load_rows(before, after) == [
        ["db", "50%", "128 MiB of 512 MiB", "0.50", "80"],
        ["web", "-", "-", "-", "-"],
    ]
