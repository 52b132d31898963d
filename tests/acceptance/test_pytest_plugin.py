"""The pytest plugin with real guests, as suites of users run it: each run is a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import bough
from tests.pages import ROOT
from tests.unit.test_pytest_plugin import PLUGIN
from tests.waiting import wait_until

pytest_plugins = "pytester"

CONFTEST = """
import pathlib, pytest
COUNT = pathlib.Path(__file__).parent / "prepared"
TEXT = "ready"

def prepare(vm):
    with COUNT.open("a") as file:
        file.write("x")
    vm.write_file("/etc/app.conf", TEXT)

@pytest.fixture(scope="session")
def bough_prepare():
    return prepare
"""

PRISTINE = """
import os, pathlib, pytest

@pytest.mark.parametrize("number", range(3))
def test_each_gets_a_pristine_machine(bough_machine, number, request):
    assert bough_machine.read_text("/etc/app.conf") == "ready"
    bough_machine.succeed("rm /etc/app.conf")
    workers = pathlib.Path(request.config.rootpath) / "workers"
    with workers.open("a") as file:
        file.write(os.environ.get("PYTEST_XDIST_WORKER", "main") + " " + bough_machine.id + "\\n")
"""

FAILS = """
def test_fails(bough_machine):
    with bough_machine.subtest("the disk is writable"):
        bough_machine.succeed("echo '<b>one</b>' && touch /root/made")
    bough_machine.succeed("echo a log line | systemd-cat -t suite; echo on the console >/dev/console")
    bough_machine.wait_for_file("/nowhere", timeout=1)

def test_passes(bough_machine):
    bough_machine.succeed("true")
"""

SHARED = """
import pytest
from bough.pytest_plugin import machine_fixture

def other(vm):
    vm.succeed("echo other >/root/kind")

shared = machine_fixture("debian:12", memory="512MiB", scope="module", prepare=other)

def test_one(shared):
    shared.succeed("touch /root/mark")

class TestMore:
    def test_two(self, shared, bough_machine):
        assert shared.succeed("ls /root") == "kind\\nmark\\n"
        assert bough_machine.succeed("ls /root") == ""
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, debian: str, booted: bough.Snapshot) -> pytest.Pytester:
    pytester.makeini("[pytest]\nbough_machine = machine.toml\n")
    (pytester.path / "machine.toml").write_text(f'image = "{debian}"\nmemory = "512MiB"\n')
    pytester.makeconftest(CONFTEST)
    return pytester


@pytest.fixture(autouse=True)
def _no_machines_left(hv: bough.Hypervisor) -> Iterator[None]:
    before = {machine.id for machine in hv.machines()}
    yield
    assert {machine.id for machine in hv.machines()} <= before


@pytest.fixture(scope="module", autouse=True)
def _prepared_snapshots_are_deleted(hv: bough.Hypervisor) -> Iterator[None]:
    yield
    for snapshot in prepared(hv):
        snapshot.delete()


def prepared(hv: bough.Hypervisor) -> list[bough.Snapshot]:
    return [snapshot for snapshot in hv.snapshots() if (snapshot.label or "").startswith("pytest-")]


def run(suite: pytest.Pytester, *words: str) -> pytest.RunResult:
    return suite.runpytest_subprocess(*PLUGIN, "-p", "no:cacheprovider", *words)


def page_of(suite: pytest.Pytester) -> dict[str, Any]:
    page = (suite.path / "bough-artifacts/report.html").read_text()
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data: dict[str, Any] = json.loads(text)
    return data


def test_each_test_gets_a_fork_of_a_kept_snapshot(suite: pytest.Pytester, hv: bough.Hypervisor) -> None:
    """Check that workers share a preparation, that the next run finds it, and that a change makes another."""
    suite.makepyfile(PRISTINE)
    run(suite, "-n", "2").assert_outcomes(passed=3)
    assert (suite.path / "prepared").read_text() == "x"
    workers = (suite.path / "workers").read_text().splitlines()
    assert {line.split()[0] for line in workers} == {"gw0", "gw1"}
    assert len({line.split()[1] for line in workers}) == 3
    assert [test["outcome"] for test in page_of(suite)["tests"]] == ["passed"] * 3
    run(suite, "-k", "0").assert_outcomes(passed=1)
    assert (suite.path / "prepared").read_text() == "x"
    suite.makeconftest(CONFTEST.replace('TEXT = "ready"', 'TEXT = "changed"'))
    run(suite, "-k", "0").assert_outcomes(failed=1)
    assert (suite.path / "prepared").read_text() == "xx"
    assert len(prepared(hv)) >= 2


def test_a_failed_test_leaves_its_evidence(suite: pytest.Pytester, hv: bough.Hypervisor) -> None:
    suite.makepyfile(FAILS)
    done = run(suite, "--bough-keep=failed", "--bough-bundle=failed")
    done.assert_outcomes(failed=1, passed=1)
    (directory,) = [path.parent for path in (suite.path / "bough-artifacts").glob("*/failure.txt")]
    (machine,) = [path.parent for path in directory.glob("*/machine.json")]
    assert "a log line" in (machine / "journal.txt").read_text()
    assert "on the console" in (machine / "console.txt").read_text()
    assert not (directory / "missing.txt").exists()
    steps = (directory / "steps.txt").read_text()
    assert "$ echo '<b>one</b>' && touch /root/made  [0]\n    <b>one</b>" in steps
    assert "wait: wait until /nowhere exists" in steps
    assert "there is no /nowhere" in steps
    assert "subtest: the disk is writable" in steps
    told = done.stdout.str()
    assert "waited 1 s of the guest until /nowhere exists" in told
    assert f"evidence: {directory}" in told

    (kept,) = re.findall(r"^kept: BOUGH_HOME=\S+ bough shell (\S+)$", told, re.MULTILINE)
    assert hv.machine(kept).succeed("ls /root") == "made\n"
    hv.machine(kept).delete(force=True)

    (bundle,) = directory.glob("*.bough")
    with hv.import_bundle(bundle, name="colleague") as colleague:
        assert colleague.succeed("ls /root") == "made\n"
    colleague.delete(force=True)

    tests = {test["name"]: test for test in page_of(suite)["tests"]}
    failed = tests["test_fails"]
    assert failed["outcome"] == "failed"
    assert {"fork", "subtest", "command", "wait"} <= {step["kind"] for step in failed["steps"]}
    assert (suite.path / "bough-artifacts" / failed["directory"] / "steps.txt").exists()


def test_wider_scopes_and_several_kinds(suite: pytest.Pytester) -> None:
    suite.makepyfile(SHARED)
    run(suite).assert_outcomes(passed=2)


def test_the_debugger_holds_the_machine(suite: pytest.Pytester, hv: bough.Hypervisor) -> None:
    suite.makepyfile("def test_one(bough_machine):\n    assert bough_machine.succeed('echo x') == 'y'\n")
    words = [sys.executable, "-m", "pytest", *PLUGIN, "--pdb", "-p", "no:cacheprovider"]
    told = suite.run(*words, stdin=b"p bough_machine.state\nq\n").stdout.str()
    assert re.search(r"^bough: this machine is held: BOUGH_HOME=\S+ bough shell \S+$", told, re.MULTILINE)
    assert "'running'" in told


def test_a_killed_run_leaves_nothing(suite: pytest.Pytester, hv: bough.Hypervisor) -> None:
    suite.makepyfile(
        "import pathlib, time\n"
        "def test_one(bough_machine):\n"
        f"    pathlib.Path({str(suite.path / 'name')!r}).write_text(bough_machine.name)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *PLUGIN, "-p", "no:cacheprovider"],
        cwd=suite.path,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until((suite.path / "name").exists, timeout_s=120, what="the test has a machine")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    name = (suite.path / "name").read_text()
    wait_until(lambda: name not in [machine.name for machine in hv.machines()], what=f"{name} is deleted")


def run_example(suite: pytest.Pytester, *words: str) -> pytest.RunResult:
    example = suite.path / "example"
    shutil.copytree(ROOT / "examples/pytest", example)
    return run(suite, f"--rootdir={example}", f"--config-file={example}/pytest.ini", str(example), *words)


def test_the_example_passes(suite: pytest.Pytester) -> None:
    run_example(suite, "-k", "not power").assert_outcomes(passed=3, deselected=1)


@pytest.mark.long
def test_the_example_passes_with_a_boot(suite: pytest.Pytester) -> None:
    run_example(suite, "-k", "power").assert_outcomes(passed=1, deselected=3)


def test_errors_of_bough_are_told(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        "import pytest\n"
        "@pytest.mark.bough('nowhere:1')\n"
        "def test_image(bough_machine): pass\n"
        "@pytest.mark.bough('missing.toml')\n"
        "def test_file(bough_machine): pass\n"
        "@pytest.mark.bough(memory='1 parsec')\n"
        "def test_setting(bough_machine): pass\n"
    )
    done = run(suite)
    done.assert_outcomes(errors=3)
    told = done.stdout.str()
    assert "nowhere" in told
    assert "missing.toml" in told
    assert "1 parsec" in told
    assert "hint: " in told
