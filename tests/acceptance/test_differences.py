"""`bough diff`: what differs between machines, snapshots and images."""

from __future__ import annotations

import pytest

import bough
from bough.errors import Conflict, InvalidInput, NotFound
from tests.acceptance.conftest import Cli
from tests.conftest import MEMORY


@pytest.fixture
def still(cli: Cli, debian: str, gone: list[str]) -> str:
    """Return the name of a stopped machine that has never run."""
    gone.append("still")
    cli("create", debian, "--name", "still", "--memory", MEMORY)
    return "still"


def test_a_machine_that_never_ran(cli: Cli, hv: bough.Hypervisor, debian: str, still: str) -> None:
    lines = cli.text("diff", still).splitlines()
    assert lines[0].startswith(f"--- image {debian} (Debian")
    assert lines[1].startswith("+++ machine still (Debian")
    assert lines[-1] == "no differences"
    assert cli.text("diff", "--brief", debian, still).splitlines() == lines
    found = cli.json("diff", "--json", f"image:{debian}", f"machine:{still}")
    assert found == hv.diff(debian, hv.machine(still)).raw
    assert (found["after"]["state"], found["packages"]["manager"]) == ("stopped", "dpkg")
    assert found["files"]["list"] == found["disk_use"]["directories"] == []


def test_names_that_mean_nothing_or_too_much(cli: Cli, hv: bough.Hypervisor, debian: str, still: str) -> None:
    cli.error("diff", "nothing", says="no machine, snapshot or image is called 'nothing'")
    cli.error("diff", "image:still", says="no image is called 'still'", hint="bough image list")
    cli.error("diff", debian, says="has no earlier state", hint="bough diff BEFORE AFTER")
    cli.error("diff", still, still, says="cannot be compared with itself")
    with pytest.raises(NotFound):
        hv.machine(still).diff("nothing")
    with pytest.raises(InvalidInput):
        hv.diff(debian, debian)
    snapshot = hv.machine(still).snapshot("still")
    try:
        with pytest.raises(Conflict, match="ambiguous"):
            hv.diff(debian, "still")
        assert hv.diff("snapshot:still", "machine:still").configuration == []
    finally:
        snapshot.delete()


_CHANGES = r"""
set -e
printf 'db_password = hunter2\nport = 5432\n' > /etc/app.conf
printf 'kernel.panic = 7\n' > /etc/sysctl.d/90-test.conf
sysctl -q -w kernel.panic=7
echo 'alias ll=ls' >> /etc/bash.bashrc
useradd -m -s /bin/sh ann
echo ann:secret | chpasswd
systemctl mask -q apt-daily.timer 2>/dev/null
rm /etc/motd
mkdir /srv/files; head -c 3000000 /dev/urandom > /srv/files/large
for number in $(seq 50); do echo $number > /srv/files/$number; done
listen='import socket, time; s = socket.create_server(("127.0.0.1", 7777)); time.sleep(600)'
nohup python3 -c "$listen" >/dev/null 2>&1 &
"""


def test_a_running_machine(
    cli: Cli, hv: bough.Hypervisor, booted: bough.Snapshot, fork: bough.Machine
) -> None:
    """What was changed since the snapshot, seen without a change of the guest."""
    fork.succeed(_CHANGES)
    fork.wait_for_open_port(7777)
    snapshots = len(hv.list_snapshots())
    names = sorted(machine.name for machine in hv.list_machines())
    found = cli.json("diff", "--json", fork.name)
    assert (found["before"]["id"], found["after"]["name"]) == (booted.id, fork.name)
    assert found["notes"] == []
    entries = {one["path"]: one for one in found["configuration"]}
    assert entries["/etc/app.conf"]["diff"].split("\n")[3:] == ["+db_password = [withheld]", "+port = 5432"]
    assert entries["/etc/motd"]["change"] == "removed"
    assert entries["/etc/bash.bashrc"]["diff"].endswith("+alias ll=ls")
    assert {"/etc/app.conf", "/etc/shadow"} <= set(found["withheld"])
    assert {one["name"]: one["change"] for one in found["users"]} == {"ann": "added"}
    assert "masked" in {one["after"] for one in found["units"] if one["name"] == "apt-daily.timer"}
    assert {"name": "kernel.panic", "before": None, "after": "7"} in found["sysctls"]
    assert {"protocol": "tcp", "address": "127.0.0.1", "port": 7777} in found["ports"]["after"]
    counts = {one["path"]: one["added"] for one in found["files"]["directories"]}
    assert counts["/srv/files"] == 51
    # No password, key or hash is anywhere in the answer.
    assert not any(word in str(found) for word in ("hunter2", "PRIVATE KEY", "$y$", "$6$"))
    assert fork.succeed("cat /srv/files/50") == "50\n"
    assert len(hv.list_snapshots()) == snapshots
    assert sorted(machine.name for machine in hv.list_machines()) == names


def test_the_last_writes_before_a_snapshot(hv: bough.Hypervisor, fork: bough.Machine) -> None:
    """A file that the guest still held in memory belongs to the snapshot."""
    fork.succeed("echo late > /etc/late")
    snapshot = fork.snapshot("late")
    try:
        found = hv.diff(snapshot, fork)
        assert [one["path"] for one in found.configuration if one["path"] == "/etc/late"] == []
        assert found.notes == []
        fork.succeed("echo later > /etc/later")
        entries = {one["path"]: one["change"] for one in fork.diff(snapshot).configuration}
        assert entries == {"/etc/later": "added"}
    finally:
        snapshot.delete()


def test_two_running_machines(hv: bough.Hypervisor, booted: bough.Snapshot, fork: bough.Machine) -> None:
    with booted.fork(ephemeral=True) as other:
        other.succeed("sysctl -q -w kernel.panic=9; echo x > /etc/other")
        found = hv.diff(fork, other)
    assert {"name": "kernel.panic", "before": "0", "after": "9"} in (found.live_sysctls or [])
    assert found.ports["before"] is not None
    entries = {one["path"]: one for one in found.configuration}
    assert "+x" in entries["/etc/other"]["diff"]
    # Each fork has host keys of its own. The private keys are named only.
    assert all("diff" not in one for path, one in entries.items() if path.endswith("_key"))
