"""`bough set`: settings of a machine that exists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.errors import Conflict, InvalidSpec, WrongState
from tests.acceptance.conftest import Cli
from tests.conftest import MEMORY


@pytest.fixture
def still(cli: Cli, debian: str, gone: list[str]) -> str:
    """Return the name of a stopped machine that has never run."""
    gone.append("still")
    cli("create", debian, "--name", "still", "--memory", MEMORY)
    return "still"


def test_every_option_of_a_stopped_machine(cli: Cli, still: str) -> None:
    cli(
        "set", still, "--vcpus", "1", "-m", "300MiB", "--accelerator", "tcg", "--restart", "on-failure",
        "--autostart", "--disk-bus", "scsi", "--agent-port", "virtio", "--hyperv", "--isolated",
        "--limit", "cpu=50%", "--limit", "iops=200",
    )  # fmt: skip
    spec = cli.json("info", still)["spec"]
    assert (spec["vcpus"], spec["memory"], spec["accelerator"], spec["disk_bus"]) == (
        1,
        300 << 20,
        "tcg",
        "scsi",
    )
    assert (spec["restart"], spec["autostart"], spec["hyperv"], spec["uplink"]) == (
        "on-failure",
        True,
        True,
        "isolated",
    )
    assert (spec["limits"]["cpu"], spec["limits"]["iops"]) == (50, 200)
    cli("set", still, "--no-autostart", "--no-hyperv", "--uplink", "--limit", "cpu=none", "--no-require-jail")
    spec = cli.json("info", still)["spec"]
    assert (spec["autostart"], spec["hyperv"], spec["uplink"], spec["limits"]["cpu"]) == (
        False,
        False,
        True,
        None,
    )
    cli("set", still, "--no-uplink")
    assert cli.json("info", still)["nics"] == []
    cli("set", still, "--nic", "uplink,model=e1000e")
    assert [nic["model"] for nic in cli.json("info", still)["nics"]] == ["e1000e"]
    cli("set", still, "--force", "--vcpus", str((os.cpu_count() or 1) + 1))
    done = cli("set", still, "--require-jail", check=False)  # this host may lack a part of the jail
    assert done.returncode == 0 or b"jail" in done.stderr


def test_the_guest_sees_the_new_settings(cli: Cli, booted: bough.Snapshot, gone: list[str]) -> None:
    gone.append("grows")
    cli("fork", booted.id, "grows")
    cli.error(
        "set",
        "grows",
        "--vcpus",
        "1",
        "--memory",
        "384MiB",
        says="vcpus, memory change only",
        hint="bough stop grows",
    )
    cli("set", "grows", "--autostart", "--disk", "20GiB")
    size = "df --output=size -BG / | tail -1"
    assert int(cli.text("exec", "grows", "--", "sh", "-c", size).strip(" G")) > 17
    cli.error("set", "grows", "--disk", "1GiB", says="a disk only grows")
    cli("snapshot", "create", "grows", "--now", "--name", "grows-before")
    try:
        cli("stop", "grows", "--force")
        cli("set", "grows", "--vcpus", "1", "--memory", "384MiB")
        cli.error("restore", "grows", "grows-before", says="other settings", hint="bough fork")
        cli("serve", "--stop")
        cli("start", "grows")
        told = cli.text("exec", "grows", "--", "sh", "-c", "nproc; grep MemTotal /proc/meminfo").split()
        assert told[0] == "1"
        assert 300 << 10 < int(told[2]) <= 384 << 10
    finally:
        cli("delete", "grows", "--force")
        cli("snapshot", "delete", "grows-before")


def test_what_cannot_change(cli: Cli, still: str) -> None:
    cli.error("set", still, "--cpu", "max", says="cpu: cannot change", hint="bough create")
    cli.error("set", still, "--user", "ada", says="first boot", hint="inside the guest")
    cli.error("set", still, "--port", "8080:80", says="command of its own", hint="bough port")
    told = cli.error("set", still, "--memory", "few", "--vcpus", "0", "--hostname", "x", says="3 problems")
    assert "memory: " in told
    cli.error("set", still, says="no setting")
    cli.error("set", "absent", "--vcpus", "1", says="absent")
    assert cli.json("info", still)["spec"]["memory"] == 512 << 20


def test_in_python(hv: bough.Hypervisor, still: str) -> None:
    vm = hv.machine(still)
    vm.set(vcpus=1, limits={"cpu": 50})
    assert vm.info().vcpus == 1
    with pytest.raises(InvalidSpec, match="memroy: no such setting"):
        vm.set(memroy="1GiB")
    vm.set(limits={"cpu": None})
    assert vm.info().raw["spec"]["limits"]["cpu"] is None


@pytest.fixture
def project(hv: bough.Hypervisor, debian: str, tmp_path: Path) -> Iterator[bough.Machine]:
    path = tmp_path / "settled" / "bough.toml"
    path.parent.mkdir()
    path.write_text(f'image = "{debian}"\nmemory = "{MEMORY}"\n')
    made = hv.project(path)
    made.up()
    yield next(iter(made.machines.values()))
    made.down(volumes=True, force=True)


def test_a_machine_of_a_project(project: bough.Machine) -> None:
    with pytest.raises(Conflict, match="whose file has its settings") as caught:
        project.set(autostart=True)
    assert (caught.value.hint or "").endswith("bough.toml and run `bough up`")


def test_a_suspended_machine(hv: bough.Hypervisor, booted: bough.Snapshot) -> None:
    with booted.fork(ephemeral=True) as vm:
        vm.suspend()
        with pytest.raises(WrongState, match="saved memory"):
            vm.set(memory="1GiB", limits={"cpu": "50%"})
        vm.set(restart="on-failure")
        vm.resume()
        assert vm.info().raw["spec"]["restart"] == "on-failure"
