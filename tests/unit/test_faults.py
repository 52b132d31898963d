"""The table of faults and the faults of links, without switches and machines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bough.contract.faults import AddPartition
from bough.errors import BoughError, Conflict, InvalidInput, NotFound, WrongState
from bough.hypervisor import faults as module
from bough.hypervisor.faults import Faults
from bough.hypervisor.link_faults import LinkFaults
from bough.machines.events import Events
from bough.machines.faults.present import PresentFaults
from bough.machines.faults.record import FaultRecord, new_fault_id, read_faults
from bough.machines.state import State
from bough.networks.switch.link_fault import LinkFault
from bough.service.models import message_model, to_message


@dataclass
class Record:
    network_name: str
    standby: bool = False


@dataclass(eq=False)
class Stub:
    """The parts of a machine that faults use."""

    name: str
    events: Events
    state: State = State.RUNNING
    pid: int | None = None
    told: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.record = Record(self.name)
        self.faults = PresentFaults(self)

    @property
    def id(self) -> str:
        return f"id-{self.name}"

    def tell(self, kind: str, detail: str = "") -> None:
        self.told.append((kind, detail))


@dataclass(eq=False)
class Network:
    name: str
    machines: list[Stub]

    @property
    def id(self) -> str:
        return f"net-{self.name}"


class House:
    """A home with machines on networks."""

    def __init__(self, path: Path, *names: str) -> None:
        self.path = path
        self.events = Events()
        self.machines = {f"id-{name}": Stub(name, self.events) for name in names}
        self.store: list[Network] = []
        self.told: list[list[dict[str, Any]]] = []
        self.error: BoughError | None = None
        self.start()

    def start(self) -> None:
        """Start a service of this home."""
        self.faults = Faults(self.path, self.events, self, self.store)  # type: ignore[arg-type]
        self.links = LinkFaults(self.faults, self, self)  # type: ignore[arg-type]

    # As the inventory, and as Networks.

    def get(self, machine_id: str) -> Stub | None:
        return self.machines.get(machine_id)

    def find(self, reference: str) -> Any:
        named: list[Any] = [*self.machines.values(), *self.store]
        for one in named:
            if reference in (one.name, one.id):
                return one
        raise NotFound(f"no machine is called {reference!r}")

    def users(self, network: Network) -> list[Stub]:
        return network.machines

    def ports_of(self, network: Network, machine: Stub) -> list[str]:
        return [f"{machine.name}-nic1"]

    async def tell_faults(self, network: Network) -> None:
        if self.error is not None:
            raise self.error
        self.told.append(self.links.rules_of(network))  # type: ignore[arg-type]

    # For tests.

    def network(self, name: str, *machines: str) -> None:
        self.store.append(Network(name, [self.machines[f"id-{one}"] for one in machines]))

    def machine(self, name: str) -> Stub:
        return self.machines[f"id-{name}"]

    def cuts(self) -> set[tuple[str, str]]:
        """Return the pairs (from, to) whose frames the switch touches."""
        rules = [LinkFault.from_dict(rule) for rule in self.told[-1]]
        names = [one.removeprefix("id-") for one in self.machines]
        return {
            (one, other)
            for one in names
            for other in names
            if one != other and any(rule.has(f"{one}-nic1", f"{other}-nic1") for rule in rules)
        }


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path / "faults.json", "a", "b", "c", "d", "e")
    house.network("back", "a", "b", "c", "d", "e")
    await house.faults.open()
    yield house
    await house.faults.close()


def both(*pairs: str) -> set[tuple[str, str]]:
    return {(one, other) for pair in pairs for one, other in (tuple(pair), tuple(reversed(pair)))}


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the condition does not come true")


@pytest.mark.parametrize(
    ("peers", "direction", "cuts"),
    [
        ((), "to", {("b", "a"), ("c", "a"), ("d", "a"), ("e", "a")}),
        ((), "from", {("a", "b"), ("a", "c"), ("a", "d"), ("a", "e")}),
        (("b",), "both", both("ab")),
        (("b", "c"), "from", {("a", "b"), ("a", "c")}),
    ],
)
async def test_a_link(house: House, peers: tuple[str, ...], direction: Any, cuts: set[Any]) -> None:
    fault = await house.links.link("a", peers, {"loss": 10, "delay": 0}, direction=direction)
    assert house.cuts() == cuts
    assert house.told[-1][0]["words"] == {"loss": 10}
    assert fault.summary.startswith("loss 10% ")
    assert fault.seed is not None
    assert house.machine("a").told == [("fault", f"{fault.summary} ({fault.id})")]
    await house.faults.heal(fault)
    assert house.cuts() == set()
    assert house.machine("a").told[-1] == ("healed", f"{fault.summary}: healed ({fault.id})")
    await house.faults.heal(fault)  # again: nothing happens


async def test_patterns(house: House) -> None:
    async def cut(*words: Any, **more: Any) -> set[tuple[str, str]]:
        fault = await house.links.partition(*words, network="back", **more)
        cuts = house.cuts()
        await house.faults.heal(fault)
        return cuts

    assert await cut("groups", [["a", "b"], ["c"]], ()) == both("ac", "bc")
    assert await cut("isolate", (), ("a",)) == both("ab", "ac", "ad", "ae")
    assert await cut("bridge", (), ("e",)) == both("ac", "ad", "bc", "bd")
    assert await cut("bridge", [["a"], ["b"]], ("e",)) == both("ab")
    ring = await cut("majorities-ring", (), (), seed=1)
    assert ring == {(other, one) for one, other in ring}
    sees = {one: {other for other in "abcde" if (one, other) not in ring} for one in "abcde"}
    assert all(len(seen) == 3 for seen in sees.values())
    assert len({frozenset(seen) for seen in sees.values()}) == 5
    assert await cut("majorities-ring", (), (), seed=1) == ring
    others = [await cut("majorities-ring", (), (), seed=seed) for seed in range(2, 6)]
    assert any(other != ring for other in others)


def test_each_pattern_is_a_request() -> None:
    for pattern in ("groups", "isolate", "bridge", "majorities-ring"):
        given = {"pattern": pattern, "machines": ["a"], "network": "back", "mode": "hold", "seed": 1}
        asked = to_message(AddPartition, message_model(AddPartition).model_validate(given))
        assert asked.pattern == pattern


async def test_modes(house: House) -> None:
    for mode, words in (
        ("drop", {"cut": "drop"}),
        ("hold", {"cut": "hold"}),
        ("slow", {"delay": 1, "jitter": 0.5}),
    ):
        fault = await house.links.partition("groups", [["a"], ["b"]], (), mode=mode)  # type: ignore[arg-type]
        assert house.told[-1][0]["words"] == words
        await house.faults.heal(fault)


async def test_bad_input(house: House) -> None:
    house.network("front", "a", "b")
    house.network("lone", "c")
    house.machine("d").state = State.STOPPED
    for words, error, says in (
        (("x", (), {"loss": 1}), NotFound, "no machine is called 'x'"),
        (("a", ("b",), {"loss": 1}), InvalidInput, "which network, back, front"),
        (("d", (), {"loss": 1}), WrongState, "machine 'd' is stopped"),
        (("c", ("a",), {}), InvalidInput, "changes nothing"),
        (("c", ("a",), {"loss": 120}), InvalidInput, "between 0 and 100 percent, not 120"),
        (("c", ("a",), {"loss": 120, "jitter": 1}), InvalidInput, "; jitter is at most the delay"),
    ):
        with pytest.raises(error, match=says):
            await house.links.link(*words)
    bad: list[tuple[Any, type[BoughError], str]] = [
        (("groups", [["a"], ["b", "a"]], ()), InvalidInput, "machine 'a' is named twice"),
        (("groups", [["a"]], ()), InvalidInput, "two groups or more"),
        (("groups", [["a"], []], ()), InvalidInput, "two groups or more"),
        (("isolate", (), ()), InvalidInput, "name the machines"),
        (("isolate", (), ("a", "a")), InvalidInput, "named twice"),
        (("bridge", (), ("a", "b")), InvalidInput, "a bridge is one machine"),
        (("bridge", [["a"], ["b"]], ("a",)), InvalidInput, "named twice"),
        (("majorities-ring", (), ("a", "b", "c")), InvalidInput, "4 machines or more"),
        (("majorities-ring", [["a"]], ()), InvalidInput, "has no groups"),
        (("groups", [["a"], ["d"]], ()), WrongState, "'d' is stopped"),
    ]
    for parts, kind, problem in bad:
        with pytest.raises(kind, match=problem):
            await house.links.partition(*parts, network="back")
    with pytest.raises(Conflict, match="machine 'c' is not on network 'front'"):
        await house.links.link("a", ("c",), {"loss": 1}, network="front")
    house.store[0].machines.remove(house.machine("e"))
    with pytest.raises(Conflict, match="on no common network"):
        await house.links.link("a", ("e",), {"loss": 1})
    with pytest.raises(InvalidInput, match="name the network"):
        await house.links.partition("majorities-ring", (), ())
    with pytest.raises(InvalidInput, match="a fault lasts"):
        await house.links.link("c", (), {"loss": 1}, network="back", for_s=-1)
    assert house.told == []
    assert list(house.faults) == []


async def test_contradictions(house: House) -> None:
    first = await house.links.link("a", ("b",), {"loss": 10})
    with pytest.raises(Conflict, match=f"fault {first.id} sets loss already") as error:
        await house.links.link("b", (), {"loss": 20})
    assert error.value.hint == f"bough fault heal {first.id}"
    await house.links.link("b", (), {"delay": 0.1})
    await house.links.link("c", ("d",), {"loss": 20})
    await house.links.partition("groups", [["a"], ["b"]], ())
    await house.links.partition("isolate", (), ("b",))
    with pytest.raises(Conflict, match="cuts one of these links in another way"):
        await house.links.partition("isolate", (), ("a",), mode="hold")
    assert len(list(house.faults)) == 5


async def test_a_fault_that_cannot_be_made_is_not_kept(house: House) -> None:
    house.error = BoughError("the switch cannot be started")
    with pytest.raises(BoughError, match="cannot be started"):
        await house.links.link("a", (), {"loss": 10})
    house.error = None
    # The attempt to undo failed, too: the fault is listed, and can be healed.
    for fault in house.faults:
        await house.faults.heal(fault)
    assert read_faults(house.path) == []


async def test_faults_survive_the_service(house: House) -> None:
    kept = await house.links.link("a", (), {"loss": 10})
    timed = await house.links.link("b", (), {"delay": 1}, for_s=2)
    await house.faults.close()
    house.start()
    house.faults.read()
    await house.faults.open()
    assert [fault.id for fault in house.faults] == [kept.id, timed.id]
    assert [rule["id"] for rule in house.links.rules_of(house.store[0])] == [kept.id, timed.id]  # type: ignore[arg-type]
    await until(lambda: len(list(house.faults)) == 1)
    assert house.faults.describe(kept)["machines"] == ["a"]
    assert house.faults.find(kept.id[:4]).id == kept.id
    with pytest.raises(NotFound, match="is no fault"):
        house.faults.find("x")


async def test_a_damaged_list_of_faults_keeps_no_service_from_its_start(house: House) -> None:
    house.path.write_text("{")
    house.start()
    house.faults.read()
    assert list(house.faults) == []


async def test_a_fault_ends_with_its_time(house: House) -> None:
    fault = await house.links.link("a", (), {"loss": 10}, for_s=0.01)
    await until(lambda: not list(house.faults))
    assert house.machine("a").told[-1][1].endswith(f"its time is over ({fault.id})")


async def test_a_held_fault_ends_with_its_holder(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = await house.links.link("a", (), {"loss": 10}, held=True)
    with house.faults.hold(fault), house.faults.hold(fault):
        await asyncio.sleep(0)
    await until(lambda: not list(house.faults))
    assert house.cuts() == set()
    # A client that dies before it holds:
    monkeypatch.setattr(module, "HOLD_GRACE_S", 0.01)
    await house.links.link("a", (), {"loss": 10}, held=True)
    await until(lambda: not list(house.faults))
    # The end of the service is no end of the client.
    fault = await house.links.link("a", (), {"loss": 10}, held=True)
    house.faults.closing = True
    with house.faults.hold(fault):
        await house.faults.close()
    assert len(read_faults(house.path)) == 1


async def test_a_fault_ends_with_its_machines(house: House) -> None:
    fault = await house.links.link("a", ("b",), {"loss": 10})
    await asyncio.sleep(0)
    del house.machines["id-a"]
    house.events.emit("deleted", machine="id-a", name="a")
    await until(lambda: fault.machines == ["id-b"])
    assert len(list(house.faults)) == 1
    del house.machines["id-b"]
    house.events.emit("deleted", machine="id-b", name="b")
    await until(lambda: not list(house.faults))


async def test_a_fault_in_a_process_ends_with_the_process(house: House) -> None:
    machine, undone = house.machine("a"), []

    async def undo(fault: FaultRecord) -> None:
        undone.append(fault.id)

    async def make() -> None:
        pass

    house.faults.undo["disk"] = undo
    machine.pid = 7
    fault = FaultRecord(id=new_fault_id(), kind="disk", summary="writes fail", machines=["id-a"], pid=7)
    await house.faults.begin(fault, make, for_s=None)
    with pytest.raises(Conflict, match="has a fault \\(writes fail\\); a snapshot would contain") as error:
        machine.faults.check_none("a snapshot")
    assert error.value.hint == f"bough fault heal {fault.id}"
    await asyncio.sleep(0)
    machine.pid = 8
    house.events.emit("running", machine="id-a", name="a")
    await until(lambda: not list(house.faults))
    machine.faults.check_none("a snapshot")
    assert undone == [fault.id]  # the kind itself sees that its process has ended


async def test_the_faults_of_a_deleted_network(house: House) -> None:
    await house.links.link("a", (), {"loss": 10})
    await house.faults.forget_network("net-back")
    assert list(house.faults) == []
