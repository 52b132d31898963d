"""The states of a machine and every legal transition. docs/states.md is made from this table."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Protocol, TypeVar

log = logging.getLogger("bough.machines")


class State(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPING = "stopping"
    FAILED = "failed"


#: States in which a QEMU process belongs to the machine.
LIVE = frozenset({State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING})

_ENDS = {
    State.STOPPED: "the guest powered off, or QEMU was ended on request",
    State.FAILED: "QEMU ended unexpectedly, or the guest's kernel panicked",
}
TRANSITIONS: Mapping[State, Mapping[State, str]] = {
    State.STOPPED: {
        State.STARTING: "start",
        State.FAILED: "a new service cannot tell what became of the QEMU",
    },
    State.STARTING: {
        State.RUNNING: "the vCPUs run",
        State.PAUSED: "a fork begun in advance has loaded its state",
        State.SUSPENDED: "the saved memory could not be loaded",
        **_ENDS,
    },
    State.RUNNING: {
        State.PAUSED: "pause; QEMU stopped the vCPUs, because the host's disk is full for example",
        State.STOPPING: "stop",
        State.SUSPENDED: "suspend",
        **_ENDS,
    },
    State.PAUSED: {
        State.RUNNING: "resume",
        State.STARTING: "a fork begun in advance is taken",
        State.STOPPING: "stop",
        State.SUSPENDED: "suspend",
        **_ENDS,
    },
    State.STOPPING: {
        State.RUNNING: "a new service adopts the machine and continues the stop",
        State.PAUSED: "a new service adopts the machine and continues the stop",
        **_ENDS,
    },
    State.SUSPENDED: {
        State.STARTING: "resume, or start",
        State.STOPPED: "stop --force, start --cold or restore discards the memory",
        State.FAILED: "a new service cannot tell what became of the QEMU",
    },
    State.FAILED: {
        State.STARTING: "start, or the restart policy",
        State.STOPPED: "stop cancels a pending restart; restore",
    },
}


def is_legal(before: State, after: State) -> bool:
    """Return whether a machine may change from one state to the other; no change is legal."""
    return before is after or after in TRANSITIONS[before]


def check_transition(machine_id: str, before: State, after: State) -> None:
    """Log a transition that the table lacks. Facts about QEMU are recorded all the same."""
    if not is_legal(before, after):
        log.error("illegal transition of machine %s: %s to %s", machine_id, before, after)


class Stateful(Protocol):
    """The parts of a record that `enter_state` uses."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> State: ...
    def model_copy(self: T, *, update: Mapping[str, Any] | None = ..., deep: bool = ...) -> T: ...


T = TypeVar("T", bound=Stateful)


def enter_state(record: T, state: State, fields: Mapping[str, Any]) -> T:
    """Return the record in a new state, with other fields changed as well. No other code changes a state."""
    check_transition(record.id, record.state, state)
    return record.model_copy(update={**fields, "state": state})


def render_states() -> str:
    """Return docs/states.md."""
    head = [
        "# States of a machine",
        "",
        "This page lists each change of a machine's state and its cause. [Concepts](concepts.md#machine)",
        "explains the states. Generated from `src/bough/machines/state.py` by `make docs`.",
        "",
        f"A machine has a QEMU process in the states {', '.join(sorted(LIVE))}. bough logs any other",
        "change of state as an error.",
        "",
        "| from | to | cause |",
        "|---|---|---|",
    ]
    rows = [f"| {a} | {b} | {why} |" for a, causes in TRANSITIONS.items() for b, why in causes.items()]
    return "\n".join([*head, *rows, ""])
