"""Programs of the agent disk, control groups, seeds and ports of a guest with few programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bough.guest
from bough.guest import agent_groups, agent_port, agent_python, agent_renewal, agent_spawn

SOURCE = Path(bough.guest.__file__).parents[2]


def test_the_guests_own_python_has_no_place() -> None:
    assert not agent_python.PRIVATE
    assert agent_python.TOOLS == agent_python.BUSYBOX == ""
    assert agent_python.python_words() == [sys.executable]
    assert agent_python.program_words("sshfs") == []


def test_a_python_below_its_own_loader(tmp_path: Path) -> None:
    loader = next((path for path in map(Path, LOADERS) if path.exists()), None)
    system = Path("/usr/bin/python3")
    if loader is None or not system.exists():
        pytest.skip("this host has no loader of the C library that is known here")
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from bough.guest import agent_python as p; "
        "print(p.PRIVATE, p.TOOLS, *p.python_words())"
    )
    own = tmp_path / "lib/ld.so"
    own.parent.mkdir()
    shutil.copy(loader, own)
    told = subprocess.run(
        [own, "--library-path", LIBRARIES, system, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={},
    ).stdout.split()
    assert told == [
        *("True", f"{tmp_path}/tools", str(own), "--inhibit-cache", "--library-path", f"{tmp_path}/lib"),
        str(system),
    ]


LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-linux.so.2")
LIBRARIES = "/lib/x86_64-linux-gnu:/lib/aarch64-linux-gnu"


def test_a_guest_without_a_shell_has_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert agent_spawn._shell() == b"/bin/sh"
    monkeypatch.setattr(agent_spawn, "BUSYBOX", "/.bough/bin/busybox")
    assert agent_spawn._shell() == b"/bin/sh"  # the guest's own goes first
    monkeypatch.setattr(agent_spawn, "_SHELL", os.fsencode(tmp_path / "sh"))
    assert agent_spawn._shell() == b"/.bough/bin/busybox"
    command = agent_spawn._Command({"argv": [str(tmp_path / "sh"), "-c", "true"]})
    assert command.path == b"/.bough/bin/busybox"
    assert command.argv[0] == os.fsencode(tmp_path / "sh")


def test_tools_are_for_the_agent_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bough-test-tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setattr(agent_spawn, "TOOLS", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        agent_spawn._Command({"argv": [tool.name]})
    command = agent_spawn._Command({"argv": [tool.name], "tool": True})
    assert command.path == os.fsencode(tool)
    assert str(tmp_path) not in command.environment["PATH"]


def test_a_containers_command_makes_its_directory(tmp_path: Path) -> None:
    place = tmp_path / "srv/app"
    agent_spawn._Command({"argv": ["/bin/true"], "cwd": str(place)})
    assert not place.exists()
    agent_spawn._Command({"argv": ["/bin/true"], "cwd": str(place), "as_image": True})
    assert place.is_dir()


def test_the_keeper_leaves_the_group_of_its_service(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(
        "2:name=openrc:/bough-agent\n1:cpu:/\n0::/openrc.bough-agent\n"
    )
    for name in ("openrc", "unified", "cpu"):
        (tmp_path / "sys/fs/cgroup" / name).mkdir(parents=True)
    moved = agent_groups.leave_service(str(tmp_path))
    assert [Path(one).relative_to(tmp_path / "sys/fs/cgroup").as_posix() for one in moved] == [
        "openrc/bough",
        "unified/bough",
    ]
    assert (tmp_path / "sys/fs/cgroup/openrc/bough/cgroup.procs").read_text() == "0"
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert agent_groups.leave_service(str(tmp_path)) == []


def test_existing_seeds_are_renewed(tmp_path: Path) -> None:
    seed = tmp_path / "var/lib/seedrng/seed.credit"
    seed.parent.mkdir(parents=True)
    seed.write_bytes(bytes(512))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"kept")
    (tmp_path / "var/lib/urandom").mkdir()
    (tmp_path / "var/lib/urandom/random-seed").symlink_to(elsewhere)
    agent_renewal.renew_seeds(str(tmp_path))
    assert seed.stat().st_size == 512
    assert seed.read_bytes() != bytes(512)
    assert elsewhere.read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.rglob("*seed*")) == ["random-seed", "seed.credit", "seedrng"]


def test_a_serial_port_passes_all_bytes() -> None:
    host, port = os.openpty()
    agent_port.set_raw(port)
    every = bytes(range(256))
    os.write(host, every)
    assert os.read(port, 1000) == every
    os.write(port, every)
    assert os.read(host, 1000) == every
    os.close(host)
    os.close(port)


def test_a_port_that_is_only_a_name_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_port, "_SERIAL", "ttyS-none")
    assert agent_port._try_serial() == -1
    assert agent_port._try_port("org.bough.none") == -1
