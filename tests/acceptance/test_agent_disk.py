"""Guests that start the agent from the agent disk: a kernel and busybox, without systemd and Python."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.errors import AgentUnavailable, NotFound
from bough.images.agent_disk.store import AgentDiskStore
from bough.machines.plan import host_arch
from bough.paths import Home
from tests.acceptance.busybox_image import LABEL, add_busybox_image
from tests.acceptance.conftest import Cli
from tests.waiting import wait_until

MEMORY = "256MiB"
#: Print the program of each process of the agent.
PROGRAMS = "for p in $(pgrep -f '[b]ough.guest.agent_keeper'); do readlink /proc/$p/exe; done"

#: Print the id of the process that has the agent's port open.
AGENT = """for p in $(pgrep -f '[b]ough.guest.agent_keeper'); do
    ls -l /proc/$p/fd | grep -q vport && echo $p; done"""


@pytest.fixture(scope="module")
def image(
    debian: str,
    agent_disk: Path,
    bough_home: Home,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    add_busybox_image(bough_home, debian, agent_disk, tmp_path_factory.mktemp("busybox"))
    return LABEL


@pytest.fixture(scope="module")
def machine(hv: bough.Hypervisor, image: str) -> Iterator[bough.Machine]:
    """Yield a machine of the image: a fork of its booted snapshot."""
    machine = hv.run(image, name="bare", memory=MEMORY)
    yield machine
    with contextlib.suppress(NotFound):  # the last test deletes it
        machine.delete(force=True)


def test_the_agent_runs_from_the_disk_alone(machine: bough.Machine, cli: Cli) -> None:
    programs = machine.shell(PROGRAMS).stdout.split()
    assert set(programs) == {"/.bough/lib/ld.so"}
    assert len(programs) == 3, "the front, the keeper, the agent"
    mounted = machine.shell("grep /.bough /proc/mounts").stdout.split()
    assert (mounted[2], mounted[3].split(",")[0]) == ("squashfs", "ro")
    environment = machine.exec("env").stdout
    assert ".bough" not in environment
    assert "LD_" not in environment
    assert not machine.exec("ls", "/usr/bin/python3").ok


def test_the_plan_shows_the_disk_and_the_list_of_disks_does_not(
    machine: bough.Machine, cli: Cli, agent_disk: Path
) -> None:
    plan = cli.json("info", machine.name, "--plan")["plan"]
    assert [disk["serial"] for disk in plan["disks"]] == ["disk0", "bough-agent"]
    assert plan["disks"][1]["path"] == str(agent_disk)
    assert plan["disks"][1]["read_only"]
    assert cli.json("info", machine.name)["spec"]["disks"] == []


def test_files_and_terminals(machine: bough.Machine, cli: Cli, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep/file").write_bytes(b"x" * 100_000)
    cli("cp", tree, f"{machine.name}:/root/tree")
    cli("cp", f"{machine.name}:/root/tree", tmp_path / "back")
    assert (tmp_path / "back/deep/file").read_bytes() == b"x" * 100_000
    assert (
        cli.text("exec", "-t", machine.name, "--", "sh", "-c", "test -t 0 && echo terminal").strip()
        == "terminal"
    )


def test_an_agent_that_is_killed_comes_back_through_the_loader(machine: bough.Machine) -> None:
    def find() -> str | None:
        with contextlib.suppress(AgentUnavailable):  # a young command's end is lost with its agent
            return str(machine.shell(AGENT).stdout.strip())
        return None

    before = find()
    machine.shell(f"setsid sh -c 'sleep 2; kill -9 {before}' >/dev/null 2>&1 </dev/null &")
    wait_until(lambda: find() not in (before, None), what="another agent answers")
    assert set(machine.shell(PROGRAMS).stdout.split()) == {"/.bough/lib/ld.so"}


def test_a_shared_directory_is_mounted_by_the_disks_sshfs(
    hv: bough.Hypervisor, image: str, gone: list[str], tmp_path: Path
) -> None:
    gone.append("bare-share")
    share = tmp_path / "share"
    share.mkdir()
    (share / "word").write_text("here")
    mounts = [{"source": str(share), "target": "/mnt", "writable": True}]
    sharing = hv.run(image, name="bare-share", memory=MEMORY, mounts=mounts)
    assert sharing.read_text("/mnt/word") == "here"
    sharing.write_file("/mnt/back", "there")
    assert (share / "back").read_text() == "there"


def test_forks_have_an_identity_of_their_own(machine: bough.Machine) -> None:
    machine.write_file("/run/word", "kept")
    fork = machine.fork("bare-fork")
    try:
        assert fork.exec("hostname").stdout.strip() == "bare-fork"
        assert fork.read_text("/run/word") == "kept"
    finally:
        fork.delete(force=True)


def test_suspended_and_resumed(hv: bough.Hypervisor, machine: bough.Machine) -> None:
    machine.write_file("/run/word", "kept")
    machine.suspend()
    machine.resume()
    assert machine.read_text("/run/word") == "kept"


def test_a_bundle_brings_the_disk_that_its_memory_knows(
    hv: bough.Hypervisor, machine: bough.Machine, cli: Cli, bough_home: Home, tmp_path: Path, gone: list[str]
) -> None:
    gone.append("brought")
    machine.write_file("/run/word", "kept")
    machine.export(tmp_path / "bare.bough")
    brought = hv.import_bundle(tmp_path / "bare.bough", name="brought", identity="new")
    assert brought.read_text("/run/word") == "kept"
    assert attached(bough_home, brought) == attached(bough_home, machine)


def test_an_upgrade_reaches_a_machine_at_its_next_boot(
    machine: bough.Machine, bough_home: Home, agent_disk: Path
) -> None:
    """The newer disk is the same with some zeros at its end."""
    store = AgentDiskStore(bough_home)
    keys = bough_home.agent_disk_keys.read_text()
    old = store.newest(host_arch())
    assert old is not None
    new = store.add(host_arch(), agent_disk.read_bytes() + bytes(4096))
    try:
        bough_home.agent_disk_keys.write_text(keys.replace(old, new))
        fork = machine.fork("before")
        assert attached(bough_home, fork) == old, "its memory knows the old one"
        fork.delete(force=True)
        machine.stop(force=True)
        machine.start()
        assert attached(bough_home, machine) == new
        size = int(machine.exec("cat", "/sys/block/vdb/size").stdout) * 512
        assert size == agent_disk.stat().st_size + 4096
    finally:
        bough_home.agent_disk_keys.write_text(keys)
    assert store.has(host_arch(), new)
    machine.delete(force=True)
    wait_until(lambda: not store.has(host_arch(), new), what="no machine has it any more")
    assert store.has(host_arch(), old)


def attached(home: Home, machine: bough.Machine) -> str:
    """Return the digest of the machine's agent disk."""
    return str(json.loads(home.machine(machine.id).record.read_bytes())["agent_disk"])
