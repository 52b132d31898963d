"""Faults of links and machines, in real guests on one network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import pytest

import bough
from bough.errors import Conflict, InvalidInput, NotFound, WrongState
from tests.acceptance.conftest import Cli
from tests.conftest import MEMORY
from tests.waiting import wait_until

NAME = "lab"
Trio = tuple[bough.Machine, bough.Machine, bough.Machine]


@pytest.fixture(scope="module")
def trio(hv: bough.Hypervisor, debian: str) -> Iterator[Trio]:
    """Yield three machines on a network: one boots, the others fork its booted snapshot."""
    network = hv.create_network(NAME)
    machines = tuple(hv.run(debian, name=name, memory=MEMORY, nics=[NAME]) for name in ("fa", "fb", "fc"))
    for machine in machines:
        wait_until(lambda machine=machine: NAME in machine.exec("cat", "/etc/resolv.conf").stdout)  # type: ignore[misc]
    yield machines  # type: ignore[misc]
    for machine in machines:
        machine.delete(force=True)
    network.delete()


@pytest.fixture
def network(hv: bough.Hypervisor, trio: Trio) -> Iterator[bough.client.Network]:
    network = hv.network(NAME)
    yield network
    hv.heal()


def address(network: bough.client.Network, machine: bough.Machine) -> str:
    return next(one["ipv4"] for one in network.info().machines if one["machine"] == machine.name)


def ping(network: Any, machine: bough.Machine, other: bough.Machine, *words: str) -> Any:
    return machine.exec("ping", "-n", *(words or ("-c", "1", "-W", "1")), address(network, other))


def reaches(network: Any, machine: bough.Machine, other: bough.Machine) -> bool:
    return bool(ping(network, machine, other).exit_code == 0)


def wait_reaches(network: Any, machine: bough.Machine, other: bough.Machine) -> None:
    wait_until(lambda: reaches(network, machine, other), what=f"{machine.name} reaches {other.name}")


def round_trip_ms(network: Any, machine: bough.Machine, other: bough.Machine) -> float:
    """Return the shortest of some round trips."""
    done = ping(network, machine, other, "-c", "4", "-i", "0.2", "-W", "3")
    return float(done.stdout.rpartition("rtt min/avg/max/mdev = ")[2].split("/")[0])


# -- links ------------------------------------------------------------------------------------------


def test_a_delay_and_its_end(network: Any, trio: Trio, cli: Cli) -> None:
    a, b, c = trio
    wait_reaches(network, a, b)
    made = cli.json("fault", "link", "fa", "fb", "--delay", "300ms", "--jitter", "20ms")
    assert made["summary"] == "delay 300 ms, jitter 20 ms between fa and fb"
    assert round_trip_ms(network, a, b) > 560
    assert round_trip_ms(network, a, c) < 250
    assert cli.json("fault", "list") == [made]
    assert "delay 300 ms" in cli.text("fault", "list")
    assert cli.text("fault", "heal", made["id"]) == f"healed {made['id']}: {made['summary']}"
    assert round_trip_ms(network, a, b) < 250
    assert cli.json("fault", "list") == []


def test_each_word_of_the_command(network: Any, trio: Trio, cli: Cli) -> None:
    made = cli.json(
        "fault", "link", "fa", "--delay", "20ms", "--jitter", "5ms", "--loss", "5%", "--correlation", "25%",
        "--duplicate", "1", "--corrupt", "1%", "--reorder", "5%", "--rate", "1mbit", "--direction", "from",
        "--seed", "7", "--network", NAME, "--for", "1h",
    )  # fmt: skip
    assert made["seed"] == 7
    assert made["ends"] is not None
    assert cli.text("fault", "link", "fb", "fc", "--loss", "1%") in cli.text("fault", "list")
    healed = cli.json("fault", "heal", "--machine", "fa")
    assert [one["id"] for one in healed] == [made["id"]]
    assert len(cli.json("fault", "heal", "--all")) == 1


def test_losses_repeat(network: Any, trio: Trio) -> None:
    a, b, _ = trio
    wait_reaches(network, a, b)

    def lost() -> list[str]:
        with network.link_fault(a, b, direction="from", loss=40, seed=5):
            told = ping(network, a, b, "-c", "20", "-i", "0.1", "-W", "1").stdout
        return [line.split("icmp_seq=")[1].split()[0] for line in told.splitlines() if "icmp_seq=" in line]

    first = lost()
    assert 4 < len(first) < 18
    # ARP would have fates of its own: the addresses are known by now.
    assert lost() == first


def test_a_partition(network: Any, trio: Trio, cli: Cli) -> None:
    a, b, c = trio
    with network.partition([["fa"], ["fb"]]) as fault:
        assert not reaches(network, a, b)
        assert reaches(network, a, c)
        assert reaches(network, b, c)
        assert fault.is_present()
        # The name still resolves.
        assert address(network, b) in a.exec("getent", "ahostsv4", f"fb.{NAME}").stdout
    assert not fault.is_present()
    wait_reaches(network, a, b)
    cli("fault", "partition", "fa,fb", "fc", "--mode", "drop", "--for", "1h")
    assert cuts(network, trio) == ["fa fc", "fb fc"]
    cli.json("fault", "isolate", "fc", "--network", NAME, "--mode", "hold", "--for", "1h")
    assert len(network.heal()) == 2
    cli.json("fault", "isolate", "fc", "--network", NAME, "--mode", "drop", "--for", "1h")
    assert cuts(network, trio) == ["fa fc", "fb fc"]
    cli("fault", "heal", "--network", NAME)
    cli.json("fault", "bridge", "fc", "--network", NAME, "--mode", "drop", "--for", "1h")
    assert cuts(network, trio) == ["fa fb"]
    cli("fault", "heal", "--all")
    cli("fault", "bridge", "fa", "fb", "fc")
    assert cuts(network, trio) == ["fb fc"]
    assert [one.kind for one in network.heal()] == ["partition"]
    assert network.heal() == []
    with network.bridge(a, [[b], [c]]), network.link_fault(b, a, rate="1mbit"):
        assert cuts(network, trio) == ["fb fc"]


def cuts(network: Any, machines: Sequence[bough.Machine]) -> list[str]:
    """Return the pairs that do not reach each other."""
    pairs = combinations(machines, 2)
    return [f"{one.name} {other.name}" for one, other in pairs if not reaches(network, one, other)]


def test_a_ring_of_majorities(network: Any, trio: Trio, cli: Cli, gone: list[str]) -> None:
    gone.append("fd")
    four = (*trio, trio[0].fork("fd"))
    wait_until(lambda: NAME in four[3].exec("cat", "/etc/resolv.conf").stdout)
    wait_until(lambda: cuts(network, four) == [])
    ring = cli.json(
        "fault", "majorities-ring", "--network", NAME, "--seed", "1", "--mode", "drop", "--for", "1h"
    )
    cut = cuts(network, four)
    assert len(cut) == 2
    assert sorted(" ".join(cut).split()) == ["fa", "fb", "fc", "fd"]
    cli("fault", "heal", ring["id"])
    with network.majorities_ring(*four, seed=1):
        assert cuts(network, four) == cut


def test_held_frames_arrive_at_the_end(network: Any, trio: Trio) -> None:
    a, b, _ = trio
    wait_reaches(network, a, b)
    with a.spawn("ping", "-n", "-c", "5", "-i", "0.2", "-W", "60", address(network, b)) as process:
        fault = network.isolate(a, mode="hold")
        time.sleep(2)  # frames wait meanwhile
        fault.heal()
        told = b"".join(data for _, data in process).decode()
    assert "5 received" in told


def test_faults_survive_the_switch_and_the_service(
    network: Any, trio: Trio, hv: bough.Hypervisor, cli: Cli
) -> None:
    a, b, _ = trio
    cli.json("fault", "partition", "fa", "fb", "--network", NAME)
    pid = int((hv.home.network(network.id).process).read_text().split()[1])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: network.info().switch == "running")
    wait_reaches(network, a, trio[2])
    assert not reaches(network, a, b)
    hv.shutdown()
    assert not reaches(network, a, b)
    assert len(hv.heal()) == 1
    wait_reaches(network, a, b)


def test_a_fault_ends_with_the_program_that_holds_it(network: Any, trio: Trio, hv: Any) -> None:
    script = f"""
import bough, time
fault = bough.connect().network({NAME!r}).isolate("fa")
print(fault.id, flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    wanted = process.stdout.readline().decode().strip()
    assert [one.id for one in hv.faults()] == [wanted]
    time.sleep(0.5)  # the program holds the fault by now
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until(lambda: hv.faults() == [])
    wait_reaches(network, trio[0], trio[1])


def test_events(network: Any, trio: Trio, hv: bough.Hypervisor) -> None:
    before = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    network.link_fault("fa", "fb", loss=1, for_s=0.5)
    seen = []
    for event in hv.events(since=before):
        seen.append((event.kind, event.name))
        if event.kind == "healed":
            break
    assert ("fault", "fa") in seen


def test_bad_input(network: Any, trio: Trio, cli: Cli, hv: bough.Hypervisor, box: str) -> None:
    for words, says, hint in (
        (("link", "nobody", "--loss", "1%"), "no machine is called 'nobody'", None),
        (("link", "fa", "--loss", "120%"), "loss is between 0 and 100 percent, not 120", None),
        (("link", "fa", "--loss", "much"), "expected a percentage like 10%", None),
        (("link", "fa", "--rate", "fast"), "expected a rate like '1mbit'", None),
        (("link", "fa"), "the fault changes nothing", "delay"),
        (("link", "fa", box, "--loss", "1%"), "are on no common network", "network info"),
        (("link", "fa", "--loss", "1%", "--network", "rear"), "no network is called 'rear'", None),
        (("link", "fa", "--delay", "1s", "--jitter", "2s"), "jitter is at most the delay", None),
        (("partition", "fa", "fa,fb"), "machine 'fa' is named twice", "one group"),
        (("partition", "fa,fb"), "two groups or more", None),
        (("majorities-ring", "--network", NAME), "4 machines or more, not 3", None),
        (("majorities-ring", "fa", "fb", "fc", "--seed", "1", "--mode", "slow"), "4 machines", None),
        (("heal",), "name faults by id", None),
        (("heal", "ffffff"), "is no fault", "fault list"),
    ):
        cli.error("fault", *words, says=says, hint=hint)
    with network.link_fault("fa", "fb", loss=1):
        cli.error("fault", "link", "fa", "--loss", "2%", says="sets loss already", hint="fault heal")
        with pytest.raises(Conflict):
            network.link_fault("fb", loss=2)
    with pytest.raises(InvalidInput):
        network.partition([["fa"], ["fa"]])
    with pytest.raises(NotFound):
        network.isolate("nobody")
    assert hv.faults() == []


def test_a_stopped_machine_gets_no_fault(hv: bough.Hypervisor, debian: str, network: Any, gone: Any) -> None:
    gone.append("idle")
    hv.create(debian, name="idle", nics=[NAME])
    with pytest.raises(WrongState, match="machine 'idle' is stopped"):
        network.isolate("idle")
