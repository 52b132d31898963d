"""Ports, ssh and its tools; the uplink on and off."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from tests.acceptance.conftest import Cli
from tests.conftest import MEMORY
from tests.waiting import wait_until


@pytest.fixture
def web_server(cli: Cli, box: str) -> Iterator[int]:
    """Yield the port, in the guest, of a web server on the guest's loopback."""
    script = "mkdir -p /srv/www && echo hello from inside > /srv/www/index.html"
    cli("exec", box, "--", "sh", "-c", script)
    unit = ["systemd-run", "--unit=www", "--working-directory=/srv/www"]
    cli("exec", box, "--", *unit, "python3", "-m", "http.server", "8000")
    wait = "until bash -c '</dev/tcp/127.0.0.1/8000'; do sleep 0.2; done"
    cli("exec", "--timeout", "30s", box, "--", "sh", "-c", wait)
    yield 8000
    cli("exec", box, "--", "systemctl", "stop", "www")


def test_a_port_of_the_guest_on_the_host(cli: Cli, box: str, web_server: int) -> None:
    port = cli.json("port", "add", box, f"0:{web_server}")["host_port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
        assert answer.read() == b"hello from inside\n"
    assert [each["host_port"] for each in cli.json("port", "list", box)] == [port]
    assert str(port) in cli.text("port", "list", box)
    cli("port", "remove", box, str(port))
    assert cli.json("port", "list", box) == []
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_port_where_nobody_listens_in_the_guest(cli: Cli, box: str) -> None:
    port = cli.json("port", "add", box, "0:9")["host_port"]
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=20)
    finally:
        cli("port", "remove", box, str(port))


# -- ssh ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ssh_config(cli: Cli, box: str, ssh_key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the output of `bough ssh-config`, and a user's key as in ~/.ssh."""
    path = tmp_path_factory.mktemp("ssh") / "config"
    path.write_text(cli.text("ssh-config", box) + f"\nHost *\n    IdentityFile {ssh_key}\n")
    return path


needs = {
    name: pytest.mark.skipif(shutil.which(name) is None, reason=f"no {name} on this host")
    for name in ("ssh", "scp", "rsync", "ansible")
}


@needs["ssh"]
def test_plain_ssh(box: str, ssh_config: Path, cli: Cli) -> None:
    command = ["ssh", "-F", ssh_config, "-o", "BatchMode=yes", box, "hostname; cat; exit 3"]
    done = subprocess.run(command, input=b"piped", capture_output=True, check=False, timeout=60, env=cli.env)
    assert done.returncode == 3, done.stderr
    assert done.stdout == b"box\npiped"


@needs["scp"]
def test_plain_scp(box: str, ssh_config: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("by scp")
    command = ["scp", "-q", "-F", ssh_config, tmp_path / "file", f"{box}:/root/by-scp"]
    subprocess.run(command, check=True, timeout=60, env=cli.env)
    assert cli.text("exec", box, "--", "cat", "/root/by-scp") == "by scp"


@needs["rsync"]
def test_plain_rsync(box: str, ssh_config: Path, cli: Cli, tmp_path: Path) -> None:
    if cli("exec", box, "--", "sh", "-c", "command -v rsync", check=False).returncode != 0:
        pytest.skip("no rsync in the guest")
    (tmp_path / "file").write_text("by rsync")
    command = ["rsync", "-a", "-e", f"ssh -F {ssh_config}", tmp_path / "file", f"{box}:/root/by-rsync"]
    subprocess.run(command, check=True, timeout=60, env=cli.env)
    assert cli.text("exec", box, "--", "cat", "/root/by-rsync") == "by rsync"


@needs["ssh"]
def test_many_ssh_at_once(box: str, ssh_config: Path, cli: Cli) -> None:
    command = ["ssh", "-F", ssh_config, "-o", "BatchMode=yes", box, "echo ok"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=cli.env) for _ in range(5)]
    assert [process.communicate(timeout=120)[0] for process in running] == [b"ok\n"] * 5


# -- uplink -------------------------------------------------------------------------------------------


def test_the_guest_has_an_address_and_a_route(cli: Cli, box: str) -> None:
    assert "default via" in cli.text("exec", box, "--", "ip", "route")


def test_the_state_of_the_uplink_is_told(cli: Cli, fork: bough.Machine) -> None:
    told = cli.text("info", fork.name)
    assert "\nuplink:      connected" in told or "\nuplink:      offline" in told, told
    state = cli.json("info", fork.name)["uplink"]
    assert state["state"] in ("connected", "offline")
    names = [
        line.split()[1] for line in Path("/etc/resolv.conf").read_text().splitlines() if "nameserver" in line
    ]
    assert set(state["resolvers"]) >= set(names[:1])
    filtering = [path for path in Path("/proc").glob("[0-9]*/comm") if _comm(path) == f"up-{fork.id}"]
    os.kill(int(filtering[0].parent.name), signal.SIGKILL)
    wait_until(lambda: cli.json("info", fork.name)["uplink"]["state"] == "broken")
    assert "broken (its process has ended" in cli.text("info", fork.name)


def _comm(path: Path) -> str:
    try:
        return path.read_text().rstrip("\n")
    except OSError:
        return ""


def test_the_guest_asks_the_hosts_resolver(fork: bough.Machine) -> None:
    """The resolver's answer does not matter, but it must come at once."""
    assert "10.0.2.3" in fork.exec("sh", "-c", "resolvectl dns; cat /etc/resolv.conf").stdout
    script = """
import socket, time
query = bytes.fromhex("beef01000001000000000000") + b"\\x07invalid\\0\\0\\x01\\0\\x01"
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(30)
sock.sendto(query, ("10.0.2.3", 53))
answer, peer = sock.recvfrom(4096)
print(answer[:2].hex(), answer[2] >> 7, *peer)
"""
    assert fork.exec("python3", "-c", script, check=True).stdout == "beef 1 10.0.2.3 53\n"


def test_the_hosts_loopback_is_out_of_reach(cli: Cli, box: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(3)
        port = server.getsockname()[1]
        gateway = "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'"
        attempt = f'timeout 3 bash -c "</dev/tcp/$a/{port}"'
        script = f"for a in $({gateway}) 127.0.0.1 10.0.2.2; do {attempt}; done; true"
        cli("exec", box, "--", "sh", "-c", script)
        with pytest.raises(TimeoutError):
            server.accept()


def test_without_an_uplink_there_is_no_network(cli: Cli, debian: str, gone: list[str]) -> None:
    gone += ["island", "island-fork"]
    cli("create", debian, "--name", "island", "--memory", MEMORY, "--no-uplink")
    cli("start", "island")
    assert cli.text("exec", "island", "--", "sh", "-c", "ls /sys/class/net") == "lo"
    # Ports and exec need no uplink: they go through the agent.
    assert cli.text("exec", "island", "--", "echo", "here") == "here"
    cli("fork", "island", "island-fork")
    assert cli.text("exec", "island-fork", "--", "hostname") == "island-fork"


CARDS = "for card in $(ls /sys/class/net | grep -v lo); do cat /sys/class/net/$card/address; done"


def test_each_card_of_a_fork_gets_a_new_address(cli: Cli, debian: str, gone: list[str]) -> None:
    gone += ["multi", "branch"]
    mac = "52:54:00:aa:bb:01"
    cards = ["--nic", f"uplink,mac={mac}", "--nic", "isolated", "--nic", "isolated"]
    cli("create", debian, "--name", "multi", "--memory", MEMORY, *cards)
    cli("start", "multi", "--until", "booted")  # earlier, udev renames the cards

    def addresses(name: str) -> list[str]:
        # A fork's agent may answer before the cards are back.
        wait = "until [ $(ls /sys/class/net | wc -w) = 4 ]; do sleep 0.2; done"
        return cli.text("exec", "--timeout", "60s", name, "--", "sh", "-c", f"{wait}; {CARDS}").split()

    known = [nic["mac"] for nic in cli.json("info", "multi")["nics"]]
    assert known[0] == mac
    assert sorted(addresses("multi")) == sorted(known)
    told = cli.text("info", "multi")
    assert f"\nnic:         {mac} on uplink, virtio\n" in told
    assert f"\nnic:         {known[2]} on isolated, virtio\n" in told
    cli("fork", "multi", "branch")
    fresh = [nic["mac"] for nic in cli.json("info", "branch")["nics"]]
    assert not set(fresh) & set(known)
    assert sorted(addresses("branch")) == sorted(fresh)
    assert "default via" in cli.text("exec", "branch", "--", "ip", "route")


def test_a_card_on_a_network_that_does_not_exist(cli: Cli, debian: str) -> None:
    cli.error("create", debian, "--nic", "uplink", "--nic", "back", says="nics[1].network: no network 'back'")
    cli.error("run", debian, "--nic", "uplnk", "--", "true", says="no network 'uplnk'", hint="mean 'uplink'?")


def test_an_isolated_machine_has_a_card_that_leads_nowhere(cli: Cli, debian: str, gone: list[str]) -> None:
    """The card reaches nothing; ports still go through the agent."""
    gone.append("cell")
    cli("create", debian, "--name", "cell", "--memory", MEMORY, "--isolated")
    cli("start", "cell")
    inside = ["exec", "cell", "--", "sh", "-c"]
    # The agent answers before the card's driver is loaded.
    wait = "until [ $(ls /sys/class/net | wc -w) = 2 ]; do sleep 0.2; done"
    cli("exec", "--timeout", "60s", *inside[1:], wait)
    assert "default" not in cli.text(*inside, "ip route; ip -6 route")
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.settimeout(1)
        port = server.getsockname()[1]
        host = socket.gethostbyname(socket.gethostname())
        # Not even with an address, a route and a neighbour set by hand.
        script = f"""
            card=$(ls /sys/class/net | grep -v lo)
            ip address add 10.0.2.15/24 dev $card; ip link set $card up
            ip route add default via 10.0.2.2
            ip neighbour replace 10.0.2.2 lladdr 52:55:0a:00:02:02 dev $card
            for a in {host} 127.0.0.1 10.0.2.2 10.0.2.3 192.0.2.1; do
                timeout 2 bash -c "</dev/tcp/$a/{port}" && echo reached $a
            done; true
        """
        assert cli.text(*inside, script) == ""
        with pytest.raises(TimeoutError):
            server.accept()
    forwarded = cli.json("port", "add", "cell", "0:22")["host_port"]
    with socket.create_connection(("127.0.0.1", forwarded), timeout=20) as connection:
        assert connection.recv(4) == b"SSH-"
