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
    machines = tuple(
        hv.run(debian, name=name, memory=MEMORY, nics=[NAME], disks=["64MiB"]) for name in ("fa", "fb", "fc")
    )
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
    for machine in (a, b):  # a frame of ARP has a fate, too, and shifts the fates of later frames
        machine.shell(
            "ip -4 neigh show | grep -o '.* lladdr [0-9a-f:]*' |"
            " while read line; do ip neigh replace $line nud permanent || exit; done",
            check=True,
        )

    def lost() -> list[str]:
        with network.link_fault(a, b, direction="from", loss=40, seed=5):
            told = ping(network, a, b, "-c", "20", "-i", "0.1", "-W", "1").stdout
        return [line.split("icmp_seq=")[1].split()[0] for line in told.splitlines() if "icmp_seq=" in line]

    first = lost()
    assert 4 < len(first) < 18
    # Other frames are rare: neighbour discovery of IPv6, for one.
    runs = [first, *(lost() for _ in range(4))]
    assert any(runs.count(run) > 1 for run in runs)


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
    assert len(network.heal()) == 1
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
    cli("list")  # starts the service
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
        if ("fault", "fa") in seen and event.kind == "healed":  # an earlier fault may end in the same second
            break
    assert ("healed", "fa") in seen[seen.index(("fault", "fa")) :]


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


# -- machines ---------------------------------------------------------------------------------------


@pytest.fixture
def prey(trio: Trio, hv: bough.Hypervisor) -> Iterator[bough.Machine]:
    """Yield a fork to be broken."""
    machine = trio[2].fork("prey")
    yield machine
    machine.delete(force=True)
    assert hv.faults() == []


def test_a_pulled_cable(network: Any, trio: Trio, cli: Cli) -> None:
    a, b, _ = trio
    carrier = "cat /sys/class/net/e*/carrier"
    assert a.succeed(carrier).strip() == "1"
    made = cli.json("fault", "unplug", "fa", "--network", NAME, "--for", "1h")
    assert a.succeed(carrier).strip() == "0"
    with pytest.raises(Conflict, match="the cable is pulled already"):
        a.unplug()
    with pytest.raises(Conflict, match="a snapshot would contain the fault"):
        a.snapshot()
    cli("fault", "heal", made["id"])
    wait_until(lambda: a.succeed(carrier).strip() == "1")
    wait_reaches(network, a, b)
    with a.unplug():
        assert a.succeed(carrier).strip() == "0"


def test_disks_that_fail(trio: Trio, prey: bough.Machine, cli: Cli) -> None:
    # The second disk: nothing else in the guest reads or writes there.
    read = "dd if=/dev/vdb of=/dev/null bs=4096 count=1 iflag=direct"
    write = "dd if=/dev/zero of=/dev/vdb bs=4096 count=1 oflag=direct"
    with prey.disk_fault("read", disk=1, once=True):
        assert "Input/output error" in prey.fail(f"{read} 2>&1")
        prey.succeed(read, write)
        with pytest.raises(Conflict, match="the disk has a fault already"):
            prey.disk_throttle(disk=1, iops=100)
        with pytest.raises(Conflict, match="fails with EIO\\); a snapshot would contain"):
            prey.snapshot()
    made = cli.json("fault", "disk", "prey", "read", "--rate", "100%", "--range", "0", "1MiB", "--disk", "1",
                    "--seed", "3", "--for", "1h", "--error", "EIO")  # fmt: skip
    assert made["seed"] == 3
    prey.fail(read)
    prey.succeed(f"{read} skip=256")
    assert cli.text("fault", "heal", "--machine", "prey") == f"healed {made['id']}: {made['summary']}"
    prey.succeed(read)
    # A full disk of the host pauses the machine; the write goes on when there is space.
    full = prey.disk_fault("write", disk=1, error="ENOSPC")
    with prey.spawn("sh", "-c", write) as process:
        wait_until(lambda: prey.state == "paused")
        full.heal()
        assert process.wait().code == 0
    assert prey.state == "running"
    prey.snapshot().delete()
    cli("fault", "disk", "prey", "write", "--disk", "1", "--once")
    prey.fail(write)
    cli("fault", "heal", "--all")
    with prey.disk_fault("flush", disk=1):
        prey.fail(f"{write} conv=fsync")
    prey.succeed(f"{write} conv=fsync")


@pytest.mark.long
def test_a_slow_disk(trio: Trio, prey: bough.Machine, cli: Cli) -> None:
    read = "dd if=/dev/vdb of=/dev/null bs=64k count=8 iflag=direct"
    cli.json("fault", "throttle", "prey", "--disk", "1", "--rate", "128KiB", "--iops", "1000", "--for", "1h")
    begun = time.monotonic()
    prey.succeed(read)
    assert time.monotonic() - begun > 2
    cli("fault", "heal", "--machine", "prey")
    with prey.disk_throttle(disk=1, iops=2):
        begun = time.monotonic()
        prey.succeed(read)
        assert time.monotonic() - begun > 2


def test_a_wrong_clock(trio: Trio, prey: bough.Machine, cli: Cli) -> None:
    def ahead_s() -> float:
        return float(prey.succeed("date +%s.%N")) - time.time()

    cli.json("fault", "clock", "prey", "--jump", "-7d", "--for", "1h")
    assert ahead_s() == pytest.approx(-7 * 86400, abs=5)
    prey.pause()
    time.sleep(1)  # longer than bough leaves a clock alone
    prey.resume()
    assert ahead_s() == pytest.approx(-7 * 86400, abs=5)
    with pytest.raises(Conflict, match="the clock is wrong already"):
        prey.clock_fault(jump=3)
    cli("fault", "heal", "--machine", "prey")
    wait_until(lambda: abs(ahead_s()) < 2)
    cli("fault", "clock", "prey", "--set", "2040-01-01T12:00Z")
    assert prey.succeed("date -u +%Y").strip() == "2040"
    cli("fault", "heal", "--all")
    made = cli.json("fault", "clock", "prey", "--drift", "100000")
    assert made["summary"] == "clock of prey 100000 ppm too fast"
    before, begun = ahead_s(), time.monotonic()
    wait_until(lambda: ahead_s() - before > 0.5, what="the clock runs ahead")
    assert time.monotonic() - begun > 3
    cli("fault", "heal", "--all")
    wait_until(lambda: abs(ahead_s()) < 2)


@pytest.mark.long
def test_pressure(trio: Trio, prey: bough.Machine, cli: Cli) -> None:
    loops = "cat /run/bough-fault-*/[0-9]* 2>/dev/null | wc -l"
    cli.json("fault", "cpu", "prey", "--loops", "2", "--for", "1h")
    wait_until(lambda: prey.succeed(loops).strip() == "2")
    cli("fault", "heal", "--all")
    assert prey.succeed(loops).strip() == "0"
    with prey.cpu_pressure():
        wait_until(lambda: prey.succeed(loops).strip() != "0")
    before = prey.load()["memory_available_bytes"]
    cli.json("fault", "memory", "prey", "100MiB", "--for", "1h")
    assert prey.load()["memory_available_bytes"] < before - (80 << 20)
    cli("fault", "heal", "--all")
    assert prey.load()["memory_available_bytes"] > before - (40 << 20)
    cli.error("fault", "memory", "prey", "1TiB", says="the guest has only", hint=None)
    made = cli.json("fault", "full", "prey", "/run", "--for", "1h")
    assert made["summary"] == "the file system of /run of prey full"
    assert "No space left" in prey.fail("(head -c 100000 /dev/zero > /run/more) 2>&1")
    cli("fault", "heal", "--all")
    prey.succeed("head -c 100000 /dev/zero > /run/more")
    cli.error("fault", "full", "prey", "/nowhere", says="/nowhere is no directory")


def test_a_disk_grows_after_its_fault(trio: Trio, cli: Cli) -> None:
    size = "blockdev --getsize64 /dev/vdb"
    with trio[2].disk_throttle(disk=1, iops=1000):
        cli.error("set", "fc", "--extra-disk", "96MiB", says="has a fault", hint="bough fault heal")
    cli("set", "fc", "--extra-disk", "96MiB")
    assert trio[2].succeed(size).strip() == str(96 << 20)
    assert trio[2].info().raw["spec"]["disks"][0]["size"] == 96 << 20


@pytest.mark.long  # a boot
def test_pressure_after_a_reboot(trio: Trio, prey: bough.Machine) -> None:
    loops = "cat /run/bough-fault-*/[0-9]* 2>/dev/null | wc -l"
    with prey.cpu_pressure(2) as busy, prey.memory_pressure("60MiB") as used:
        prey.reboot()
        wait_until(lambda: prey.succeed(loops).strip() == "2", what="the processes are busy again")
        wait_until(lambda: "60M" in prey.succeed("du -shc /run/bough-fault-*"), what="the memory is used")
        assert busy.is_present()
        assert used.is_present()
    assert prey.succeed(loops).strip() == "0"
    assert "bough-fault" not in prey.succeed("cat /proc/mounts")


def test_services_are_killed(trio: Trio, prey: bough.Machine, cli: Cli) -> None:
    prey.succeed("systemd-run --unit victim sleep 1000")
    cli("fault", "kill", "prey", "victim", "--signal", "KILL")
    prey.wait_until_fails("systemctl is-active victim")
    with prey.spawn("sleep", "1000") as process:
        cli("fault", "kill", "prey", "--process", "sleep")
        assert (process.wait().signal or "").endswith("KILL")
    cli.error("fault", "kill", "prey", "nothing.service", says="no unit nothing.service")
    cli.error("fault", "kill", "prey", "--process", "nothing", says="no process nothing")


def test_a_paused_machine(trio: Trio, prey: bough.Machine, cli: Cli) -> None:
    cli.json("fault", "pause", "prey", "--for", "1h")
    assert prey.state == "paused"
    cli("fault", "heal", "--machine", "prey")
    assert prey.state == "running"
    with prey.paused():
        assert prey.state == "paused"
    prey.succeed("true")


@pytest.mark.long  # boots twice
def test_a_panic_a_crash_a_reset(trio: Trio, prey: bough.Machine, cli: Cli, hv: bough.Hypervisor) -> None:
    with prey.disk_throttle(iops=1000):
        cli("fault", "crash", "prey")
        assert prey.state == "failed"
        # A fault ends with its QEMU.
        wait_until(lambda: hv.faults() == [])
    prey.start()
    boot = prey.info(look=True).boot_id
    cli("fault", "reset", "prey")
    prey.wait("rebooted", boot_id=boot)
    cli("fault", "panic", "prey")
    wait_until(lambda: prey.state == "failed")
    failure = prey.info().failure
    assert failure is not None
    assert "panic" in failure.cause


def test_a_power_cut_loses_what_was_not_flushed(
    trio: Trio, prey: bough.Machine, cli: Cli, hv: bough.Hypervisor
) -> None:
    cli.error("fault", "power-cut", "prey", "--lose-unsynced", says="is not armed", hint="fault power-arm")
    made = cli.json("fault", "power-arm", "prey", "--for", "1h")
    assert made["kind"] == "armed"
    snapshots = len(hv.snapshots())
    # A disk without a file system, which would flush now and then.
    write = "head -c 8192 /dev/zero | tr '\\0' {} | dd of=/dev/vdb bs=4096 seek={} oflag=direct"
    prey.succeed(write.format("k", 0), "sync /dev/vdb", "echo kept > /var/lib/kept", "sync /var/lib/kept")
    prey.succeed(write.format("l", 1))
    assert told(prey) == "kl"
    cli("fault", "power-cut", "prey", "--lose-unsynced")
    assert prey.state == "stopped"
    assert hv.faults() == []
    assert len(hv.snapshots()) == snapshots
    prey.start()
    assert prey.succeed("cat /var/lib/kept").strip() == "kept"
    assert told(prey) == "kk"
    with prey.power_arm():
        prey.succeed(write.format("m", 0))
    prey.power_arm()
    cli("fault", "power-cut", "prey", "--lose-unsynced", "--seed", "4")
    cli("start", "prey")
    assert told(prey) == "mm"
    cli("fault", "power-cut", "prey")
    assert prey.state == "stopped"
    assert hv.doctor_store()["clean"]


def told(machine: bough.Machine) -> str:
    """Return the first letter of the first two blocks of the second disk."""
    read = (
        "for n in 0 1; do dd if=/dev/vdb bs=4096 count=1 skip=$n iflag=direct 2>/dev/null | head -c 1; done"
    )
    return machine.succeed(read)
