"""The fixture `bough_project` with real guests: two machines on a network, a fork for each test."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import bough
from tests.acceptance.test_pytest_plugin import page_of, run

pytest_plugins = "pytester"

PROJECT = """
name = "shop"

[networks.back]

[shared.base]
image = "%s"
memory = "512MiB"
networks = ["back"]

[machines.db]
extends = "base"
ports = ["5432:8000"]

[machines.app]
extends = "base"
depends_on = ["db"]
"""

CONFTEST = """
import pathlib, pytest
COUNT = pathlib.Path(__file__).parent / "prepared"
SERVE = "systemd-run --unit=serve --working-directory=/srv python3 -m http.server 8000"

def prepare(shop):
    with COUNT.open("a") as file:
        file.write("x")
    shop["db"].write_file("/srv/rows", "1")
    shop["db"].succeed(SERVE)
    shop["db"].wait_for_open_port(8000)

@pytest.fixture(scope="session")
def bough_prepare():
    return prepare
"""

TESTS = """
import pytest
READ = "python3 -c 'import urllib.request as r; print(r.urlopen(" \
    "\\"http://db:8000/rows\\", timeout=5).read().decode())'"

@pytest.mark.parametrize("number", range(2))
def test_each_gets_a_pristine_project(bough_project, number):
    assert bough_project["app"].succeed(READ) == "1\\n"
    bough_project["db"].write_file("/srv/rows", "2")
    assert bough_project["app"].succeed(READ) == "2\\n"

def test_fails(bough_project):
    bough_project["app"].succeed(READ)
    bough_project["db"].block()
    bough_project["app"].fail(READ)
    bough_project["db"].unblock()
    bough_project["app"].wait_until_succeeds(READ)
    bough_project["app"].block()
    bough_project["db"].crash()
    assert bough_project["app"].succeed("echo still here") == ""
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, debian: str, booted: bough.Snapshot) -> pytest.Pytester:
    (pytester.path / "bough.toml").write_text(PROJECT % debian)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    return pytester


@pytest.fixture(autouse=True)
def _no_projects_left(hv: bough.Hypervisor) -> Iterator[None]:
    yield
    assert hv.list_projects() == []
    assert hv.list_networks() == []
    for info in hv.list_project_snapshots():
        hv.project_snapshot(info.id).delete()


def test_each_test_gets_a_fork_of_the_project(suite: pytest.Pytester, hv: bough.Hypervisor) -> None:
    suite.makeini("[pytest]\nbough_project = bough.toml\n")
    run(suite, "-n", "2").assert_outcomes(passed=2, failed=1)
    assert (suite.path / "prepared").read_text() == "x"
    (directory,) = [path.parent for path in (suite.path / "bough-artifacts").glob("*/failure.txt")]
    assert (directory / "network-back.pcapng").stat().st_size > 1000
    assert (directory / "app/journal.txt").exists()
    assert not (directory / "db/journal.txt").exists()
    (fault,) = json.loads((directory / "faults.json").read_text())
    assert fault["kind"] == "partition"
    assert "db: no journal" in (directory / "missing.txt").read_text()
    assert "app" in {step["machine"] for test in page_of(suite)["tests"] for step in test["steps"]}

    done = run(suite, "-k", "fails", "--bough-keep=failed")
    done.assert_outcomes(failed=1)
    assert (suite.path / "prepared").read_text() == "x", "the kept snapshot was found"
    (kept,) = hv.projects()
    assert kept["app"].succeed("echo there") == "there\n"
    assert kept["db"].state == "stopped"
    kept.down(volumes=True, force=True)
