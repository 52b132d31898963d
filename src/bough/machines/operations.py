"""Exclusive operations of a machine, and claims that combine several operations.

A second request fails at once with `Conflict`. The error names the running operation. Nothing queues: after
the wait, the machine might be in another state than the caller expects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Protocol

from bough.errors import Conflict, NotFound, WrongState
from bough.machines.state import State

#: Claims of the running task. Child tasks inherit the claims. An ended claim permits nothing, because no
#: other claim is the same object.
_held: ContextVar[tuple[object, ...]] = ContextVar("held", default=())


class Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    def wrong_state(self, doing: str, *allowed: State) -> WrongState: ...


#: The command to type for a machine in the wrong state.
_HINTS = {
    State.STOPPED: "bough start {name}",
    State.FAILED: "see why with `bough info {name}`, then: bough start {name}",
    State.PAUSED: "bough resume {name}",
    State.SUSPENDED: "bough resume {name}",
    State.RUNNING: "bough stop {name}",
}


def wrong_state(name: str, state: State, doing: str, allowed: Sequence[State]) -> WrongState:
    """Return the error of an operation that the machine's state forbids."""
    hint = _HINTS.get(state)
    return WrongState(
        f"machine '{name}' is {state}; {doing} needs it {' or '.join(allowed)}",
        hint=hint and hint.format(name=name),
        machine=name,
        state=str(state),
    )


class Operations:
    def __init__(self, machine: Named) -> None:
        self._machine = machine
        self._doing: str | None = None
        self._claim: tuple[object, str] | None = None
        self._ended = False

    @property
    def is_free(self) -> bool:
        return self._doing is None

    def check(self) -> None:
        """Check that an operation may begin.

        Raises:
            Conflict: an operation runs, or another task has a claim.
            NotFound: the machine was deleted.
        """
        name = self._machine.name
        if self._ended:
            raise NotFound(
                f"machine '{name}' was deleted meanwhile", hint="bough list shows what there is", name=name
            )
        doing = self._doing
        if doing is None and self._claim is not None and self._claim[0] not in _held.get():
            doing = self._claim[1]
        if doing is not None:
            raise Conflict(
                f"machine '{name}' is {doing} just now",
                hint=f"try again when that is done: bough info {name}",
                machine=name,
            )

    @asynccontextmanager
    async def run(self, doing: str, *allowed: State) -> AsyncIterator[None]:
        """Run an exclusive operation in the block. Fail at once if the state or another operation forbids the
        operation.

        Raises:
            Conflict, NotFound: as `check`.
            WrongState: the machine is in none of the `allowed` states.
        """
        self.check()
        if allowed and self._machine.state not in allowed:
            raise self._machine.wrong_state(doing, *allowed)
        self._doing = doing
        try:
            yield
        finally:
            self._doing = None

    @contextmanager
    def claim(self, doing: str) -> Iterator[None]:
        """Let only this task begin operations in the block; all other callers are refused.

        Raises:
            Conflict, NotFound: as `check`.
        """
        self.check()
        outer, token = self._claim, object()
        self._claim = (token, outer[1] if outer else doing)
        reset = _held.set((*_held.get(), token))
        try:
            yield
        finally:
            _held.reset(reset)
            self._claim = outer

    def end(self) -> None:
        """Mark the machine as deleted."""
        self._ended = True
