"""Forks for tests: made of a prepared snapshot, bounded by slots, kept or deleted at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bough.pytest_plugin.locks import forks_of_host

if TYPE_CHECKING:
    from bough.client.machine import Machine, Snapshot
    from bough.client.network import Network
    from bough.pytest_plugin.captures import NetworkCapture
    from bough.pytest_plugin.locks import Slots
    from bough.pytest_plugin.options import Source
    from bough.pytest_plugin.preparation import Prepare, Prepared
    from bough.pytest_plugin.recording import Recorder


@dataclass
class LiveFork:
    """A fork that a fixture has made, and that lives.

    Attributes:
        fixture: name of the fixture.
        subject: the value of the fixture: a machine or a project.
        machines: role -> machine; the role of a single machine is "".
        networks, captures: of a fork of a project.
        keep: makes the machines stay after the fixture's end, as they are now. Returns their names.
    """

    fixture: str
    subject: Any
    machines: Mapping[str, Machine]
    networks: Sequence[Network] = ()
    captures: Sequence[NetworkCapture] = ()
    keep: Callable[[], list[str]] = list


class MachineForks:
    """Makes forks of machines.

    Args:
        most: machines that live at once on this host; None: by the host.
    """

    def __init__(
        self, prepared: Prepared[Snapshot], slots: Slots, recorder: Recorder, most: int | None
    ) -> None:
        self._prepared = prepared
        self._slots = slots
        self._recorder = recorder
        self._most = most

    @contextlib.contextmanager
    def fork(self, fixture: str, source: Source, prepare: Prepare | None) -> Iterator[LiveFork]:
        """Yield a fork, which is deleted at the end of the block unless it is kept."""
        snapshot = self._prepared.find(source, prepare)
        most = self._most or forks_of_host(_memory_of(snapshot))
        with self._slots.take(1, most) as waited_s:
            with self._recorder.step("fork", f"fork {source.name}") as step:
                machine = self._prepared.fork(snapshot, source, prepare)
                self._recorder.name(machine.id, machine.name)
                step.machine = machine.name
                step.status = f"waited {waited_s:.1f} s for a slot" if waited_s > 1 else ""
            with machine:  # a kept machine survives the block
                yield LiveFork(fixture, machine, {"": machine}, keep=lambda: _keep(machine))


def _keep(machine: Machine) -> list[str]:
    machine.keep()
    return [machine.name]


def _memory_of(snapshot: Snapshot) -> int:
    return int((snapshot.info().memory or {}).get("size_bytes") or 1 << 30)
