"""Run the examples of the documentation as the pages show them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import bough
from tests.acceptance.conftest import BOUGH, Cli
from tests.pages import PAGES, blocks, script_of


def test_the_python_of_the_readme_runs(cli: Cli, debian: str, tmp_path: Path) -> None:
    found = [text for language, text in blocks("README.md") if language == "python"]
    assert found, "the README shows no Python"
    before = cli.names()
    for block in found:
        done = subprocess.run(
            [sys.executable, "-c", block],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert cli.names() == before


def test_the_tests_of_the_python_page_pass(cli: Cli, debian: str, tmp_path: Path) -> None:
    (found,) = [text for _, text in blocks("docs/python.md") if "def test_" in text]
    (tmp_path / "test_page.py").write_text(found)
    before = cli.names()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert cli.names() == before
    assert cli.json("standby") == []


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_run(
    cli: Cli, hv: bough.Hypervisor, booted: bough.Snapshot, tmp_path: Path, name: str
) -> None:
    """Commands run unchanged, in one shell per page, with `bough` on the PATH, for a user with
    an empty home.
    """
    page, script = PAGES[name], script_of(name)
    assert "bough " in script
    machines, snapshots = cli.names(), {snapshot.id for snapshot in hv.snapshots()}
    environment = cli.env | {"PATH": f"{BOUGH.parent}:{cli.env['PATH']}", "HOME": str(tmp_path)}
    if page.web:
        cli("fork", booted.id, "web")
    try:
        subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", f"{page.before}\n{script}"],
            check=True,
            timeout=900,
            cwd=tmp_path,
            env=environment,
            input=b"",
        )
    finally:
        for machine in set(cli.names()) - set(machines):
            cli("delete", machine, "--force")
        for made in reversed(cli.json("snapshot", "list")):
            if made["id"] not in snapshots and made["machine_name"] == "web":
                cli("snapshot", "delete", made["id"])
        for network in hv.networks():  # of a page that failed
            network.delete()
    assert cli.names() == machines
