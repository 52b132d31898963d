"""One run of pytest, in one process: its forks, and what is told about its tests."""

from __future__ import annotations

import base64
import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bough.errors import BoughError
from bough.pytest_plugin.options import Options, Source

if TYPE_CHECKING:
    from bough.client.connection import Connection
    from bough.client.hypervisor import Hypervisor
    from bough.pytest_plugin.forks import LiveFork, MachineForks
    from bough.pytest_plugin.locks import Slots
    from bough.pytest_plugin.preparation import Prepare, Prepared, S, Snapshots
    from bough.pytest_plugin.project_forks import ProjectForks
    from bough.pytest_plugin.recording import Recorder

#: The end of a step's output on the page of the run.
_SHOWN_CHARS = 6000
_SHOWN_STEPS = 500


class BoughRun:
    """Makes forks for fixtures, and collects the record of each test. Connects at the first fork."""

    def __init__(self, options: Options, worker: str, run_id: str) -> None:
        self.options = options
        self.worker = worker
        self._run_id = run_id
        self._live: list[LiveFork] = []
        self._fixtures: set[str] = set()
        self._told: dict[str, dict[str, Any]] = {}
        #: A connection that records no step; None before the first fork.
        self._plain_api: Connection | None = None

    # -- forks ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def machine(self, fixture: str, source: Source, prepare: Prepare | None) -> Iterator[LiveFork]:
        """Yield a fork of a prepared machine, for a fixture."""
        self._fixtures.add(fixture)
        with self.machines.fork(fixture, source, prepare) as fork, self._listed(fork):
            yield fork

    @contextlib.contextmanager
    def project(self, fixture: str, source: Source, prepare: Prepare | None) -> Iterator[LiveFork]:
        """Yield a fork of a prepared project, for a fixture."""
        self._fixtures.add(fixture)
        with self.projects.fork(fixture, source, prepare) as fork, self._listed(fork):
            yield fork

    @contextlib.contextmanager
    def _listed(self, fork: LiveFork) -> Iterator[None]:
        self._live.append(fork)
        try:
            yield
        finally:
            self._live.remove(fork)
            if self.options.keep == "always":
                with contextlib.suppress(BoughError):
                    fork.keep()

    @cached_property
    def recorder(self) -> Recorder:
        from bough.pytest_plugin.recording import Recorder

        return Recorder()

    @cached_property
    def hv(self) -> Hypervisor:
        """The hypervisor of this run, over a connection that records. Raises ServiceUnavailable."""
        from bough.client.hypervisor import Hypervisor, connect
        from bough.pytest_plugin.recording import RecordingConnection

        plain = connect()
        self._plain_api = plain.api
        return Hypervisor(plain.home, RecordingConnection(plain.api.path, self.recorder))

    @cached_property
    def machines(self) -> MachineForks:
        from bough.pytest_plugin.forks import MachineForks
        from bough.pytest_plugin.machine_snapshots import MachineSnapshots

        prepared = self._prepared(MachineSnapshots(self.hv, self.recorder))
        return MachineForks(prepared, self._slots, self.recorder, self.options.forks)

    @cached_property
    def projects(self) -> ProjectForks:
        from bough.pytest_plugin.locks import lock_directory
        from bough.pytest_plugin.project_forks import ProjectForks
        from bough.pytest_plugin.project_snapshots import ProjectSnapshots

        prepared = self._prepared(ProjectSnapshots(self.hv, self.recorder, lock_directory()))
        return ProjectForks(prepared, self._slots, self.recorder, self.options.forks)

    def _prepared(self, snapshots: Snapshots[S]) -> Prepared[S]:
        from bough.pytest_plugin.locks import lock_directory
        from bough.pytest_plugin.preparation import Prepared

        home, fresh = self.hv.home.root, self.options.fresh
        return Prepared(snapshots, home, lock_directory(), run=self._run_id, fresh=fresh)

    @cached_property
    def _slots(self) -> Slots:
        from bough.pytest_plugin.locks import Slots, lock_directory

        return Slots(lock_directory())

    # -- tests ------------------------------------------------------------------------------------

    def begin(self, item: pytest.Item) -> None:
        """Begin the record of a test."""
        if "recorder" in self.__dict__:
            self.recorder.start_over()

    def forks_of(self, item: pytest.Item) -> list[LiveFork]:
        """Return the live forks that the test uses."""
        names = getattr(item, "fixturenames", ())
        return [fork for fork in self._live if fork.fixture in names]

    def uses_bough(self, item: pytest.Item) -> bool:
        return not self._fixtures.isdisjoint(getattr(item, "fixturenames", ()))

    def tell(self, item: pytest.Item, report: pytest.TestReport, error: BaseException | None) -> None:
        """Add to a test's report what bough knows: after a failure the evidence, at the end the steps."""
        if report.failed and report.when != "teardown":
            try:
                self._explain(item, report, error)
            except Exception as trouble:  # the test's own failure is what the user needs
                report.sections.append(("bough", f"the evidence is incomplete: {trouble!r}"))
        if report.when == "teardown":
            told = self._told.pop(item.nodeid, {})
            steps = self.recorder.steps
            told["steps"] = [_shown(step.to_dict()) for step in steps[:_SHOWN_STEPS]]
            told["left_out"] = self.recorder.left_out + max(0, len(steps) - _SHOWN_STEPS)
            report.bough = told  # type: ignore[attr-defined]

    def _explain(self, item: pytest.Item, report: pytest.TestReport, error: BaseException | None) -> None:
        from bough.pytest_plugin.evidence import Evidence, directory_name, render_steps

        if isinstance(error, BoughError):
            report.sections.append(("what the error knows", _details(error)))
        directory = self.options.artifacts / directory_name(item.nodeid)
        evidence = Evidence(directory, self._plain_api)
        evidence.write("failure.txt", report.longreprtext + "\n")
        evidence.write("steps.txt", render_steps(self.recorder.steps, self.recorder.left_out))
        kept = []
        evidence.faults(self.forks_of(item))
        for fork in self.forks_of(item):
            evidence.collect(fork)
            if self.options.bundle == "failed":
                evidence.bundle(fork)
            if self.options.keep == "failed":
                with evidence.trying("the fork is not kept"):
                    kept += fork.keep()
        evidence.close()
        self._told[item.nodeid] = {
            "directory": os.path.relpath(directory, self.options.report.parent),
            "files": evidence.files(),
            "missing": evidence.problems,
            "screens": _screens(directory),
            "kept": [self.command("shell", name) for name in kept],
        }
        report.sections.append(("bough", self._pointers(directory, kept)))

    def _pointers(self, directory: Path, kept: list[str]) -> str:
        lines = [f"evidence: {directory}"]
        lines += [f"kept: {self.command('shell', name)}" for name in kept]
        lines += [f"bundle: bough import {bundle}" for bundle in sorted(directory.glob("*.bough"))]
        return "\n".join(lines)

    def how_to_enter(self) -> list[str]:
        """Return the commands that open a shell in each live machine."""
        return [self.command("shell", name) for fork in self._live for name in _names(fork)]

    def command(self, *words: str) -> str:
        from bough.paths import Home
        from bough.pytest_plugin.evidence import command_for

        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("BOUGH_HOME", raising=False)
            usual = Home.from_environment().root
        return command_for(self.hv.home.root, usual, *words)

    def close(self) -> None:
        if "hv" in self.__dict__:
            self.hv.close()
            if self._plain_api is not None:
                self._plain_api.close()


def new_run(config: pytest.Config) -> BoughRun:
    """Return the run of this process. The workers of one run have the same id."""
    worker_input = getattr(config, "workerinput", {})
    run_id = worker_input.get("testrunuid") or uuid.uuid4().hex
    return BoughRun(Options.of(config), worker_input.get("workerid", "main"), run_id)


def _names(fork: LiveFork) -> list[str]:
    return [machine.name for machine in fork.machines.values()]


def _details(error: BoughError) -> str:
    hint = [f"hint: {error.hint}"] if error.hint else []
    return "\n".join([*hint, *(f"{name}: {value}" for name, value in error.details.items())])


def _screens(directory: Path) -> list[dict[str, str]]:
    """Return the screenshots for the page of the run: name of the machine, and the picture."""
    return [
        {"machine": path.parent.name, "png": base64.b64encode(path.read_bytes()).decode()}
        for path in sorted(directory.glob("*/screen.png"))
    ]


def _shown(step: dict[str, Any]) -> dict[str, Any]:
    output = step["output"]
    if len(output) > _SHOWN_CHARS:
        output = "...\n" + output[-_SHOWN_CHARS:]
    return {**step, "output": output, "ended": step["ended"] or time.time()}
