"""The use cases of faults of machines: what is asked of QEMU and of the guest, and what undoes it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bough.errors import AgentUnavailable, BoughError, Conflict, GuestRefused, InvalidInput, WrongState
from bough.hypervisor import machine_faults
from bough.hypervisor.faults import Faults
from bough.hypervisor.machine_faults import MachineFaults
from bough.machines.events import Events
from bough.machines.faults.present import PresentFaults
from bough.machines.record import MachineDisk
from bough.machines.state import State
from tests.unit.test_machine_faults import FakeQmp

MIB = 1 << 20


class Session:
    """A command in the guest: its output, and its exit code."""

    def __init__(self, output: bytes, code: int) -> None:
        self._output = output
        self.exit = SimpleNamespace(code=code, error=None)

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        yield "stdout", self._output

    async def abort(self) -> None:
        pass


class Guest:
    """An agent.

    Attributes:
        ran: the words of each script.
        clocks: the times that were set, relative to the host's.
        answers: part of a script -> its output and exit code.
    """

    def __init__(self) -> None:
        self.ran: list[tuple[str, list[str]]] = []
        self.clocks: list[float] = []
        self.answers: dict[str, tuple[bytes, int]] = {}
        self.is_gone = False

    async def exec(self, request: Any) -> Session:
        script, words = request.argv[2], request.argv[4:]
        self.ran.append((script, words))
        found = next((told for part, told in self.answers.items() if part in script), (b"", 0))
        return Session(*found)

    async def call(self, operation: str, arguments: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        import time

        assert operation == "set_clock"
        self.clocks.append(arguments["unix_ns"] / 1e9 - time.time())
        return {}

    async def ping(self, timeout_s: float) -> float:
        return 0.0

    def words_of(self, part: str) -> list[list[str]]:
        return [words for script, words in self.ran if part in script]


class Stub:
    """The parts of a machine that its faults use."""

    def __init__(self, events: Events) -> None:
        card = SimpleNamespace(network="back")
        self.record = SimpleNamespace(
            name="db",
            disks=[MachineDisk(file="0.qcow2", size_bytes=64 * MIB)],
            media=SimpleNamespace(root="image"),
            spec=SimpleNamespace(network_cards=[card], clock_offset_s=None, vcpus=3),
            hardware=SimpleNamespace(nics=[SimpleNamespace(place=0)]),
            clock_fault=None,
            spare=False,
            standby=False,
        )
        self.id, self.name, self.pid, self.boot_id = "id-db", "db", 7, "boot"
        self.state = State.RUNNING
        self.faults = PresentFaults(self)
        self.guest, self.qemu = Guest(), Qemu()
        self.told: list[str] = []
        self.looked = 0
        self.chains = SimpleNamespace(give_way=self._give_way, look=self._look)
        self._events = events

    async def _give_way(self) -> None:
        pass

    def _look(self) -> None:
        self.looked += 1

    def qmp(self) -> Qemu:
        return self.qemu

    async def agent(self) -> Guest:
        if self.guest.is_gone:
            raise AgentUnavailable("the agent does not answer")
        return self.guest

    def answering(self) -> Guest:
        return self.guest

    @contextlib.asynccontextmanager
    async def operation(self, doing: str, *allowed: State) -> AsyncIterator[None]:
        if self.state not in allowed:
            raise self.wrong_state(doing, *allowed)
        yield

    def wrong_state(self, doing: str, *_: State) -> WrongState:
        return WrongState(f"{doing} needs another state")

    async def pause(self) -> None:
        self.state = State.PAUSED

    async def resume(self) -> None:
        self.state = State.RUNNING

    def change(self, **fields: Any) -> None:
        self.record.__dict__.update(fields)

    def tell(self, kind: str, detail: str = "") -> None:
        self.told.append(kind)

    def own(self, work: Coroutine[Any, Any, None], _: str) -> None:
        work.close()


class Qemu(FakeQmp):
    """Attributes:
    links: card -> whether its cable is in.
    status: of the vCPUs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.links: dict[str, bool] = {}
        self.status = "running"

    async def execute(self, command: str, **given: Any) -> None:
        if command == "set_link":
            self.links[given["name"]] = given["up"]
        else:
            await super().execute(command, **given)

    async def query(self, _: str) -> dict[str, Any]:
        return {"status": self.status}


class House:
    def __init__(self, path: Path) -> None:
        self.events = Events()
        self.machine: Any = Stub(self.events)
        self.faults = Faults(path, self.events, self, [])  # type: ignore[arg-type]
        self.use = MachineFaults(self.faults, self)  # type: ignore[arg-type]

    def get(self, machine_id: str) -> Any:
        return self.machine if machine_id == "id-db" else None


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "faults.json")


async def test_a_cable(house: House) -> None:
    machine = house.machine
    fault = await house.use.unplug(machine, None)
    assert machine.qemu.links == {"nic0-device": False}
    with pytest.raises(Conflict, match="the cable is pulled already"):
        await house.use.unplug(machine, "back")
    with pytest.raises(Conflict, match="a snapshot would contain"):
        machine.faults.check_none("a snapshot")
    await house.faults.heal(fault)
    assert machine.qemu.links == {"nic0-device": True}
    machine.faults.check_none("a snapshot")
    assert machine.told == ["fault", "healed"]


async def test_a_disk(house: House) -> None:
    machine = house.machine
    fault = await house.use.fail_disk(machine, 0, "write", rate=1)
    assert fault.seed is not None
    assert machine.qemu.node == f"fault-{fault.id}"
    for again in (house.use.fail_disk(machine, 0, "read"), house.use.throttle_disk(machine, 0, iops=5)):
        with pytest.raises(Conflict, match="the disk has a fault already"):
            await again
    machine.qemu.status, machine.state = "io-error", State.PAUSED
    await house.faults.heal(fault)
    assert (machine.qemu.node, machine.state, machine.looked) == ("disk0", State.RUNNING, 1)
    slow = await house.use.throttle_disk(machine, 0, bytes_per_s=MIB)
    assert slow.summary == "disk 0 of db throttled to 1 MiB/s"
    machine.pid = 8  # the next QEMU has no fault
    await house.faults.heal(slow)
    assert machine.qemu.node == f"fault-{slow.id}"
    with pytest.raises(InvalidInput, match="has 1 disks: 0 to 0"):
        await house.use.fail_disk(machine, 1, "read")


async def test_a_disk_that_qemu_refuses(house: House) -> None:
    house.machine.qemu.refuses = "blockdev-add"
    with pytest.raises(BoughError):
        await house.use.fail_disk(house.machine, 0, "write")
    assert list(house.faults) == []
    assert house.machine.qemu.node == "disk0"


async def test_a_clock(house: House) -> None:
    machine, guest = house.machine, house.machine.guest
    guest.answers["systemctl stop"] = (b"systemd-timesyncd\nchrony\n", 0)
    fault = await house.use.set_clock(machine, jump_s=-3600, drift_ppm=50)
    assert guest.clocks[-1] == pytest.approx(-3600, abs=5)
    assert guest.words_of("adjtimex") == [["50.000000000", "3276800", "10000"]]
    assert fault.summary == "clock of db 1 h 0 min behind, 50 ppm too fast"
    with pytest.raises(Conflict, match="the clock is wrong already"):
        await house.use.set_clock(machine, jump_s=1)
    await house.faults.heal(fault)
    assert guest.clocks[-1] == pytest.approx(0, abs=5)
    assert guest.words_of("adjtimex")[-1] == ["0.000000000", "0", "10000"]
    assert guest.words_of("systemctl start") == [["systemd-timesyncd", "chrony"]]
    for given in ({}, {"jump_s": 1.0, "to": 5.0}, {"drift_ppm": 1e6}, {"jump_s": 1e12}):
        with pytest.raises(InvalidInput):
            await house.use.set_clock(machine, **given)


async def test_a_clock_of_a_silent_guest_stays_listed(house: House) -> None:
    machine = house.machine
    fault = await house.use.set_clock(machine, jump_s=100)
    machine.guest.is_gone = True
    with pytest.raises(AgentUnavailable):
        await house.faults.heal(fault)
    assert [one.id for one in house.faults] == [fault.id]
    assert machine.record.clock_fault is not None
    machine.guest.is_gone = False
    await house.faults.heal(fault)
    assert machine.record.clock_fault is None


async def test_pressure(house: House) -> None:
    machine, guest = house.machine, house.machine.guest
    for given, words in (
        ({"loops": 0}, "3"),
        ({"memory_bytes": 5 * MIB}, str(5 * MIB)),
    ):
        fault = await house.use.press(machine, **given)
        assert guest.ran[-1][1] == [f"/run/bough-fault-{fault.id}", words]
        await house.faults.heal(fault)
        assert guest.ran[-1][1] == [f"/run/bough-fault-{fault.id}"]
    fault = await house.use.press(machine, full="/var")
    assert guest.ran[-1][1] == ["/var", f".bough-fault-{fault.id}"]
    guest.answers["fallocate"] = (b"/nowhere is no directory\n", 1)
    with pytest.raises(GuestRefused, match="of machine 'db' refused: /nowhere is no directory"):
        await house.use.press(machine, full="/nowhere")
    assert [one.id for one in house.faults] == [fault.id]
    bad: list[dict[str, Any]] = [{}, {"loops": 1, "full": "/"}, {"loops": 1000}, {"full": "var"}]
    for senseless in (*bad, {"memory_bytes": 0}):
        with pytest.raises(InvalidInput):
            await house.use.press(machine, **senseless)


async def test_pressure_begins_again_after_a_reboot(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_faults, "_LOOK_S", 0.001)
    machine, guest, tasks = house.machine, house.machine.guest, []
    monkeypatch.setattr(machine, "own", lambda work, _: tasks.append(asyncio.create_task(work)))
    fault = await house.use.press(machine, loops=2)
    other = await house.use.press(machine, memory_bytes=MIB)

    async def reboots(boot: str) -> list[list[str]]:
        before = len(guest.ran)
        machine.boot_id = None
        await asyncio.sleep(0.02)
        assert len(guest.ran) == before
        guest.is_gone, machine.boot_id = True, boot
        await asyncio.sleep(0.02)  # the agent does not answer yet
        guest.is_gone = False
        await asyncio.sleep(0.02)
        return sorted(words for _, words in guest.ran[before:])

    wanted = sorted([[f"/run/bough-fault-{fault.id}", "2"], [f"/run/bough-fault-{other.id}", str(MIB)]])
    assert await reboots("second") == wanted
    guest.answers["head -c"] = (b"the guest has only 0 MiB of memory\n", 1)
    await reboots("third")
    assert [one.id for one in house.faults] == [fault.id]
    await house.faults.heal(fault)
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert machine.told == ["fault", "fault", "healed", "healed"]


async def test_a_pause(house: House) -> None:
    fault = await house.use.pause(house.machine)
    assert house.machine.state == "paused"
    await house.faults.heal(fault)
    assert house.machine.state == "running"


async def test_a_stopped_machine_gets_no_fault(house: House) -> None:
    house.machine.state = State.STOPPED
    use, machine = house.use, house.machine
    for attempt in (
        use.unplug(machine, None),
        use.pause(machine),
        use.fail_disk(machine, 0, "read"),
        use.throttle_disk(machine, 0, iops=1),
        use.set_clock(machine, jump_s=1),
        use.press(machine, loops=1),
        use.strike(machine, "reset"),
        use.kill(machine, unit="a", process=None, signal="KILL"),
    ):
        with pytest.raises(WrongState):
            await attempt
    assert machine.told == []


async def test_a_long_fault_delays_no_other(house: House) -> None:
    begun, end = asyncio.Event(), asyncio.Event()
    machine = house.machine

    async def slow_exec(_: Any) -> Session:
        begun.set()
        await end.wait()
        return Session(b"", 0)

    machine.guest.exec = slow_exec
    filling = asyncio.create_task(house.use.press(machine, full="/"))
    await begun.wait()
    await house.faults.heal(await house.use.unplug(machine, None))
    (listed,) = house.faults
    healing = asyncio.create_task(house.faults.heal(listed))
    await asyncio.sleep(0.01)
    assert not healing.done()  # a fault is not undone while it is being made
    end.set()
    await asyncio.gather(filling, healing)
    assert list(house.faults) == []
