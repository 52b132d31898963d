"""Words of a command: from the command line, through JSON, to the service."""

from __future__ import annotations

import os
from typing import Any

import click
import pytest
from pydantic import ValidationError

from bough.cli.execute import exec_command
from bough.cli.main import BoughUsage
from bough.cli.run import run
from bough.contract.commands import Command
from bough.errors import InvalidInput
from bough.service.models import message_model, to_message

ODD = os.fsdecode(b"a\xffb")


def parse(command: click.Command, *words: str) -> dict[str, Any]:
    return command.make_context("bough", list(words)).params


@pytest.mark.parametrize(
    ("words", "env", "command"),
    [
        (["v", "ls"], (), ("ls",)),
        (["v", "--", "ls", "-l"], (), ("--", "ls", "-l")),
        (["-e", "A=b", "v", "ls", "-e"], ("A=b",), ("ls", "-e")),
        (["v", "-e", "A=b", "--", "ls", "-e"], ("A=b",), ("--", "ls", "-e")),
        (["-e", "A=b", "v", "--env=C=d", "--", "ls"], ("A=b", "C=d"), ("--", "ls")),
        (["v", "sh", "-c", "x", "--", "y"], (), ("sh", "-c", "x", "--", "y")),
        (["v", "--", "-odd", "--"], (), ("--", "-odd", "--")),
    ],
)
def test_options_stand_before_the_dashes(
    words: list[str], env: tuple[str, ...], command: tuple[str, ...]
) -> None:
    params = parse(exec_command, *words)
    assert (params["name"], params["env"], params["command"]) == ("v", env, command)


def test_options_of_run() -> None:
    params = parse(run, "debian:12", "--name", "q", "--keep", "--", "true")
    assert (params["image"], params["name"], params["keep"]) == ("debian:12", "q", True)
    assert params["command"] == ("--", "true")


@pytest.mark.parametrize(
    ("words", "image", "command"),
    [
        ([], None, ()),
        (["--", "ls", "-l"], None, ("--", "ls", "-l")),
        (["--keep", "--", "--", "x"], None, ("--", "--", "x")),
        (["debian:12", "--keep", "--", "ls"], "debian:12", ("--", "ls")),
        (["debian:12", "ls"], "debian:12", ("ls",)),
    ],
)
def test_a_run_of_a_file_needs_no_image(
    words: list[str], image: str | None, command: tuple[str, ...]
) -> None:
    params = parse(run, "--file", "machine.toml", *words)
    assert (params["spec_file"], params["image"], params["command"]) == ("machine.toml", image, command)


def test_without_a_file_the_first_word_is_the_image() -> None:
    params = parse(run, "--", "debian:12", "ls")
    assert (params["image"], params["command"]) == ("debian:12", ("ls",))


@pytest.mark.parametrize(
    "words",
    [["v", "-e", "A=b", "ls"], ["v", "-x"], ["v", "-e", "A=b", "ls", "--", "x"], ["v", "-x", "--", "ls"]],
)
def test_options_where_none_may_be(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse(exec_command, *words)
    with pytest.raises(BoughUsage, match="--name"):
        parse(run, "debian:12", "--name", "q")


def test_words_survive_json() -> None:
    sent = Command(argv=["ls", ODD, "ä", ""], env={"A": ODD}, cwd=ODD, user=None)
    assert to_message(Command, message_model(Command).model_validate_json(sent.render())) == sent


def test_what_is_no_word() -> None:
    with pytest.raises(InvalidInput):
        Command(argv=["env"], env={ODD: "x"}).render()
    for word in ('{"base64": "?"}', '{"base64": 1}', '{"other": "x"}', "1", "null"):
        with pytest.raises(ValidationError):
            message_model(Command).model_validate_json(f'{{"argv": ["ls", {word}]}}')
