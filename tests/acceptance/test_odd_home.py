"""A BOUGH_HOME with a long and odd name, reached through a link, and a umask of 077."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.paths import Home
from tests.acceptance.conftest import Cli
from tests.conftest import IMAGE, MEMORY, RUN
from tests.leftovers import find_leftovers, wait_nothing_left
from tests.waiting import wait_until

ODD = "a blank, a comma: 100% ö $HOME 'x' \"y\" "


@pytest.fixture(scope="module")
def home(request: pytest.FixtureRequest, debian: str) -> Iterator[Home]:
    """Yield a home with the image; its path is longer than a socket's address can be."""
    place = request.config.stash[RUN].root / "odd"
    place.mkdir(mode=0o711)
    root = place
    while len(os.fsencode(root)) < 150:
        root /= ODD + "-" * 20
        root.mkdir(mode=0o711)
    before = os.umask(0o077)
    try:
        home = Home.at(root)
        home.create()
        images = request.config.stash[RUN].images
        with images.alone():
            images.give(home, IMAGE)
        (place / "home").symlink_to(root)
        yield home
    finally:
        os.umask(before)
    left = wait_nothing_left(lambda: find_leftovers(home, service_may_run=False))
    assert not left, str(left)


@pytest.fixture(scope="module")
def odd(home: Home, request: pytest.FixtureRequest) -> Iterator[Cli]:
    cli = Cli({"BOUGH_HOME": str(request.config.stash[RUN].root / "odd" / "home")})
    yield cli
    for name in cli.names():
        cli("delete", name, "--force")
    cli("serve", "--stop")


def test_a_machine_is_created_and_started_there(odd: Cli, home: Home) -> None:
    odd("create", IMAGE, "--name", "boots", "--memory", MEMORY)
    odd("start", "boots", "--no-wait")
    wait_until(lambda: odd.text("logs", "boots"), what="its boot loader prints", timeout_s=60)
    assert odd.json("info", "boots")["state"] == "running"
    odd("delete", "boots", "--force")


def test_a_machine_lives_there(odd: Cli, home: Home, fork: bough.Machine, tmp_path: Path) -> None:
    """The machine comes from another home, so that this test needs no boot."""
    shared = tmp_path / "shared, 100% ö"
    shared.mkdir(mode=0o755)
    (shared / "file").write_text("of the host")
    brought = tmp_path / "web, a: b%.bough"
    fork.export(brought)
    odd("import", brought, "--name", "web")
    odd("mount", "web", f"{shared}:/srv")
    assert odd.text("exec", "web", "--", "cat", "/srv/file") == "of the host"
    odd("cp", shared / "file", "web:/root/copy")
    assert odd.text("exec", "web", "cat", "/root/copy") == "of the host"
    odd("exec", "web", "--", "sh", "-c", "echo stays > /root/stays; sync")

    odd("snapshot", "create", "web", "--name", "point")
    odd("fork", "point", "twig")
    assert odd.text("exec", "twig", "--", "cat", "/root/stays") == "stays"
    odd("suspend", "twig")
    odd("resume", "twig")
    assert odd.text("exec", "twig", "--", "cat", "/root/stays") == "stays"
    bundle = tmp_path / "twig, a: b%.bough"
    odd("export", "twig", bundle)
    odd("import", bundle, "--name", "other")
    assert odd.text("exec", "other", "--", "cat", "/root/stays") == "stays"

    pid = odd.json("info", "web")["pid"]
    odd("serve", "--stop")
    assert odd.json("info", "web")["pid"] == pid
    assert odd.text("exec", "web", "--", "cat", "/root/stays") == "stays"


def test_the_store_is_as_it_should_be_there(odd: Cli, home: Home) -> None:
    for name in odd.names():
        odd("stop", name, "--force")
    assert odd.json("doctor", "--store")["clean"]
    assert home.root.stat().st_mode & 0o777 == 0o711
    for directory in (home.images, home.machines, home.snapshots):
        assert directory.stat().st_mode & 0o777 == 0o711
