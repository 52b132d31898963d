"""What a new service does with the machine of an earlier one, by QEMU's status."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from bough.errors import QmpLost
from bough.machines.disks.merging import Chains
from bough.machines.forwards import Forwards
from bough.machines.reach import Reach
from bough.machines.record import MachineDisk, MachineRecord
from bough.machines.recovery import Recovery
from bough.machines.restart import Restarter
from bough.machines.state import State
from bough.machines.vm.ending import Ending
from bough.machines.vm.running import RunningVm
from bough.paths import Home

BEFORE = MachineDisk(file="0.qcow2", size_bytes=1 << 20)
OVERLAY = MachineDisk(file="0-1a2b3c4d.qcow2", size_bytes=1 << 20)


class Qemu:
    """QMP of a QEMU with one disk."""

    version = (7, 2)

    def __init__(self, status: str, file: str) -> None:
        self._status = status
        self._file = file
        self.executed: list[str] = []

    async def query(self, command: str) -> dict[str, Any]:
        assert command == "query-status"
        return {"status": self._status}

    async def query_list(self, command: str, **_: Any) -> list[dict[str, Any]]:
        if command == "query-block":
            qdev = "/machine/peripheral/disk0-device/virtio-backend"
            return [{"qdev": qdev, "inserted": {"node-name": "disk0"}}]
        return [{"drv": "qcow2", "node-name": "disk0", "file": self._file}]

    async def execute(self, command: str, **_: Any) -> None:
        self.executed.append(command)


class Process:
    killed = False

    def kill(self) -> None:
        self.killed = True

    def name_sockets(self) -> None:
        pass


class Vm:
    """A running QEMU that can be connected to, or not."""

    def __init__(self, qmp: Qemu, *, answers: bool = True) -> None:
        self.process, self.qmp = Process(), qmp
        self.adopted = self.disconnected = False
        self.ended = asyncio.Event()
        self._answers = answers

    async def connect(self, accelerator: str | None, *, adopted: bool) -> None:
        if not self._answers:
            raise QmpLost("no answer")

    async def disconnect(self) -> None:
        self.disconnected = True

    async def ended_within(self, timeout_s: float) -> bool:
        return self.process.killed


class End:
    stop_asked = False
    given_up: str | None = None


class Ports:
    bound = False

    def begin(self) -> None:
        pass

    async def bind_again(self) -> None:
        self.bound = True


class Record:
    """As much of a record as Recovery uses."""

    accelerator = "tcg"
    ports = ()
    suspended = None

    def __init__(
        self, state: State, *, identity: str, standby: bool, before: list[MachineDisk] | None
    ) -> None:
        self.state, self.identity, self.standby = state, identity, standby
        self.disks, self.disks_before = [OVERLAY], before


class Merges:
    def adopt(self) -> None:
        pass


class Host:
    """The rest of the machine: keeps what is recorded and told."""

    chains = cast(Chains, Merges())

    def __init__(self, home: Home, record: Record) -> None:
        self.paths = home.machine("aaaaaaaaaaaa")
        self._record = record
        self.changed: dict[str, Any] = {}
        self.told: list[str] = []
        self.stops = 0

    @property
    def record(self) -> MachineRecord:
        return cast(MachineRecord, self._record)

    @property
    def state(self) -> State:
        return self._record.state

    def change(self, *, event: bool = False, **fields: Any) -> None:
        self.changed |= fields

    def note(self, **fields: Any) -> bool:
        self.changed |= fields
        return True

    def tell(self, kind: str, detail: str = "") -> None:
        self.told.append(kind)

    def own(self, work: Any, what: str) -> Any:
        return asyncio.ensure_future(work)

    async def stop(self) -> str:
        self.stops += 1
        return "guest"


class Scene:
    def __init__(
        self,
        tmp_path: Path,
        status: str,
        state: State = State.RUNNING,
        *,
        identity: str = "known",
        standby: bool = False,
        before: list[MachineDisk] | None = None,
        writes_to: MachineDisk = OVERLAY,
        answers: bool = True,
    ) -> None:
        self.qmp = Qemu(status, writes_to.file)
        self.vm, self.end, self.ports = Vm(self.qmp, answers=answers), End(), Ports()
        self.host = Host(Home.at(tmp_path), Record(state, identity=identity, standby=standby, before=before))
        self.recovery = Recovery(
            self.host,
            cast(RunningVm, self.vm),
            cast(Ending, self.end),
            cast(Forwards, self.ports),
            cast(Reach, None),
            cast(Restarter, None),
        )


@pytest.mark.parametrize(
    ("status", "state", "after", "identity", "continued"),
    [
        ("running", State.RUNNING, State.RUNNING, None, False),
        ("paused", State.PAUSED, State.PAUSED, "clock", False),
        ("paused", State.RUNNING, State.RUNNING, "clock", True),
        ("postmigrate", State.RUNNING, State.RUNNING, "clock", True),
        ("prelaunch", State.PAUSED, State.PAUSED, "clock", False),
        ("suspended", State.RUNNING, State.RUNNING, None, False),
    ],
    ids=["runs", "paused by a user", "a snapshot", "a copy of memory", "reset while paused", "asleep"],
)
async def test_a_machine_goes_on_where_it_was(
    tmp_path: Path, status: str, state: State, after: State, identity: str | None, continued: bool
) -> None:
    scene = Scene(tmp_path, status, state)
    await scene.recovery.join()
    assert scene.host.changed["state"] is after
    assert scene.host.changed.get("identity") == identity
    assert scene.qmp.executed == (["cont"] if continued else [])
    assert scene.vm.adopted
    assert scene.ports.bound


async def test_a_stop_that_the_service_did_not_complete_goes_on(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "running", State.STOPPING)
    await scene.recovery.join()
    await asyncio.sleep(0)
    assert (scene.end.stop_asked, scene.host.stops) == (True, 1)


@pytest.mark.parametrize(
    ("status", "state", "standby"),
    [
        ("inmigrate", State.RUNNING, False),
        ("prelaunch", State.STARTING, False),
        ("restore-vm", State.PAUSED, True),
    ],
)
async def test_a_qemu_without_its_saved_state_is_ended(
    tmp_path: Path, status: str, state: State, standby: bool
) -> None:
    scene = Scene(tmp_path, status, state, standby=standby)
    await scene.recovery.join()
    assert scene.vm.process.killed
    assert scene.end.given_up == "it was ended: the service ended before its saved state was loaded"
    assert "state" not in scene.host.changed
    assert scene.host.told == ["lost"]


@pytest.mark.parametrize("writes_to", [OVERLAY, BEFORE], ids=["after the switch", "before the switch"])
async def test_qemu_says_which_disks_an_interrupted_snapshot_left(
    tmp_path: Path, writes_to: MachineDisk
) -> None:
    scene = Scene(tmp_path, "running", before=[BEFORE], writes_to=writes_to)
    await scene.recovery.join()
    assert scene.host.changed["disks"] == [writes_to]
    assert scene.host.changed["disks_before"] is None


async def test_a_qemu_that_does_not_answer_runs_on(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "running", answers=False)
    with pytest.raises(QmpLost):
        await scene.recovery.join()
    assert scene.vm.disconnected
    assert not scene.vm.process.killed
    assert scene.host.changed == {}
