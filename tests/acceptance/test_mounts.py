"""A directory of the host in a machine: through its first boot, a fork, a killed service, a restart."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.errors import Conflict, GuestRefused, InvalidInput, InvalidSpec, NotFound
from bough.paths import Home
from tests.acceptance.conftest import Cli
from tests.conftest import MEMORY
from tests.waiting import wait_until

SOURCE = "/srv/src"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    place = tmp_path / "shared dir"
    (place / "sub").mkdir(parents=True)
    (place / "word").write_text("hello\n")
    (place / "up").symlink_to("../outside")
    (place / os.fsdecode(b"not-utf8-\xff")).touch()
    (tmp_path / "outside").write_text("the guest must not see this\n")
    return place


@pytest.fixture
def made(hv: bough.Hypervisor) -> Iterator[list[bough.Machine]]:
    machines: list[bough.Machine] = []
    yield machines
    for machine in reversed(machines):
        machine.delete(force=True)


def read(machine: bough.Machine) -> str:
    return machine.shell(f"cat {SOURCE}/word", check=True).stdout.strip()


def test_a_shared_directory_lives_as_long_as_its_machine(
    hv: bough.Hypervisor, cli: Cli, debian: str, bough_home: Home, shared: Path, made: list[bough.Machine]
) -> None:
    mounts = [{"source": str(shared), "target": SOURCE, "writable": True}, f"{shared}/sub:/opt/sub"]
    commands = [f"cat {SOURCE}/word >> /root/at-first-boot"]
    machine = hv.run(debian, name="sharing", memory=MEMORY, users=["joe"], commands=commands, mounts=mounts)
    made.append(machine)
    assert machine.read_text("/root/at-first-boot") == "hello\n"
    assert [mount.state for mount in machine.mounts()] == ["mounted", "mounted"]

    # Each side sees the other's writes, with its own owner.
    script = f"cd {SOURCE} && mkdir in && printf from-joe > in/file && stat -c '%U %a' in/file"
    assert machine.shell(script, user="joe", check=True).stdout.split() == ["joe", "644"]
    assert (shared / "in" / "file").read_text() == "from-joe"
    assert (shared / "in" / "file").stat().st_uid == shared.stat().st_uid
    assert machine.shell(f"ls {SOURCE} | wc -l; cat {SOURCE}/up").stdout.strip() == "5"
    (shared / "word").write_text("later\n")
    wait_until(lambda: read(machine) == "later", timeout_s=20)
    refused = f"chmod 4755 {SOURCE}/word || mknod {SOURCE}/p p || touch /opt/sub/x"
    assert machine.shell(refused).exit_code != 0
    assert not list((shared / "sub").iterdir())
    # A command with its working directory there, and a command whose program is there.
    machine.write_file(f"{SOURCE}/run.sh", "#!/bin/sh\npwd\n", mode=0o755)
    assert machine.exec(f"{SOURCE}/run.sh", cwd=f"{SOURCE}/sub").stdout.strip() == f"{SOURCE}/sub"
    with pytest.raises(GuestRefused):
        machine.exec("no-such-command")

    ticking = (
        f"cd {SOURCE}; setsid sh -c 'while :; do date +%s%N >> ticks; sleep 0.2; done' >/dev/null 2>&1 &"
    )
    machine.shell(ticking, check=True)
    fork = machine.fork()
    made.append(fork)
    fork.shell(f"echo fork > {SOURCE}/of-fork", check=True)
    assert (shared / "of-fork").read_text() == "fork\n"
    fork.delete(force=True)
    made.remove(fork)

    # The service is killed; processes in the guest do not notice.
    os.kill(int(bough_home.lock.read_text()), signal.SIGKILL)
    cli("wait", "sharing")
    ticks = shared / "ticks"
    before = ticks.stat().st_size
    wait_until(lambda: ticks.stat().st_size > before, timeout_s=30)
    assert cli.text("exec", "sharing", "--", "cat", f"{SOURCE}/word") == "later"

    with pytest.raises(Conflict, match="in use"):
        machine.unmount(SOURCE)
    machine.unmount(SOURCE, force=True)
    assert machine.shell(f"ls {SOURCE}").stdout == ""
    machine.mount(shared, SOURCE)
    assert machine.shell(f"touch {SOURCE}/x").exit_code != 0
    machine.restart()
    assert read(machine) == "later"
    assert machine.read_text("/root/at-first-boot") == "hello\n", "a command of the first boot ran again"

    machine.stop()
    shared.rename(shared.with_name("moved"))
    cli.error("start", "sharing", says="which is gone", hint="bough umount sharing")
    shared.with_name("moved").rename(shared)


def test_a_share_through_a_restore_and_a_suspension(
    hv: bough.Hypervisor, cli: Cli, booted: bough.Snapshot, shared: Path, made: list[bough.Machine]
) -> None:
    machine = booted.fork()
    made.append(machine)
    machine.mount(shared, SOURCE, writable=True)
    snapshot = machine.snapshot()
    try:
        (shared / "word").write_text("changed\n")
        machine.write_file("/root/since", "x")
        machine.restore(snapshot)
        with pytest.raises(NotFound):
            machine.read_text("/root/since")
        assert read(machine) == "changed", "the directory stays as it is now"
        machine.suspend()
        machine.resume()
        assert read(machine) == "changed"
        # If the directory is gone, a fork runs without it and reports so.
        shared.rename(shared.with_name("away"))
        with pytest.raises(GuestRefused, match="not mounted"):
            snapshot.fork("without")
        fork = hv.machine("without")
        made.append(fork)
        assert fork.exec("true").ok
        assert fork.mounts()[0].state == "not mounted"
        shared.with_name("away").rename(shared)
        cli("mount", "without", "--again")
        assert read(fork) == "changed"
    finally:
        snapshot.delete()


def test_what_cannot_be_shared(
    hv: bough.Hypervisor, cli: Cli, box: str, bough_home: Home, tmp_path: Path
) -> None:
    machine = hv.machine(box)
    (tmp_path / "file").touch()
    for source, error in (
        (tmp_path / "absent", NotFound),
        (tmp_path / "file", InvalidInput),
        (bough_home.machines, InvalidInput),
    ):
        with pytest.raises(error):
            machine.mount(source, "/srv/x")
    with pytest.raises(InvalidSpec):
        machine.mount(tmp_path, "/proc/x")
    with pytest.raises(GuestRefused, match="no user 'nobody-here'"):
        machine.mount(tmp_path, "/srv/x", owner="nobody-here")
    assert machine.mounts() == []
    cli.error("mount", box, "nonsense", says="DIR:PATH")
    cli.error("umount", box, "/srv/x", says="no directory of the host")
