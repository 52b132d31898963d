"""Clients that keep ephemeral projects alive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from bough.hypervisor.lifetimes import EPHEMERAL_GRACE_S, Lifetimes
from bough.hypervisor.projects.registry import Projects
from bough.machines.machine import Machine
from bough.projects.record import ProjectRecord


class ProjectHolds:
    """Holds all machines of a project for a client, also machines that are made later.

    Without a client, the machines of an ephemeral project are deleted, and with the first of them the project
    (ProjectRemoval).
    """

    def __init__(self, projects: Projects, lifetimes: Lifetimes) -> None:
        self._projects = projects
        self._lifetimes = lifetimes
        #: Project id -> the machines that each client holds.
        self._clients: dict[str, list[contextlib.ExitStack]] = {}

    @contextmanager
    def hold(self, record: ProjectRecord) -> Iterator[None]:
        """Hold the project for a client until the block ends."""
        with contextlib.ExitStack() as machines:
            for machine in self._projects.machines(record).values():
                machines.enter_context(self._lifetimes.hold(machine))
            clients = self._clients.setdefault(record.id, [])
            clients.append(machines)
            try:
                yield
            finally:
                clients.remove(machines)
                if not clients:
                    self._clients.pop(record.id, None)

    def keep(self, record: ProjectRecord, machine: Machine) -> AbstractContextManager[None]:
        """Hold a machine that `up` has made, for each client of its project and until a block ends. Without a
        client, a client has EPHEMERAL_GRACE_S to begin.
        """
        for machines in self._clients.get(record.id, ()):
            machines.enter_context(self._lifetimes.hold(machine))
        return self._lifetimes.hold(machine, grace_s=EPHEMERAL_GRACE_S)
