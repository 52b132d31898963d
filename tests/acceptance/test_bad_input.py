"""Wrong requests: one clear error and a hint, an exit status, nothing half-made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.paths import Home
from tests.acceptance.conftest import BOUGH, Cli
from tests.acceptance.test_life import has_ended
from tests.conftest import MEMORY
from tests.waiting import wait_until


def test_an_unknown_image(cli: Cli, debian: str) -> None:
    cli.error("create", "debain:12", says="debain:12", hint="debian:12")
    cli.error("image", "build", "debian:1", says="debian:1", hint="debian:1")
    cli.error("image", "delete", "nothing", says="nothing")
    cli.error("run", "no-such-image", "--", "true", says="no-such-image")


def test_an_unknown_architecture(cli: Cli, debian: str) -> None:
    assert "x86_64" in cli.error("create", debian, "--arch", "x86-46", says="x86-46")


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--memory", "512MiBB", "512MiBB"),
        ("--memory", "-1", "memory"),
        ("--memory", "0", "memory"),
        ("--disk", "ten", "ten"),
        ("--vcpus", "0", "vcpus"),
        ("--vcpus", "two", "two"),
        ("--firmware", "coreboot", "coreboot"),
        ("--clock", "yesterday", "yesterday"),
        ("--name", "a b", "a b"),
        ("--name", "../x", "../x"),
        ("--port", "80:80:80:80", "80:80:80:80"),
    ],
)
def test_an_unknown_unit_or_value(cli: Cli, debian: str, flag: str, value: str, says: str) -> None:
    done = cli("create", debian, flag, value, check=False)
    told = done.stderr.decode()
    assert done.returncode in {1, 2}, told
    assert says in told
    assert "Traceback" not in told


def test_every_problem_of_a_spec_at_once(cli: Cli, tmp_path: Path) -> None:
    spec = tmp_path / "bough.toml"
    spec.write_text(
        'image = "debian:12"\nmemroy = "1GiB"\ndisk = "10 GB/s"\nvcpus = -2\n[[disks]]\nsize = "x"\n'
    )
    told = cli.error("create", "--file", spec, says="memroy")
    for place in ("memroy", "disk", "vcpus", "disks[0].size"):
        assert place in told, told
    assert "memory" in told.replace("memroy", "")
    assert "line 2: memroy" in told, told
    assert "line 4: vcpus" in told, told


@pytest.mark.parametrize("keep", [["--keep"], []])
def test_a_run_names_the_line_of_the_file(cli: Cli, tmp_path: Path, keep: list[str]) -> None:
    spec = tmp_path / "machine.toml"
    spec.write_text('image = "debian:12"\nmemory = "few"\n')
    cli.error("run", *keep, "--file", spec, "--", "true", says="machine.toml, line 2: memory")


def test_a_spec_that_is_not_toml_or_not_there(cli: Cli, tmp_path: Path) -> None:
    spec = tmp_path / "bough.toml"
    spec.write_text('image = "debian:12"\nthis is not toml\n')
    told = cli.error("create", "--file", spec, says="bough.toml")
    assert "line 2" in told, told
    spec.write_bytes(b"\xff\xfe\0")
    cli.error("create", "--file", spec, says="bough.toml")
    cli.error("create", "--file", tmp_path / "absent.toml", says="absent.toml")


def test_a_name_that_is_taken(cli: Cli, box: str, debian: str) -> None:
    cli.error("create", debian, "--name", box, says=box, hint="another name")


def test_beyond_the_host(cli: Cli, debian: str, gone: list[str]) -> None:
    cli.error("create", debian, "--memory", "900TiB", says="memory")
    cli.error("create", debian, "--memory", "4TiB", says="memory", hint="--force")
    cpus = (os.cpu_count() or 1) + 1
    cli.error("create", debian, "--vcpus", str(cpus), says="vcpus", hint="--force")
    cli.error("create", debian, "--disk", "1000TiB", says="disk")
    gone.append("forced")
    cli("create", debian, "--name", "forced", "--vcpus", str(cpus), "--force")


def test_an_unknown_command_and_option(cli: Cli) -> None:
    done = cli("strat", check=False)
    assert done.returncode == 2
    assert b"strat" in done.stderr
    assert cli("list", "--jsno", check=False).returncode == 2


def test_a_port_that_is_taken(cli: Cli, box: str) -> None:
    port = cli.json("port", "add", box, "0:22")["host_port"]
    try:
        cli.error("port", "add", box, f"{port}:80", says=str(port))
    finally:
        cli("port", "remove", box, str(port))


# -- hosts that lack something ------------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Cli]:
    """Yield a BOUGH_HOME without images or machines, with its own PATH in `bin`."""
    root = Path(tempfile.mkdtemp(prefix="bough-test-", dir="/var/tmp"))
    root.chmod(0o711)
    (tmp_path / "bin").mkdir()
    cli = Cli({"BOUGH_HOME": str(root), "PATH": f"{tmp_path / 'bin'}"})
    yield cli
    end_service(root)
    shutil.rmtree(root)


def end_service(root: Path) -> None:
    home = Home.at(root)
    if home.api_socket.exists():
        pid = int(home.lock.read_text())
        os.kill(pid, 15)
        wait_until(lambda: has_ended(pid))


def test_no_qemu(fresh: Cli) -> None:
    fresh.error("create", "debian:12", says="qemu", hint="install")
    assert "qemu-system" in fresh("doctor", check=False).stdout.decode()


def test_a_qemu_that_is_too_old(fresh: Cli, tmp_path: Path) -> None:
    for arch in ("x86_64", "aarch64"):
        old = tmp_path / "bin" / f"qemu-system-{arch}"
        old.write_text("#!/bin/sh\necho QEMU emulator version 6.2.0\n")
        old.chmod(0o755)
    fresh.error("create", "debian:12", says="7.2 is the oldest", hint="install")


def test_no_mmdebstrap(fresh: Cli) -> None:
    fresh.error("image", "build", "debian:12", says="mmdebstrap", hint="install")
    assert fresh.json("image", "list") == []


def test_no_space_left_for_an_image() -> None:
    """Use a BOUGH_HOME on a small file system, in a mount namespace that ends with the test."""
    script = (
        "mount -t tmpfs -o size=64m,mode=0711 tmpfs /mnt && export BOUGH_HOME=/mnt/home && "
        f"{BOUGH} image build debian:12; echo status $?; {BOUGH} image list --json; "
        'ls -A $BOUGH_HOME/incoming | sed "s/^/left: /"; kill $(cat $BOUGH_HOME/lock); '
        "while kill -0 $(cat $BOUGH_HOME/lock) 2>/dev/null; do :; done"
    )
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    done = subprocess.run(
        [*unshare, "sh", "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert "status 0" not in done.stdout, done.stdout
    assert "error: " in done.stderr
    assert "space" in done.stderr.lower(), done.stderr
    assert "[]" in done.stdout
    assert "left:" not in done.stdout, done.stdout


# -- machines that do not come up ---------------------------------------------------------------------


def test_a_qemu_that_dies_at_start(cli: Cli, bough_home: Home, debian: str, gone: list[str]) -> None:
    gone.append("broken")
    cli("create", debian, "--name", "broken", "--memory", MEMORY)
    disk = bough_home.machine(cli.json("info", "broken")["id"]).disk(0)
    disk.write_bytes(b"this is no disk")
    told = cli.error("start", "broken", says="broken")
    assert "qcow2" in told, "QEMU's own words are missing"
    failed = cli.json("info", "broken")
    assert failed["state"] == "failed"
    assert failed["failure"]["exit_status"] == 1
    assert "qcow2" in failed["failure"]["qemu_stderr"]


def test_a_disk_that_does_not_boot(cli: Cli, bough_home: Home, debian: str, gone: list[str]) -> None:
    gone.append("blank")
    cli("create", debian, "--name", "blank", "--memory", MEMORY)
    disk = bough_home.machine(cli.json("info", "blank")["id"]).disk(0)
    blank = ["qemu-io", "-f", "qcow2", "-c", "write -q -P 0 0 1M", disk]
    subprocess.run(blank, check=True, stdout=subprocess.DEVNULL)
    cli.error("start", "blank", "--timeout", "5s", says="blank", hint="bough console blank")
    wait_until(lambda: "boot" in cli.text("logs", "blank").lower(), timeout_s=90)
    told = cli.error("wait", "blank", "--timeout", "1s", says="blank", hint="bough console blank")
    assert "boot" in told.lower(), "the end of the console is missing"
    assert cli.json("info", "blank")["state"] == "running"


def test_a_guest_that_never_answers(cli: Cli, booted: bough.Snapshot, gone: list[str]) -> None:
    gone.append("mute")
    booted.fork("mute")
    cli("exec", "mute", "--", "systemctl", "mask", "bough-agent.service")
    cli("stop", "mute")
    cli.error("start", "mute", "--timeout", "5s", says="5 s", hint="bough console mute")
    wait_until(lambda: "login:" in cli.text("logs", "mute"), timeout_s=120)
    told = cli.error("wait", "mute", "--timeout", "1s", says="1 s", hint="bough console mute")
    assert "login:" in told, "the end of the console is missing"
    cli.error("exec", "mute", "--", "true", says="mute")
    # The power button works even without the agent.
    cli("stop", "mute", "--deadline", "30s")


def test_python_says_the_same(cli: Cli, debian: str) -> None:
    script = (
        "import bough\nhv = bough.connect()\n"
        "try:\n    hv.create('debian:12', memory='1 parsec', vcpus=0)\n"
        "except bough.errors.InvalidSpec as e:\n    print(sorted(p['place'] for p in e.problems))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "['memory', 'vcpus']\n"
