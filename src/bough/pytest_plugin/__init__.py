"""A pytest plugin: each test gets a pristine machine, a fork of a snapshot that is prepared once.

    def test_destroys_everything(bough_machine):
        bough_machine.succeed("rm -rf /etc")

docs/pytest.md describes the fixtures and options. Nothing of bough is imported before the first fork.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from bough.pytest_plugin.options import (
    MARKER,
    Source,
    add_options,
    ini_directory,
    machine_source,
    project_source,
    scope_of,
)

if TYPE_CHECKING:
    from bough.client.machine import Machine
    from bough.client.project import Project
    from bough.pytest_plugin.run import BoughRun

__all__ = ["bough_machine", "bough_prepare", "bough_project", "machine_fixture", "project_fixture"]

_RUN: pytest.StashKey[BoughRun] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    from bough.pytest_plugin.report import RunReport
    from bough.pytest_plugin.run import new_run

    config.addinivalue_line("markers", MARKER)
    run = config.stash[_RUN] = new_run(config)
    if not hasattr(config, "workerinput"):
        report = RunReport(run.options, config.rootpath.name)
        config.pluginmanager.register(report, "bough-report")


def pytest_unconfigure(config: pytest.Config) -> None:
    if _RUN in config.stash:
        config.stash[_RUN].close()


# -- fixtures -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bough_prepare() -> Callable[[Any], object] | None:
    """Return the function that prepares the machine (or project) once, before the snapshot.

    Override the fixture to prepare: return a function that gets the machine. The snapshot is made anew when
    the source of the function changes.
    """
    return None


@pytest.fixture(scope=scope_of)
def bough_machine(
    request: pytest.FixtureRequest, bough_prepare: Callable[[Any], object] | None
) -> Iterator[Machine]:
    """Yield a running machine for one test: a fork of the prepared snapshot, deleted afterwards."""
    run = request.config.stash[_RUN]
    with run.machine("bough_machine", machine_source(request), bough_prepare) as fork:
        yield fork.subject


@pytest.fixture(scope=scope_of)
def bough_project(
    request: pytest.FixtureRequest, bough_prepare: Callable[[Any], object] | None
) -> Iterator[Project]:
    """Yield a running project for one test: a fork of the prepared snapshot, deleted afterwards."""
    run = request.config.stash[_RUN]
    with run.project("bough_project", project_source(request), bough_prepare) as fork:
        yield fork.subject


def machine_fixture(
    machine: str,
    *,
    prepare: Callable[[Any], object] | None = None,
    scope: Any = "function",
    name: str | None = None,
    **settings: Any,
) -> Any:
    """Return a fixture like `bough_machine`, for a suite with several kinds of machines.

        web = machine_fixture("web.toml", prepare=install_nginx)
        old = machine_fixture("debian:11", memory="512MiB", scope="module")

    Args:
        machine: an image, or a spec file relative to the ini file.
        prepare: gets the machine once, before the snapshot.
        name: of the fixture; default: of the variable.
        settings: of the spec, over those of the file.
    """

    @pytest.fixture(scope=scope, name=name)
    def fork(request: pytest.FixtureRequest) -> Iterator[Machine]:
        source = Source(machine, ini_directory(request.config), settings)
        with request.config.stash[_RUN].machine(request.fixturename or "", source, prepare) as made:
            yield made.subject

    return fork


def project_fixture(
    project: str,
    *,
    prepare: Callable[[Any], object] | None = None,
    scope: Any = "function",
    name: str | None = None,
) -> Any:
    """Return a fixture like `bough_project`; see `machine_fixture`.

    Args:
        project: the project's file, relative to the ini file.
    """

    @pytest.fixture(scope=scope, name=name)
    def fork(request: pytest.FixtureRequest) -> Iterator[Project]:
        source = Source(project, ini_directory(request.config), {})
        with request.config.stash[_RUN].project(request.fixturename or "", source, prepare) as made:
            yield made.subject

    return fork


# -- reports ------------------------------------------------------------------------------------------


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.config.stash[_RUN].begin(item)
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    run = item.config.stash[_RUN]
    if run.uses_bough(item):
        error = call.excinfo.value if call.excinfo is not None else None
        run.tell(item, outcome.get_result(), error)


def pytest_enter_pdb(config: pytest.Config) -> None:
    """Tell how to enter the machines of the test, which live until the debugger ends."""
    terminal = config.pluginmanager.getplugin("terminalreporter")
    for command in config.stash[_RUN].how_to_enter():
        if terminal is not None:
            terminal.write_line(f"bough: this machine is held: {command}")
