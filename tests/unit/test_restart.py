"""The pauses between starts of a machine that fails."""

from __future__ import annotations

from bough.machines.record import Restarts
from bough.machines.restart import CALM_S, MOST_PAUSE_S, resolve_pause


def test_the_pause_doubles_and_is_bounded() -> None:
    restarts, pauses = Restarts(), []
    for _ in range(12):
        count, pause_s = resolve_pause(restarts, ran_s=3)
        restarts = Restarts(count=count)
        pauses.append(pause_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert resolve_pause(Restarts(count=10_000_000), 0) == (10_000_001, MOST_PAUSE_S)


def test_it_begins_anew_after_a_while_of_running() -> None:
    assert resolve_pause(Restarts(count=9), CALM_S) == (1, 1)
    assert resolve_pause(Restarts(count=9), CALM_S - 1) == (10, 300)
