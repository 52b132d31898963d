"""The life of a machine with a QEMU that has no guest: start, pause, stop, failure, adoption."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from bough.errors import Conflict, MachineFailed, WrongState
from bough.machines import machine as module
from bough.machines.events import Event, Events
from bough.machines.machine import Machine
from bough.machines.record import Hardware, MachineRecord, PortForward
from bough.machines.saved_state import ProcessImage, SavedState
from bough.machines.state import State
from bough.paths import Home, MachinePaths
from bough.qemu.plan import Plan
from bough.qemu.process import QemuProcess
from bough.qemu.ram import Template
from bough.qemu.waiter_files import ExitCause
from bough.spec import parse_spec
from tests.unit.fake_qemu import CLEAN, KILLED, FakeQemu


@dataclass
class TcgPlan:
    """As much of a plan as a start uses."""

    accelerator: str = "tcg"
    accelerator_note: str | None = None
    cpu_model: str = "max"
    from_template: bool = False
    prewarm: bool = False

    def for_boot(self) -> TcgPlan:
        return replace(self, cpu_model="boots-with-this")


class Memory:
    def fileno(self) -> int:
        return 0


class Image:
    """A process image that fits every plan."""

    distrusted: str | None = None

    def fits(self, plan: Plan) -> bool:
        return self.distrusted is None

    def distrust(self, machine_id: str, why: str) -> None:
        self.distrusted = why


class Scene:
    """A machine and its QEMUs, one for each start."""

    def __init__(self, home: Home, **fields: Any) -> None:
        self.qemus: list[FakeQemu] = []
        self.events = Events()
        self.told: list[Event] = []
        self.refuses: MachineFailed | None = None
        self.powers_off = True
        self._home = home
        self._stack = contextlib.AsyncExitStack()
        self.paths = home.machine("aaaaaaaaaaaa")
        for directory in (self.paths.root, self.paths.disks, self.paths.log):
            directory.mkdir(parents=True, exist_ok=True)
        self.machine = self.make(_record(**fields))

    def make(self, record: MachineRecord) -> Machine:
        return Machine(record, self.paths, self.events, self._plan, lambda: None, self._launch)

    @property
    def qemu(self) -> FakeQemu:
        return self.qemus[-1]

    async def end(self) -> None:
        await self.machine.let_go()
        await self._stack.aclose()

    async def _plan(self, record: MachineRecord, paths: MachinePaths) -> Plan:
        return cast(Plan, TcgPlan())

    async def _launch(
        self, plan: Plan, paths: MachinePaths, *, loader: object = None, **_: Any
    ) -> QemuProcess:
        if self.refuses is not None:
            raise self.refuses
        qemu = FakeQemu(powers_off=self.powers_off)
        if plan.from_template:
            qemu.has_state, qemu.status = loader is not None, "paused"
        self.qemus.append(qemu)
        await self._stack.enter_async_context(qemu.listening(paths))
        return cast(QemuProcess, qemu)

    async def reaches(self, state: State) -> None:
        async with asyncio.timeout(5):
            while self.machine.state is not state:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


def _record(**fields: Any) -> MachineRecord:
    hardware = Hardware(
        arch="x86_64", machine_type="pc-q35-7.2", cpu_model="max", firmware="bios",
        uuid="u", vmgenid="v", nics=[], uid=None,
    )  # fmt: skip
    return MachineRecord(
        id="aaaaaaaaaaaa", name="web", spec=parse_spec({"image": "test:1"}), image_digest="0" * 64,
        image_agent=True, created="2020-01-01T00:00:00.000+00:00", hardware=hardware, **fields,
    )  # fmt: skip


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(Home.at(tmp_path))
    yield scene
    await scene.end()


async def test_a_start_and_a_stop_of_the_guest(scene: Scene) -> None:
    machine = scene.machine
    await machine.start()
    assert (machine.state, machine.record.accelerator) == (State.RUNNING, "tcg")
    assert machine.agent_state == "silent"
    assert await machine.stop() == "guest"
    assert (machine.state, machine.pid, machine.record.failure) == (State.STOPPED, None, None)
    assert "system_powerdown" in scene.qemu.executed
    assert MachineRecord.read(scene.paths).state is State.STOPPED
    with pytest.raises(WrongState, match="is stopped; this needs it running"):
        machine.qmp()


async def test_a_boot_keeps_its_cpu_and_saved_memory_the_old_one(scene: Scene) -> None:
    await scene.machine.start(
        saved=SavedState(cast(Template, Memory()), b"", image=cast(ProcessImage, Image()))
    )
    assert scene.machine.record.hardware.cpu_model == "max"
    await scene.machine.stop(force=True)
    await scene.machine.start()
    assert MachineRecord.read(scene.paths).hardware.cpu_model == "boots-with-this"


async def test_a_forced_stop_and_a_second_start(scene: Scene) -> None:
    machine = scene.machine
    await machine.start()
    assert await machine.stop(force=True) == "power"
    assert "quit" in scene.qemu.executed
    await machine.start()
    assert (machine.state, len(scene.qemus)) == (State.RUNNING, 2)
    assert await machine.stop(force=True, flush=False) == "power"
    assert machine.state is State.STOPPED
    assert "quit" not in scene.qemu.executed


async def test_a_guest_that_ignores_its_power_button(scene: Scene) -> None:
    scene.powers_off = False
    await scene.machine.start()
    assert await scene.machine.stop(deadline_s=0.05) == "power"
    assert scene.machine.state is State.STOPPED


async def test_pause_and_resume(scene: Scene) -> None:
    machine = scene.machine
    await machine.start()
    await machine.pause()
    assert (machine.state, scene.qemu.status) == (State.PAUSED, "paused")
    await machine.resume()
    assert (machine.state, scene.qemu.status) == (State.RUNNING, "running")
    with pytest.raises(WrongState, match="resuming needs it paused"):
        await machine.resume()


async def test_qemu_stops_the_vcpus_by_itself(scene: Scene) -> None:
    await scene.machine.start()
    scene.qemu.emit("BLOCK_IO_ERROR", nospace=True)
    scene.qemu.emit("STOP")
    await scene.reaches(State.PAUSED)
    scene.qemu.emit("RESUME")
    await scene.reaches(State.RUNNING)


async def test_a_qemu_that_is_killed_makes_a_failure(scene: Scene) -> None:
    machine = scene.machine
    await machine.start()
    scene.qemu.end(KILLED)
    await machine.readiness.wait_stopped(timeout_s=5)
    assert machine.state is State.FAILED
    assert machine.record.failure is not None
    assert machine.record.failure.signal == "SIGKILL"
    with pytest.raises(MachineFailed, match="QEMU was killed by SIGKILL"):
        raise machine.ended_error("meanwhile")


async def test_the_guest_powers_itself_off(scene: Scene) -> None:
    await scene.machine.start()
    scene.qemu.emit("SHUTDOWN", guest=True, reason="guest-shutdown")
    await asyncio.sleep(0)
    scene.qemu.end(CLEAN)
    await scene.reaches(State.STOPPED)


async def test_a_qemu_that_does_not_start(scene: Scene) -> None:
    scene.refuses = MachineFailed("no such CPU", qemu_stderr="qemu: no such CPU", exit_status=1)
    with pytest.raises(MachineFailed) as caught:
        await scene.machine.start()
    assert caught.value.message == "machine 'web' did not start: no such CPU"
    assert scene.machine.state is State.FAILED
    assert scene.machine.record.failure is not None
    assert scene.machine.record.failure.qemu_stderr == "qemu: no such CPU"


async def test_a_second_operation_is_refused(scene: Scene) -> None:
    await scene.machine.start()
    async with scene.machine.operation("being copied", State.RUNNING):
        with pytest.raises(Conflict, match="machine 'web' is being copied just now"):
            await scene.machine.pause()
    await scene.machine.pause()


async def test_ports_are_bound_while_the_machine_runs(scene: Scene) -> None:
    machine = scene.machine
    with pytest.raises(WrongState, match="a free port can be chosen only while it runs"):
        await machine.forwards.add(PortForward(host_port=0, guest_port=80))
    await machine.start()
    added = await machine.forwards.add(PortForward(host_port=0, guest_port=80))
    assert added.host_port > 0
    with pytest.raises(Conflict, match=f"forwards port {added.host_port} already"):
        await machine.forwards.add(added)
    await machine.stop(force=True)
    await machine.start()
    assert machine.record.ports == [added]
    await machine.forwards.remove(added.host_port)
    assert MachineRecord.read(scene.paths).ports == []


async def test_a_free_port_keeps_its_number(scene: Scene) -> None:
    scene.machine = machine = scene.make(_record(ports=[PortForward(host_port=0, guest_port=80)]))
    await machine.start()
    (chosen,) = machine.record.ports
    assert (chosen.host_port > 0, chosen.free, chosen.guest_port) == (True, True, 80)
    await machine.stop(force=True)
    await machine.start()
    assert machine.record.ports == [chosen]
    await machine.stop(force=True)
    with socket.create_server(("127.0.0.1", chosen.host_port)):
        await machine.start()
    assert machine.record.ports[0].host_port not in (0, chosen.host_port)


async def test_a_fork_loaded_in_advance_is_taken_by_a_user(scene: Scene) -> None:
    scene.machine = machine = scene.make(_record(standby=True))
    saved = SavedState(cast(Template, Memory()), b"", image=cast(ProcessImage, Image()))
    await machine.start(saved=saved, hold=True)
    assert (machine.state, machine.vm.image) == (State.PAUSED, saved.image)
    assert "cont" not in scene.qemu.executed
    await machine.go_on(saved, name="db", ephemeral=True)
    assert (machine.state, machine.name, machine.record.standby) == (State.RUNNING, "db", False)
    assert "cont" in scene.qemu.executed


async def test_a_process_image_that_crashed_is_not_used_again(scene: Scene) -> None:
    image = Image()
    saved = SavedState(cast(Template, Memory()), b"", image=cast(ProcessImage, image))
    await scene.machine.start(saved=saved)
    scene.qemu.end(ExitCause(None, "SIGSEGV", "", "QEMU was killed by SIGSEGV"))
    await scene.reaches(State.FAILED)
    assert image.distrusted == "QEMU was killed by SIGSEGV"
    assert scene.machine.vm.image is None


async def test_a_new_service_adopts_the_machine(scene: Scene) -> None:
    await scene.machine.start()
    await scene.machine.let_go()
    assert scene.qemu.is_alive()
    scene.machine = again = scene.make(MachineRecord.read(scene.paths))
    again.vm.hold(cast(QemuProcess, scene.qemu))
    await again.recovery.join()
    assert (again.state, again.vm.adopted) == (State.RUNNING, True)
    assert await again.stop() == "guest"
    assert again.state is State.STOPPED


async def test_a_machine_without_a_qemu_was_lost_with_its_host(scene: Scene) -> None:
    scene.machine = lost = scene.make(_record(state=State.RUNNING))
    await lost.recovery.adopt()
    assert lost.state is State.FAILED
    assert lost.record.failure is not None
    assert lost.record.failure.cause.startswith("its QEMU ended unobserved")


def test_machine_is_a_facade() -> None:
    lines = Path(module.__file__).read_text().splitlines()
    assert len(lines) <= 300, "put what a machine does in a class of its own, below vm/ for example"
