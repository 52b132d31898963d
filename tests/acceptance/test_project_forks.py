"""Snapshots and forks of a project: three machines that talk to each other all the time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.client.project import Project
from bough.errors import Conflict, NameTaken, NotFound, WrongState
from bough.paths import Home
from tests.acceptance.conftest import Cli
from tests.conftest import MEMORY
from tests.torture.processes import kill, service_pid
from tests.waiting import wait_until

ROLES = ("db", "app", "web")
CHATTER = Path(__file__).with_name("chatter.py")
FILE = """
name = "trio"

[shared.base]
image = "%(image)s"
memory = "%(memory)s"
networks = ["back"]

[networks.back]

[machines.db]
extends = "base"
ports = ["5432:9000"]

[machines.app]
extends = "base"

[machines.web]
extends = "base"
"""


def sh(machine: bough.Machine, command: str) -> str:
    return machine.exec("sh", "-c", command).stdout.strip()


@pytest.fixture(scope="module")
def trio(hv: bough.Hypervisor, debian: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Yield a project of three machines: `app` and `web` talk to `db`. Each test leaves it running."""
    path = tmp_path_factory.mktemp("trio") / "bough.toml"
    path.write_text(FILE % {"image": debian, "memory": MEMORY})
    project = hv.project(path)
    project.up()
    for role in ROLES:
        project[role].copy_to(CHATTER, "/run/chatter.py")
    sh(project["db"], "systemd-run --unit chatter python3 /run/chatter.py serve")
    wait_until(lambda: sh(project["db"], "ss -Hltn sport = :9000") != "", what="the server listens")
    for role in ("app", "web"):
        sh(project[role], "systemd-run --unit chatter python3 /run/chatter.py talk db")
        wait_until(lambda role=role: counted(project[role]) > 0, what=f"{role} talks")
    yield project
    project.down(volumes=True, force=True)


def counted(machine: bough.Machine) -> int:
    return int(sh(machine, "cat /run/chatter/count 2>/dev/null || echo 0"))


#: One command for each machine: an emulated guest takes long to start one.
CHECK = """
cd /run/chatter; before=$(cat count); rm -f idle; touch check
for _ in $(seq 600); do
    [ -e error ] && cat error && exit 1
    [ -e idle ] && [ "$(cat count)" -gt "$before" ] && cat idle && exit 0
    sleep 0.1
done
echo "no answer: $before, $(cat count idle)"; exit 1
"""
FACTS = """
cat /proc/sys/kernel/random/uuid; date +%s.%N
hostname; cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub /sys/class/net/*/address
ip -br -4 addr show scope global | grep ' 10[.]1[67]'
"""


def check_connections(project: Project) -> None:
    """Check that the stream and the idle connections go on, and lead to the project's own `db`."""
    sh(project["db"], f"echo {project.name} > /run/whose")
    for role in ("app", "web"):
        done = project[role].exec("sh", "-c", CHECK, check=False)
        assert (done.ok, done.stdout.split()) == (True, ["20", project.name])


def facts_of(machine: bough.Machine) -> tuple[str, str]:
    """Return a random number and the identity of a machine whose clock is right."""
    began = time.time()
    random, told, identity = sh(machine, FACTS).split("\n", 2)
    assert began - 1 < float(told) < time.time() + 1
    return random, identity


def only_the_parent(hv: bough.Hypervisor, trio: Project) -> bool:
    machines = {machine.name for machine in hv.machines()}
    return (
        [project.name for project in hv.projects()] == [trio.name]
        and {f"trio-{role}" for role in ROLES} == {name for name in machines if name.startswith("trio")}
        and len([network for network in hv.list_networks() if network.name == "back"]) == 1
    )


# -- forks ----------------------------------------------------------------------------------------


def test_connections_go_on_in_the_parent_and_in_all_forks(trio: Project, hv: bough.Hypervisor) -> None:
    forks = trio.fork(count=2, ephemeral=True)
    try:
        assert [fork.name for fork in forks] == ["trio-1", "trio-2"]
        for project in (trio, *forks, trio):  # equal addresses, and no fork meets another
            check_connections(project)
        for role in ROLES:
            facts = [facts_of(project[role]) for project in (trio, *forks)]
            assert len({random for random, _ in facts}) == 3
            assert len({identity for _, identity in facts}) == 1
        addresses = {project.info().loopback for project in (trio, *forks)}
        assert len(addresses) == 3
        for project in (trio, *forks):
            (port,) = project["db"].info().ports
            assert (port.host, port.host_port) == (project.info().loopback, 5432)
    finally:
        for fork in forks:
            fork.delete()
    assert only_the_parent(hv, trio)


def test_an_ephemeral_fork_goes_with_its_client(trio: Project, hv: bough.Hypervisor) -> None:
    program = (
        "import sys, bough; fork = bough.connect().project('trio').fork('doomed', ephemeral=True);"
        "print(fork.name, flush=True); sys.stdin.read()"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    with client:
        assert client.stdout.readline().strip() == "doomed"
        assert len(hv.project("doomed").machines) == 3
        client.kill()
    wait_until(lambda: only_the_parent(hv, trio), what="all of the fork is gone")


def test_a_machine_of_a_fork_is_not_deleted_alone(trio: Project, hv: bough.Hypervisor) -> None:
    with trio.fork("whole", ephemeral=True) as fork:
        with pytest.raises(Conflict, match="is the machine 'web' of project 'whole'"):
            hv.machine("whole-web").delete(force=True)
        with pytest.raises(NameTaken):
            trio.fork("whole")
        assert len(fork.machines) == 3
    assert only_the_parent(hv, trio)
    with pytest.raises(NotFound):
        fork.info()


# -- snapshots ------------------------------------------------------------------------------------


def snapshots_of(project: Project, hv: bough.Hypervisor) -> list[str]:
    """Return the listed snapshots of the project's machines. Other tests have snapshots, too."""
    return [one.id for one in hv.list_snapshots() if one.machine_name.startswith(f"{project.name}-")]


def test_a_snapshot_its_forks_and_a_restore(trio: Project, hv: bough.Hypervisor, cli: Cli) -> None:
    snapshot = trio.snapshot("calm", message="all is well")
    try:
        info = snapshot.info()
        assert (info.project_name, {*info.machines}, info.networks) == ("trio", {*ROLES}, ["back"])
        assert info.pause_ms is not None
        assert "trio (3 machines)" in cli.text("snapshot", "list")
        listed = {one["id"] for one in cli.json("snapshot", "list")}
        assert snapshot.id in listed
        assert not listed & {*info.machines.values()}, "a part is listed"
        part = info.machines["db"]
        cli.error("snapshot", "delete", part, says=f"is a part of snapshot {snapshot.id}", hint="bough fork")
        with pytest.raises(NameTaken):
            trio.snapshot("calm")
        sh(trio["db"], "touch /root/later")
        assert cli.text("fork", "calm", "kept") == "kept"
        kept = hv.project("kept")
        assert sh(kept["db"], "ls /root/later || true") == ""
        check_connections(kept)
        check_connections(trio)
        cli("restore", "trio", "calm")
        assert sh(trio["db"], "ls /root/later || true") == ""
        check_connections(trio)
        cli.error("restore", "trio", "nothing", says="no snapshot of a project is called 'nothing'")
        kept.delete()
    finally:
        snapshot.delete()
    assert snapshot.id not in {one["id"] for one in cli.json("snapshot", "list")}
    assert snapshots_of(trio, hv) == []
    assert only_the_parent(hv, trio)


def test_a_project_goes_on_from_a_bundle(
    trio: Project, hv: bough.Hypervisor, cli: Cli, tmp_path: Path
) -> None:
    bundle = tmp_path / "trio.bough"
    cli("export", "trio", bundle, "--without-image")
    assert {*json.loads(cli.text("bundle", "info", bundle))["machines"]} == {*ROLES}
    cli.error(
        "export", "trio", tmp_path / "trio.ova", says="a project is exported as a bundle", hint="trio.bough"
    )
    assert cli.text("import", bundle, "--name", "arrived") == "arrived"
    arrived = hv.project("arrived")
    check_connections(arrived)
    assert facts_of(arrived["db"])[1] == facts_of(trio["db"])[1]
    cli.error("import", bundle, "--name", "arrived", says="a project named 'arrived' exists already")
    arrived.delete()
    half = tmp_path / "half.bough"
    half.write_bytes(bundle.read_bytes()[: bundle.stat().st_size // 2])
    cli.error("import", half, "--name", "arrived", says="the bundle is truncated")
    assert only_the_parent(hv, trio)


def test_all_machines_are_suspended_and_resumed(trio: Project, cli: Cli) -> None:
    cli("suspend", "trio")
    assert trio.info().state == "suspended"
    cli("resume", "trio")
    assert trio.info().state == "running"
    check_connections(trio)


def test_one_machine_that_cannot_be_captured_undoes_all(trio: Project, hv: bough.Hypervisor) -> None:
    trio["web"].suspend()
    try:
        for call in (trio.snapshot, trio.fork):
            with pytest.raises(WrongState, match="trio-web"):
                call()
    finally:
        trio["web"].resume()
    assert hv.list_project_snapshots() == []
    assert snapshots_of(trio, hv) == []
    assert only_the_parent(hv, trio)
    check_connections(trio)


def test_a_second_operation_is_refused(trio: Project, cli: Cli) -> None:
    taking = cli.popen("snapshot", "create", "trio", "--name", "first")
    try:
        wait_until(lambda: "being snapshotted" in refused(trio), what="the project is busy", every_s=0)
    finally:
        assert taking.wait(120) == 0
    cli("snapshot", "delete", "first")


def refused(project: Project) -> str:
    """Return why a running project cannot be resumed: it runs, or another operation is under way."""
    with pytest.raises(Conflict) as told:
        project.resume()
    return told.value.message


# -- a killed service -----------------------------------------------------------------------------


def test_a_service_killed_during_a_snapshot_leaves_nothing(
    trio: Project, hv: bough.Hypervisor, bough_home: Home, cli: Cli
) -> None:
    before = {path.name for path in bough_home.snapshots.iterdir()}
    taking = cli.popen("snapshot", "create", "trio", stderr=subprocess.DEVNULL)
    wait_until(
        lambda: len({path.name for path in bough_home.snapshots.iterdir()} - before) == 3,
        what="all parts are begun",
        every_s=0.001,
    )
    kill(service_pid(bough_home))
    taking.wait(60)
    cli("list")  # starts a service
    for one in hv.list_project_snapshots():  # completed in the last moment
        hv.project_snapshot(one.id).delete()
    assert snapshots_of(trio, hv) == []
    check_connections(trio)


def test_a_service_killed_during_a_fork_leaves_nothing(
    trio: Project, hv: bough.Hypervisor, bough_home: Home, cli: Cli
) -> None:
    projects, machines = ({*place.iterdir()} for place in (bough_home.projects, bough_home.machines))
    forking = cli.popen("fork", "trio", "half", stderr=subprocess.DEVNULL)
    wait_until(
        lambda: bool({*bough_home.projects.glob("[!.]*.json")} - projects),
        what="the fork is begun",
        every_s=0.001,
    )
    wait_until(
        lambda: bool({*bough_home.machines.iterdir()} - machines), what="a machine is made", every_s=0.001
    )
    kill(service_pid(bough_home))
    forking.wait(60)
    cli("list")  # starts a service
    wait_until(lambda: only_the_parent(hv, trio), what="the half fork is gone")
    check_connections(trio)


def test_a_service_killed_during_a_restore_completes_it(
    trio: Project, hv: bough.Hypervisor, bough_home: Home, cli: Cli
) -> None:
    snapshot = trio.snapshot()
    try:
        for role in ROLES:
            sh(trio[role], "touch /root/later")
        restoring = cli.popen("restore", "trio", snapshot.id, stderr=subprocess.DEVNULL)
        notes = bough_home.projects
        wait_until(lambda: bool([*notes.glob("*.restore")]), what="the restore is begun", every_s=0.001)
        kill(service_pid(bough_home))
        restoring.wait(60)
        cli("list")  # starts a service
        wait_until(lambda: not [*notes.glob("*.restore")], timeout_s=120, what="the restore is completed")
        assert [sh(trio[role], "ls /root/later || true") for role in ROLES] == ["", "", ""]
        check_connections(trio)
    finally:
        snapshot.delete()
