"""Observation of a guest without an agent, with a fake of its machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bough.errors import BootFailed, MachineFailed, WrongState
from bough.machines import boot_sight
from bough.machines.boot_sight import BootSight
from bough.machines.state import State
from bough.progress import Progress


class Machine:
    """A machine whose guest has printed `text`."""

    def __init__(self, root: Path, text: str, *, state: State = State.RUNNING, qga: bool = False) -> None:
        self.name, self.state = "web", state
        self.pid = os.getpid()
        self.agent_state = "qemu-guest-agent" if qga else "none"
        self.paths: Any = SimpleNamespace(console_log=root / "console.log")
        self.paths.console_log.write_text("from the boot before: login: " + text)
        self.record: Any = SimpleNamespace(media=SimpleNamespace(display=False))
        self._console: Any = SimpleNamespace(printed=len(text.encode()))

    def console(self) -> Any:
        if self.state is not State.RUNNING:
            raise WrongState("it does not run")
        return self._console

    def screen(self) -> Any:
        raise AssertionError("it has none")

    def console_tail(self) -> str:
        return "the end"

    def ended_error(self, when: str) -> MachineFailed:
        return MachineFailed(f"it stopped {when}")


async def look(machine: Machine, timeout_s: float | None = None) -> tuple[BootSight, list[str]]:
    told: list[Progress] = []
    sight = BootSight(machine)
    sight.new_boot()
    await sight.wait(timeout_s, told.append)
    return sight, [step.step for step in told if step.notice]


async def test_what_is_seen_is_told_and_kept(tmp_path: Path) -> None:
    sight, told = await look(Machine(tmp_path, "Debian 12 ttyS0\n\nweb login: "))
    assert told == ["web shows a login prompt: 'web login:'"]
    assert sight.describe() == {
        "kind": "login", "says": "a login prompt", "line": "web login:", "failed": False,
    }  # fmt: skip
    again: list[Progress] = []
    await sight.wait(None, again.append)
    assert again == [], "it is looked at once for each start"


async def test_an_agent_of_qemus_ends_the_look(tmp_path: Path) -> None:
    _, told = await look(Machine(tmp_path, "booting", qga=True))
    assert told == ["web shows a qemu-guest-agent that answers"]


async def test_a_guest_that_does_not_come_up_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BootFailed, match="found nothing to boot: 'No bootable device.'") as caught:
        await look(Machine(tmp_path, "No bootable device.\n"))
    assert caught.value.details == {"machine": "web", "seen": "nothing-to-boot", "console": "the end"}


async def watch(machine: Machine, patience_s: float = 60) -> tuple[BootSight, list[str]]:
    told: list[Progress] = []

    def report(step: Progress) -> None:
        told.append(step)
        machine.state = State.STOPPED  # end the watch

    sight = BootSight(machine)
    sight.new_boot()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            await sight.watch_for_failure(report)
    return sight, [step.step for step in told if step.notice]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOOK_EVERY_S", "_STAYS_S", "_PASSES_S", "_QUIET_S"):
        monkeypatch.setattr(boot_sight, name, 0.02)


PANIC = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n"


@pytest.mark.usefixtures("fast")
async def test_a_guest_with_an_agent_that_finds_no_root(tmp_path: Path) -> None:
    sight, told = await watch(Machine(tmp_path, PANIC))
    assert sight.has_failed.is_set()
    assert told == []
    assert sight.sight is not None
    assert "Unable to mount root fs" in sight.error(sight.sight).message
    sight.new_boot()
    assert not sight.has_failed.is_set()


@pytest.mark.usefixtures("fast")
async def test_a_guest_that_goes_on_has_not_failed(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "initramfs: Waiting for /dev/vda3 to appear\n")

    class Console:
        @property
        def printed(self) -> int:
            return machine.paths.console_log.stat().st_size

    machine._console = Console()

    async def go_on() -> None:
        for number in range(20):
            await asyncio.sleep(0.01)
            with machine.paths.console_log.open("a") as log:
                log.write(f"Started something {number}\n")

    going = asyncio.create_task(go_on())
    sight, _ = await watch(machine, 0.15)
    await going
    assert not sight.has_failed.is_set()


@pytest.mark.usefixtures("fast")
async def test_a_passphrase_is_asked_for(tmp_path: Path) -> None:
    sight, told = await watch(Machine(tmp_path, "Please unlock disk vda3_crypt: "))
    assert told == [
        "web shows a prompt for a passphrase: 'Please unlock disk vda3_crypt:': bough console web"
    ]
    assert not sight.has_failed.is_set()


async def test_one_that_ended_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MachineFailed, match="while it booted"):
        await look(Machine(tmp_path, "", state=State.FAILED))
    _, told = await look(Machine(tmp_path, "", state=State.STOPPED))
    assert told == ["web is stopped"]


async def test_what_is_not_recognized_is_quoted(tmp_path: Path) -> None:
    _, told = await look(Machine(tmp_path, "Starting\x1b[31m the engine\r\n"), timeout_s=0.001)
    assert told == ["web has no agent; the last line on its console is 'Starting the engine'"]
    _, told = await look(Machine(tmp_path, ""), timeout_s=0.001)
    assert told == [
        "web has no agent, and its console is silent; a machine created with --display has a screen"
    ]
