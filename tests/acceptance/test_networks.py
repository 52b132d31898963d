"""Networks between machines: their commands, and real guests that find each other by name."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

import dpkt
import pytest

import bough
from bough.errors import Conflict, InUse, InvalidInput, NameTaken, NotFound
from tests.acceptance.conftest import Cli
from tests.conftest import MEMORY
from tests.machines.test_uplink import listener, own_address
from tests.waiting import wait_until

NAME = "back"
LISTEN = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 4000)); print(s.recv(99))"
SEND = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(b'honest', (sys.argv[1], 4000))"
needs_outside = pytest.mark.skipif(
    own_address() is None or not shutil.which("passt"), reason="needs passt, and a route to anywhere"
)
HOSTILE = Path(__file__).with_name("hostile_frames.py")


# -- without machines -----------------------------------------------------------------------------


@pytest.fixture
def networks(cli: Cli) -> Iterator[list[str]]:
    """Yield a list for names of networks that the test makes; they are deleted at its end."""
    names: list[str] = []
    yield names
    for name in names:
        cli("network", "delete", name, check=False)


def test_the_life_of_a_network(cli: Cli, networks: list[str]) -> None:
    networks += ["front", "rear"]
    made = cli.json("network", "create", "front")
    assert cli.text("network", "create", "rear", "--subnet", "10.1.0.0/16", "--mtu", "9000") == "rear"
    assert (made["mtu"], made["switch"], made["machines"]) == (1500, "stopped", [])
    listed = {one["name"]: one for one in cli.json("network", "list")}
    assert listed["front"] == made
    assert (listed["rear"]["subnet"], listed["rear"]["mtu"]) == ("10.1.0.0/16", 9000)
    assert "front" in cli.text("network", "list")
    assert made["subnet"] in cli.text("network", "info", "front")
    cli("network", "delete", "front", "rear")
    assert cli.json("network", "list") == []
    # The addresses derive from the name alone.
    again = cli.json("network", "create", "front")
    assert {key: again[key] for key in ("subnet", "prefix6", "resolver")} == {
        key: made[key] for key in ("subnet", "prefix6", "resolver")
    }


def test_bad_networks(cli: Cli, networks: list[str]) -> None:
    networks.append("front")
    cli("network", "create", "front", "--subnet", "10.1.0.0/16")
    for words, says, hint in (
        (["create", "front"], "a network named 'front' exists already", "bough network delete front"),
        (["create", "Front Room"], "expected a name", "front-room"),
        (["create", "uplink"], "'uplink' has a meaning of its own", "another name"),
        (["create", "rear", "--subnet", "10.1.2.0/24"], "overlaps with 10.1.0.0/16", None),
        (["create", "rear", "--subnet", "10.0.2.0/24"], "each machine's uplink", None),
        (["create", "rear", "--subnet", "8.8.8.0/24"], "not a private subnet", "10.0.0.0/8"),
        (["create", "rear", "--subnet", "x"], "'x' is not a subnet", "10.1.0.0/24"),
        (["create", "rear", "--mtu", "100"], "between 576 and 65520", None),
        (["info", "frnt"], "no network is called 'frnt'", "did you mean 'front'"),
        (["delete", "rear"], "no network is called 'rear'", None),
        (["capture", "front", "-"], "no machine on the network 'front' runs", "start one"),
    ):
        cli.error("network", *words, says=says, hint=hint)
    assert [one["name"] for one in cli.json("network", "list")] == ["front"]


def test_networks_in_python(hv: bough.Hypervisor, networks: list[str]) -> None:
    networks.append("front")
    network = hv.create_network("front", mtu=2000)
    assert [one.name for one in hv.networks()] == ["front"]
    assert hv.network("front").id == hv.network(network.id).id == network.id
    assert network.info().mtu == 2000
    with pytest.raises(NameTaken):
        hv.create_network("front")
    with pytest.raises(InvalidInput):
        hv.create_network("rear", subnet="10.1.0.1")
    with pytest.raises(Conflict), network.capture():
        pass
    network.delete()
    with pytest.raises(NotFound):
        network.info()


def test_a_stopped_machine_is_attached_and_detached(
    cli: Cli, hv: bough.Hypervisor, debian: str, networks: list[str], gone: list[str]
) -> None:
    networks += ["front", "rear"]
    gone.append("m")
    for name in networks:
        cli("network", "create", name)
    machine = hv.create(debian, name="m")
    cli("network", "attach", "front", "m", "--alias", "www")
    hv.network("rear").attach(machine)
    cards = machine.info().nics
    assert [card.network for card in cards] == ["uplink", "front", "rear"]
    assert len({card.mac for card in cards}) == 3
    assert hv.network("front").info().machines[0]["names"] == ["m", "m.front", "www", "www.front"]
    cli.error("network", "attach", "front", "m", says="is on network 'front' already")
    cli.error("network", "attach", "front", "m", "--alias", "W W", says="expected a name")
    cli.error("network", "delete", "front", says="in use by m", hint="detach")
    cli("network", "detach", "front", "m")
    assert machine.info().nics == (cards[0], cards[2])
    hv.network("rear").detach("m")
    cli.error("network", "detach", "rear", "m", says="is not on network 'rear'")
    cli("network", "delete", "front", "rear")


# -- two machines ---------------------------------------------------------------------------------


Pair = tuple[bough.Machine, bough.Machine]


@pytest.fixture(scope="module")
def pair(cli: Cli, hv: bough.Hypervisor, debian: str) -> Iterator[Pair]:
    """Yield two machines on a network with an uplink. `web` has a card on the uplink, too."""
    cli("network", "create", NAME, "--uplink")
    cli("create", debian, "--name", "web", "--memory", MEMORY, "--network", NAME)
    web = hv.machine("web")
    assert [card["network"] for card in web.info().raw["nics"]] == ["uplink", NAME]
    web.start()
    wanted = str(IPv4Network(hv.network(NAME).info().subnet)[77])
    db = hv.run(debian, name="db", memory=MEMORY, nics=[{"network": NAME, "ipv4": wanted}])
    assert addresses(cli)["db"] == wanted
    yield web, db
    for machine in (web, db):
        machine.delete(force=True)
    cli("network", "delete", NAME)


def addresses(cli: Cli) -> dict[str, str]:
    return {one["machine"]: one["ipv4"] for one in cli.json("network", "info", NAME)["machines"]}


def resolves(machine: bough.Machine, name: str, address: str) -> bool:
    return address in machine.exec("getent", "ahostsv4", name).stdout


def test_they_find_each_other_by_name(cli: Cli, pair: Pair) -> None:
    known = addresses(cli)
    for machine, other in zip(pair, ("db", "web"), strict=True):
        wait_until(partial(resolves, machine, f"{other}.{NAME}", known[other]), timeout_s=60)
        machine.exec("ping", "-c", "2", "-W", "5", f"{other}.{NAME}", check=True)


def reaches_outside(machine: bough.Machine) -> bool:
    """Return whether the machine reaches the host's own address, which stands for the internet."""
    with listener("0.0.0.0") as port:
        client = f"import socket; socket.create_connection(({own_address()!r}, {port}), 20)"
        return machine.exec("python3", "-c", client).exit_code == 0


@needs_outside
def test_a_machine_reaches_the_outside_through_its_network(
    cli: Cli, hv: bough.Hypervisor, pair: Pair
) -> None:
    web, db = pair
    resolver = hv.network(NAME).info().resolver
    assert f"via {resolver} " in db.exec("ip", "-4", "route", "show", "default").stdout
    assert reaches_outside(db)
    with listener("127.0.0.1") as port:
        client = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
        for address in ("127.0.0.1", resolver):
            assert db.exec("python3", "-c", client, address, str(port)).exit_code != 0
    uplink = db.info().raw["uplink"]
    assert (uplink["state"], uplink["network"]) == ("connected", NAME)
    assert f"connected through {NAME}" in cli.text("info", "db")
    # A card on the uplink comes first.
    assert resolver not in web.exec("ip", "-4", "route", "show", "default").stdout
    assert web.info().raw["uplink"]["network"] is None
    assert reaches_outside(web)


def test_services_that_need_the_network_start_at_once(pair: Pair) -> None:
    """A machine without an uplink is online by the network alone."""
    for machine in pair:
        machine.exec("systemctl", "restart", "systemd-networkd-wait-online", check=True, timeout=60)


def test_they_talk_tcp_by_name(cli: Cli, pair: Pair) -> None:
    web, db = pair
    server = (
        "import socket; s = socket.create_server(('', 7000)); c = s.accept()[0]; c.sendall(c.recv(99)[::-1])"
    )
    db.exec("systemd-run", "--unit=echo", "python3", "-c", server, check=True)
    client = f"import socket; s = socket.create_connection(('db.{NAME}', 7000), 20); s.sendall(b'hello'); "
    wait_until(
        lambda: web.exec("python3", "-c", client + "print(s.recv(99))").stdout.strip() == "b'olleh'",
        what="the server of db answers",
        every_s=0.5,
    )


def test_a_network_in_use_is_kept(hv: bough.Hypervisor, pair: Pair) -> None:
    with pytest.raises(InUse, match="in use by web, db") as error:
        hv.network(NAME).delete()
    assert "bough network detach back web" in (error.value.hint or "")


def test_a_capture_shows_the_names(cli: Cli, pair: Pair, tmp_path: Path) -> None:
    web, _ = pair
    target = tmp_path / "back.pcapng"
    capture = cli.popen("network", "capture", NAME, target, "--machine", "web")
    wait_until(lambda: target.exists() and target.stat().st_size > 0)
    web.exec("ping", "-4", "-c", "1", "-W", "5", f"db.{NAME}", check=True)
    wait_until(lambda: _has_icmp(target), what="the capture has the ping")
    capture.send_signal(signal.SIGINT)
    assert capture.wait(20) == 0
    assert f"db.{NAME}".encode() in target.read_bytes()
    whole = cli("network", "capture", NAME, "-", "--time", "1s").stdout
    assert whole.startswith(b"\x0a\x0d\x0d\x0a")


def _has_icmp(capture: Path) -> bool:
    """Return whether the capture has a ping. The last frame may be cut off while it is written."""
    try:
        with capture.open("rb") as stream:
            frames = [dpkt.ethernet.Ethernet(frame) for _, frame in dpkt.pcapng.Reader(stream)]
    except (ValueError, dpkt.dpkt.Error):
        return False
    return any(isinstance(frame.data, dpkt.ip.IP) and frame.data.p == 1 for frame in frames)


def test_a_hostile_guest_speaks_for_nobody(cli: Cli, hv: bough.Hypervisor, pair: Pair) -> None:
    web, db = pair
    cards = {one["machine"]: one for one in hv.network(NAME).info().machines}
    own, victim, resolver = cards["web"], cards["db"], hv.network(NAME).info().resolver
    card = web.exec("sh", "-c", f"grep -l {own['mac']} /sys/class/net/*/address | cut -d/ -f5").stdout.strip()
    before = db.exec("ip", "neigh", "show", resolver).stdout.split()
    # The victim listens. Datagrams keep their order, so the first to arrive is the honest one.
    with db.spawn("timeout", "120", "python3", "-u", "-c", LISTEN) as listener:
        wait_until(lambda: ":4000 " in db.exec("ss", "-lun").stdout, what="the victim listens", every_s=0.5)
        words = [card, own["mac"], own["ipv4"], victim["mac"], victim["ipv4"], resolver]
        web.exec("python3", "-", *words, input=HOSTILE.read_bytes(), check=True)
        web.exec("python3", "-c", SEND, victim["ipv4"], check=True)
        assert b"".join(data for _, data in listener).strip() == b"b'honest'"
    dropped = next(one for one in hv.network(NAME).info().machines if one["machine"] == "web")["counters"][
        "dropped"
    ]
    assert dropped["spoofed_mac"] >= 1
    assert dropped["spoofed_arp"] >= 3
    assert dropped["spoofed_address"] >= 2
    assert dropped["dhcp_answer"] >= 1
    assert dropped["malformed"] >= 1
    after = db.exec("ip", "neigh", "show", resolver).stdout.split()
    assert "lladdr" not in before or before[before.index("lladdr") + 1] in after
    assert own["mac"] not in after
    db.exec("ping", "-c", "2", "-W", "5", f"web.{NAME}", check=True)


def test_another_network_is_not_reached(cli: Cli, hv: bough.Hypervisor, debian: str, pair: Pair) -> None:
    network = hv.create_network("apart")
    far = hv.run(debian, name="far", memory=MEMORY, nics=["apart"])
    try:
        victim = addresses(cli)["db"]
        inside = victim.rpartition(".")[0] + ".250"
        far.exec("sh", "-c", f"ip addr add {inside}/24 dev $(ls /sys/class/net | grep -v lo)", check=True)
        assert far.exec("ping", "-c", "2", "-W", "2", victim).exit_code != 0
        assert not resolves(far, f"db.{NAME}", victim)
        (told,) = network.info().machines
        assert told["counters"]["sent_frames"] > 0  # its own switch's answers
    finally:
        far.delete(force=True)
        network.delete()


def test_a_fork_is_a_neighbor_with_addresses_of_its_own(cli: Cli, pair: Pair) -> None:
    web, db = pair
    fork = db.fork("db-2")
    try:
        known = addresses(cli)
        assert len(set(known.values())) == 3
        own = fork.exec("ip", "-4", "addr").stdout
        assert known["db-2"] in own
        assert known["db"] not in own
        wait_until(partial(resolves, web, f"db-2.{NAME}", known["db-2"]), timeout_s=60)
        for one, other in ((web, "db-2"), (fork, "web"), (fork, "db")):
            one.exec("ping", "-c", "2", "-W", "5", f"{other}.{NAME}", check=True)
        assert own_address() is None or reaches_outside(fork)
    finally:
        fork.delete(force=True)
    web.exec("ping", "-c", "2", "-W", "5", f"db.{NAME}", check=True)


def test_the_addresses_stay_over_a_restart(cli: Cli, pair: Pair) -> None:
    before = addresses(cli)
    pair[1].restart()
    assert addresses(cli) == before
    ping = ("ping", "-c", "1", "-W", "2", f"db.{NAME}")
    wait_until(lambda: pair[0].exec(*ping).exit_code == 0, timeout_s=120, what="db has set its address")


def test_they_go_on_when_the_service_ends(cli: Cli, hv: bough.Hypervisor, pair: Pair) -> None:
    hv.shutdown()
    assert cli.json("network", "info", NAME)["switch"] == "running"
    pair[0].exec("ping", "-c", "2", "-W", "5", f"db.{NAME}", check=True)
