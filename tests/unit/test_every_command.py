"""Check that a test with a real machine runs every command, option and example, or that an exception has a
reason.

A new option fails `test_every_command_and_option_is_run` until a test in tests/acceptance gives it to the
command:
cli("exec", "--new-option", box, "--", "true").
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bough.cli.main import COMMANDS
from tests.commands import Run, commands_in_pages, commands_in_tests, leaves, wanted
from tests.pages import FRAGMENTS, NOT_RUN, PAGES, blocks, commands_in_script, commands_of, is_run, pages

ROOT = Path(__file__).resolve().parents[2]

#: Options that no test with a machine gives to the command -> reason.
_BUILDS = "each takes a build of 30 s and a mirror; test_image_build.py builds by the same request"
EXCEPTIONS = {
    f"image build {option}": _BUILDS for option in ("--rebuild", "--mirror", "--security-mirror", "--lock")
}


@pytest.fixture(scope="module")
def run() -> Run:
    run = Run()
    commands_in_tests(run)
    commands_in_pages(run)
    return run


def test_every_command_and_option_is_run(run: Run) -> None:
    missing = [name for name in dict.fromkeys(wanted()) if name not in run.found and name not in EXCEPTIONS]
    told = "; ".join(f"bough {name}" for name in missing)
    assert not missing, f"no test in tests/acceptance runs: {told}. Add one there, or a reason to EXCEPTIONS"


def test_every_exception_is_one(run: Run) -> None:
    known = set(wanted())
    assert [name for name in EXCEPTIONS if name not in known] == [], "there is no such option any more"
    assert [name for name in EXCEPTIONS if name in run.found] == [], "a test runs it now"


def test_a_command_that_is_only_refused_does_not_count() -> None:
    run = Run()
    run.add(["snapshot", "create", "x", "--name", "y"], "here")
    run.add(["exec", "x", "--", "ls", "--timeout"], "here")
    run.add(["exec", "--no-such-option", "x", "true"], "here")
    assert set(run.found) == {"snapshot create", "snapshot create --name", "exec"}


# -- pages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages())
def test_every_example_of_a_page_is_run(page: str) -> None:
    unexplained = [
        line
        for line in commands_of(page)
        if not is_run(page, line) and not any(line.startswith(begin) for begin in NOT_RUN.get(page, {}))
    ]
    assert not unexplained, f"name {page} in PAGES of tests/pages.py, or say in NOT_RUN why not"
    for begin in NOT_RUN.get(page, {}):
        assert any(line.startswith(begin) for line in commands_of(page)), (
            f"{page} shows no {begin!r} any more"
        )


def test_every_page_that_is_run_is_there() -> None:
    assert set(PAGES) | set(NOT_RUN) <= set(pages())


@pytest.mark.parametrize("page", pages())
def test_the_python_and_toml_of_a_page(page: str) -> None:
    """Check the blocks of a page; those of README.md and python.md also run, in test_pages.py."""
    for language, text in blocks(page):
        if language == "toml":
            tomllib.loads(text)
        if language == "python" and not _runs(page, text):
            assert any(line in text for line in FRAGMENTS), f"{page}: run it in test_pages.py:\n{text}"
            ast.parse(text)


def _runs(page: str, text: str) -> bool:
    return text.startswith("import bough") and (page in ("README.md", "docs/quickstart.md", "docs/python.md"))


# -- commands that are named: in pages, help and hints ------------------------------------------------------


def named_in_pages() -> Iterator[tuple[str, str]]:
    for page in [*pages(), "docs/cli.md", "examples/machine.toml"]:
        for code in re.findall(r"(?<!`)`(bough [^`\n]+)`", (ROOT / page).read_text()):
            yield page, code


def named_in_source() -> Iterator[tuple[str, str]]:
    """Yield the texts of hints and of help in the source."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for keyword in node.keywords if isinstance(node, ast.Call) else ():
                if keyword.arg in ("hint", "help"):
                    yield str(path.relative_to(ROOT)), _text(keyword.value)


def _text(node: ast.expr) -> str:
    parts = [
        str(inner.value) if isinstance(inner, ast.Constant) else "x"
        for inner in ast.walk(node)
        if isinstance(inner, ast.Constant | ast.FormattedValue)
    ]
    return "".join(parts) if isinstance(node, ast.JoinedStr) else " ".join(parts)


def wrong(code: str) -> str | None:
    """Return the problem of a command that a page or a hint names; None if there is no problem."""
    commands = leaves()
    for words in commands_in_script(code):
        found = next((n for n in (3, 2, 1) if tuple(words[:n]) in commands), 0)
        if not found:
            is_group = any(path[: len(words[:1])] == tuple(words[:1]) for path in commands)
            if not is_group and words[0] not in ("COMMAND", "--help", "--version"):
                return f"there is no command {words[0]!r}"
            continue
        leaf = commands[tuple(words[:found])]
        try:
            leaf.command.make_parser(leaf.context).parse_args(words[found:])
        except click.NoSuchOption as error:
            return error.format_message()
        except click.UsageError:
            continue
    return None


@pytest.mark.parametrize(("page", "code"), sorted(set(named_in_pages())))
def test_a_command_that_a_page_names(page: str, code: str) -> None:
    assert wrong(code) is None


def test_the_commands_that_hints_and_help_name() -> None:
    mistakes = [
        f"{place}: {text}: {problem}"
        for place, text in named_in_source()
        for code in re.findall(r"\bbough [a-z][^`;,()]*", text)
        if code.split()[1].rstrip(":") in COMMANDS and (problem := wrong(code))
    ]
    assert mistakes == []
