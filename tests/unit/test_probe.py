"""Accelerators that do not run their probe guest: lifetime of that result, with a fake of QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from bough.paths import Home
from bough.qemu.accelerators import try_guest
from bough.qemu.facts import cached_fact
from bough.qemu.probe_guest import TOKEN
from bough.qemu.questions import Done, Watched, run_program


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


class Host:
    """A host with the processor time of the guest for each attempt; None: the guest ended."""

    def __init__(self, *used_s: float | None) -> None:
        self.used_s = list(used_s)
        self.asked = 0

    async def __call__(self, watch: Watched) -> Done | None:
        self.asked += 1
        used_s = self.used_s.pop(0)
        watch.used_s, watch.took_s = used_s or 0.1, 9.0
        return None if used_s is not None else Done(33, TOKEN, b"")


@pytest.mark.parametrize(
    ("used_s", "usable", "attempts", "lasts_s"),
    [
        pytest.param([None], True, 1, None, id="it works"),
        pytest.param([0.3, None], True, 2, None, id="a busy host, then it works"),
        pytest.param([0.3, 0.4], False, 2, 600, id="a busy host: asked again soon"),
        pytest.param([2.0], False, 1, 86400, id="it had its time, and is too slow"),
    ],
)
async def test_what_is_made_of_attempts(
    used_s: list[float | None], usable: bool, attempts: int, lasts_s: float | None
) -> None:
    host = Host(*used_s)
    found = await try_guest("kvm", "EPYC", "x86_64", host)
    assert (found.usable, host.asked, found.lasts_s) == (usable, attempts, lasts_s)
    assert found.tried is not usable


async def test_a_finding_lasts_as_long_as_it_says(home: Home) -> None:
    now_s = [1000.0]
    found = iter(["no", "yes", "never"])

    async def find() -> str:
        return next(found)

    async def ask() -> str:
        def lasts_s(value: str) -> float | None:
            return 600.0 if value == "no" else None

        return str(await cached_fact(home, "kvm", [], find, lasts_s=lasts_s, clock=lambda: now_s[0]))

    assert await ask() == "no"
    now_s[0] += 599
    assert await ask() == "no"
    now_s[0] += 2
    assert await ask() == "yes"
    now_s[0] += 1e6
    assert await ask() == "yes", "a yes counts until the host boots"


@pytest.mark.parametrize(
    ("script", "start_s", "quiet_s"),
    [
        pytest.param("while :; do :; done", 0.6, 60.0, id="nothing runs"),
        pytest.param("echo .; while :; do :; done", 60.0, 0.6, id="it runs, and too slowly"),
    ],
)
async def test_start_and_run_have_bounds_of_their_own(script: str, start_s: float, quiet_s: float) -> None:
    watch = Watched(quiet_s, most_s=60.0, start_s=start_s)
    assert await run_program(["sh", "-c", script], watch) is None
    assert watch.had_its_time
    assert watch.took_s < 30


async def test_a_slow_start_leaves_the_run_all_its_time() -> None:
    script = "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done; echo ok"
    done = await run_program(["sh", "-c", script], Watched(0.05, most_s=60.0, start_s=60.0))
    assert done == Done(0, b"ok\n", b"")
