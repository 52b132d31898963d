"""Forks of projects for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bough.pytest_plugin.captures import NetworkCapture
from bough.pytest_plugin.forks import LiveFork
from bough.pytest_plugin.locks import forks_of_host

if TYPE_CHECKING:
    from bough.client.project import Project, ProjectSnapshot
    from bough.pytest_plugin.locks import Slots
    from bough.pytest_plugin.options import Source
    from bough.pytest_plugin.preparation import Prepare, Prepared
    from bough.pytest_plugin.recording import Recorder


class ProjectForks:
    """Makes forks of projects. While a test runs, the frames of each network are captured.

    Args:
        most: machines that live at once on this host; None: by the host.
    """

    def __init__(
        self, prepared: Prepared[ProjectSnapshot], slots: Slots, recorder: Recorder, most: int | None
    ) -> None:
        self._prepared = prepared
        self._slots = slots
        self._recorder = recorder
        self._most = most

    @contextlib.contextmanager
    def fork(self, fixture: str, source: Source, prepare: Prepare | None) -> Iterator[LiveFork]:
        """Yield a fork, which is deleted at the end of the block."""
        snapshot = self._prepared.find(source, prepare)
        count = len(snapshot.info().machines)
        with self._slots.take(count, self._most or forks_of_host(1 << 30)) as waited_s:
            with self._recorder.step("fork", f"fork {source.name}") as step:
                project = self._prepared.fork(snapshot, source, prepare)
                step.status = f"waited {waited_s:.1f} s for slots" if waited_s > 1 else ""
            with project, self._captured(project) as fork:
                fork.fixture = fixture
                yield fork

    @contextlib.contextmanager
    def _captured(self, project: Project) -> Iterator[LiveFork]:
        info = project.info()
        machines = project.machines
        for role, machine in machines.items():
            self._recorder.name(machine.id, role)
        networks = [project.network(one["name"]) for one in info.networks]
        with contextlib.ExitStack() as captures:
            made = [captures.enter_context(contextlib.closing(NetworkCapture(one))) for one in networks]
            yield LiveFork("", project, machines, networks, made, keep=lambda: _keep(project))


def _keep(project: Project) -> list[str]:
    """Fork the fork: the copy stays as the test left it. Return the names of its machines."""
    return [machine.name for machine in project.fork().machines.values()]
