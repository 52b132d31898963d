"""Two clients request contrary operations of one machine at once: one wins, the other gets an error.

And a client with random operations, against a model of the expected state.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

import bough
from bough.errors import Conflict, NotFound

#: The guest does not matter and need not have booted.
SMALL = {"memory": "128MiB", "vcpus": 1, "uplink": False}
EXAMPLES = int(os.environ.get("BOUGH_STATEFUL_EXAMPLES", "2"))
STEPS = int(os.environ.get("BOUGH_STATEFUL_STEPS", "12"))


@dataclass(frozen=True)
class Action:
    """An operation; `after`: possible states of the machine if this operation was the last one."""

    name: str
    run: Callable[[bough.Machine], object]
    after: frozenset[str]


def _action(name: str, run: Callable[[bough.Machine], object], *after: str) -> Action:
    return Action(name, run, frozenset(after))


ACTIONS = (
    _action("start", lambda m: m.start(wait=False), "running"),
    _action("stop", lambda m: m.stop(force=True), "stopped"),
    _action("restart", lambda m: m.restart(deadline=0, wait=False), "running"),
    _action("pause", lambda m: m.pause(), "paused"),
    _action("resume", lambda m: m.resume(), "running"),
    _action("rename", lambda m: m.rename(f"renamed-{m.id}"), "running", "paused", "stopped"),
    _action("snapshot", lambda m: m.snapshot(), "running", "paused", "stopped"),
    _action("restore", lambda m: m.restore(f"first-{m.id}"), "stopped"),
    _action("delete", lambda m: m.delete(force=True), "gone"),
)
#: States in which each of the two operations has an effect.
BEGINNINGS = ("running", "paused", "stopped")


def state_of(machine: bough.Machine) -> str:
    try:
        return machine.state
    except NotFound:
        return "gone"


@pytest.fixture
def victim(hv: bough.Hypervisor, debian: str) -> Iterator[Callable[[str], bough.Machine]]:
    """Yield a function that returns a machine in a given state; the same machine as long as it exists."""
    made: list[bough.Machine] = []

    def give(state: str) -> bough.Machine:
        if not made or state_of(made[-1]) == "gone":
            machine = hv.create(debian, **SMALL)  # type: ignore[arg-type]
            machine.snapshot(f"first-{machine.id}")
            made.append(machine)
        machine = made[-1]
        bring_to(machine, state)
        return machine

    yield give
    for machine in made:
        machine.discard()
    for snapshot in hv.snapshots():
        if snapshot.info().machine in {machine.id for machine in made}:
            snapshot.delete()


def bring_to(machine: bough.Machine, state: str) -> None:
    now = machine.state
    if state == "stopped" and now in ("running", "paused"):
        machine.stop(force=True)
    if state in ("running", "paused") and now in ("stopped", "failed"):
        machine.start(wait=False)
    if state == "running" and now == "paused":
        machine.resume()
    if state == "paused" and machine.state == "running":
        machine.pause()


def collide(machine: bough.Machine, actions: tuple[Action, ...]) -> dict[int, BaseException | None]:
    """Run all at once, each with its own client; return the results."""
    results: dict[int, BaseException | None] = {}
    barrier = threading.Barrier(len(actions))

    def act(number: int, action: Action) -> None:
        own = bough.connect().machine(machine.id)
        barrier.wait(30)
        try:
            action.run(own)
            results[number] = None
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=act, args=pair) for pair in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == len(actions), "one of them did not come to an end"
    return results


def test_one_wins_and_the_other_is_told(hv: bough.Hypervisor, victim: Callable[[str], bough.Machine]) -> None:
    """Try all pairs, each from a state in which both are possible."""
    told = 0
    for number, pair in enumerate(combinations_with_replacement(ACTIONS, 2)):
        beginning = BEGINNINGS[number % len(BEGINNINGS)]
        machine = victim(beginning)
        results = collide(machine, pair)
        where = f"{pair[0].name} and {pair[1].name} of a {beginning} machine: {results}"
        errors = [error for error in results.values() if error is not None]
        for error in errors:
            assert isinstance(error, Conflict | NotFound), where
            assert error.message, where
            told += 1
        state = state_of(machine)
        done = [action for n, action in enumerate(pair) if results[n] is None]
        allowed = frozenset({beginning}).union(*(action.after for action in done))
        assert state in allowed, f"it is {state} after {where}"
        if any(action.name == "delete" for action in done):
            assert state == "gone", where
        else:
            assert machine.info().failure is None, where
    assert told > 0
    found = hv.doctor_store()
    assert [each for each in found["findings"] if not each["harmless"]] == []


class Client(RuleBasedStateMachine):
    """A client's operations, and the state that it must find afterwards. Guests need not boot; it is the only
    client.
    """

    machines: Bundle[str] = Bundle("machines")
    snapshots: Bundle[tuple[str, str]] = Bundle("snapshots")

    @initialize()
    def begin(self) -> None:
        self.hv = bough.connect()
        #: id -> (name, state)
        self.known: dict[str, tuple[str, str]] = {}
        #: snapshot id -> whether it has memory
        self.points: dict[str, bool] = {}
        self.prefix, self.serial = f"any-{time.monotonic_ns()}-", 0

    def name(self) -> str:
        self.serial += 1
        return f"{self.prefix}{self.serial}"

    def attempt(self, machine: str, act: Callable[[bough.Machine], object], **after: str) -> bool:
        """Try an operation; `after` maps a state to the next. From other states it must be refused and change
        nothing.
        """
        name, state = self.known[machine]
        try:
            act(self.hv.machine(machine))
        except Conflict:
            assert state not in after, f"{state} was refused"
            return False
        assert state in after, f"{state} was not refused"
        self.known[machine] = (name, after[state])
        return True

    @rule(target=machines)
    def create(self) -> object:
        if len(self.known) > 2:
            return multiple()
        machine = self.hv.create("debian:12", name=self.name(), **SMALL)  # type: ignore[arg-type]
        self.known[machine.id] = (machine.name, "stopped")
        return machine.id

    @rule(machine=machines)
    def start(self, machine: str) -> None:
        self.attempt(machine, lambda m: m.start(wait=False), stopped="running")

    @rule(machine=machines)
    def stop(self, machine: str) -> None:
        self.attempt(machine, lambda m: m.stop(force=True), running="stopped", paused="stopped")

    @rule(machine=machines)
    def pause(self, machine: str) -> None:
        self.attempt(machine, lambda m: m.pause(), running="paused")

    @rule(machine=machines)
    def resume(self, machine: str) -> None:
        self.attempt(machine, lambda m: m.resume(), paused="running")

    @rule(machine=machines)
    def rename(self, machine: str) -> None:
        new = self.name()
        self.hv.machine(machine).rename(new)
        self.known[machine] = (new, self.known[machine][1])

    @rule(machine=consumes(machines), force=st.booleans(), target=machines)
    def delete(self, machine: str, force: bool) -> object:
        if self.attempt(machine, lambda m: m.delete(force=force), stopped="gone", **_all("gone", force)):
            del self.known[machine]
            return multiple()
        return machine

    @rule(machine=machines, memory=st.booleans(), target=snapshots)
    def snapshot(self, machine: str, memory: bool) -> object:
        if len(self.points) > 3:
            return multiple()
        made = self.hv.machine(machine).snapshot(memory=memory)
        self.points[made.id] = memory and self.known[machine][1] != "stopped"
        return machine, made.id

    @rule(point=snapshots)
    def restore(self, point: tuple[str, str]) -> None:
        machine, snapshot = point
        if machine not in self.known or snapshot not in self.points or self.points[snapshot]:
            return  # a snapshot with memory waits for an agent, which these guests lack
        self.hv.machine(machine).restore(snapshot)
        self.known[machine] = (self.known[machine][0], "stopped")

    @rule(point=snapshots, target=machines)
    def fork(self, point: tuple[str, str]) -> object:
        if point[1] not in self.points or len(self.known) > 2:
            return multiple()
        fork = self.hv.snapshot(point[1]).fork(self.name(), cold=True)
        self.known[fork.id] = (fork.name, "stopped")
        return fork.id

    @rule(point=consumes(snapshots))
    def delete_snapshot(self, point: tuple[str, str]) -> None:
        if self.points.pop(point[1], None) is not None:
            self.hv.snapshot(point[1]).delete()

    @rule()
    def end_the_service(self) -> None:
        self.hv.shutdown()
        self.hv = bough.connect()

    @invariant()
    def what_there_is_is_what_is_known(self) -> None:
        if not hasattr(self, "known"):
            return
        infos = [machine.info() for machine in self.hv.machines()]
        mine = {info.id: info for info in infos if info.name.startswith(self.prefix)}
        assert {one: (info.name, info.state) for one, info in mine.items()} == self.known
        snapshots = {snapshot.id for snapshot in self.hv.snapshots()}
        assert snapshots >= self.points.keys()

    def teardown(self) -> None:
        for machine in getattr(self, "known", {}):
            self.hv.machine(machine).discard()
        for snapshot in getattr(self, "points", {}):
            self.hv.snapshot(snapshot).delete()
        found = self.hv.doctor_store() if hasattr(self, "hv") else {"findings": []}
        assert [each for each in found["findings"] if not each["harmless"]] == []


def _all(state: str, force: bool) -> dict[str, str]:
    return {"running": state, "paused": state} if force else {}


@pytest.mark.long
def test_a_client_that_does_anything(debian: str) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Client,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            phases=[Phase.generate],  # results depend on time, so there is no smaller case
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
