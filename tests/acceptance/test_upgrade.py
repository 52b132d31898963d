"""An upgrade to another version of bough: the unit of `bough serve --unit`, and machines that run on."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bough.paths import Home
from tests.acceptance.conftest import Cli
from tests.acceptance.test_life import has_ended
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
OTHER = "0.1.0.post17"


@pytest.fixture(scope="module")
def other_bough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command of another version: a wheel of a copy of this tree, in a separate venv."""
    place = tmp_path_factory.mktemp("other")
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (source / "pyproject.toml", source / "src/bough/version.py"):
        text, count = re.subn(
            r'^(version|__version__) = ".*"$', rf'\1 = "{OTHER}"', file.read_text(), flags=re.M
        )
        assert count == 1, file
        file.write_text(text)
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-qq", "--no-deps", "--wheel-dir", place, source], check=True)
    (wheel,) = place.glob("bough-*.whl")
    venv = place / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    site = next(venv.glob("lib/python3*/site-packages"))
    subprocess.run([*pip, "install", "-qq", "--no-deps", "--target", site, wheel], check=True)
    # Its dependencies are the ones installed here; its own packages have priority.
    here = next(Path(sys.prefix).glob("lib/python3*/site-packages"))
    (site / "dependencies.pth").write_text(f"{here}\n")
    command = place / "bough"
    command.write_text(f"#!/bin/sh\nexec {python} -c 'from bough.cli.entry import main; main()' \"$@\"\n")
    command.chmod(0o755)
    return command


def unit_of(command: str | Path) -> str:
    return subprocess.run([command, "serve", "--unit"], check=True, capture_output=True, text=True).stdout


def start_unit(unit: str) -> subprocess.Popen[bytes]:
    """Start the unit's command line, as systemd would."""
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.M)
    return subprocess.Popen(shlex.split(line.replace("%%", "%").replace("$$", "$")), start_new_session=True)


def stop_unit(process: subprocess.Popen[bytes]) -> None:
    """Stop as KillMode=process does: only the main process gets the signal."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0


def test_the_unit_is_one_that_systemd_takes(cli: Cli, tmp_path: Path) -> None:
    home = tmp_path / 'a "home" of 100% $HOME'
    unit = Cli({"BOUGH_HOME": str(home)}).text("serve", "--unit") + "\n"
    assert "KillMode=process" in unit
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on this host")
    (tmp_path / "bough.service").write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "bough.service"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "bough.service" in line]
    assert not complaints, complaints


def test_machines_outlive_an_upgrade(cli: Cli, box: str, bough_home: Home, other_bough: Path) -> None:
    boot = cli.text("exec", box, "--", "cat", "/proc/sys/kernel/random/boot_id")
    before = cli.json("info", box)
    cli("exec", box, "--", "sh", "-c", "sleep 1000 & echo $! > /run/job")
    pid = int(bough_home.lock.read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: has_ended(pid))

    def other(*words: str) -> str:
        return subprocess.run([other_bough, *words], capture_output=True, text=True, check=True).stdout

    def version() -> str:
        code = "import bough.client as c; print(c.connect(start=False).version()['version'])"
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    old = start_unit(unit_of(Path(sys.executable).parent / "bough"))
    try:
        wait_until(bough_home.api_socket.exists)
        assert cli.json("info", box)["pid"] == before["pid"]
    finally:
        stop_unit(old)
    new = start_unit(unit_of(other_bough))
    try:
        wait_until(bough_home.api_socket.exists)
        assert version() == OTHER
        assert f'"pid": {before["pid"]}' in other("info", box, "--json")
        script = "cat /proc/sys/kernel/random/boot_id; kill -0 $(cat /run/job) && echo on"
        assert other("exec", box, "--", "sh", "-c", script).split() == [boot, "on"]
        assert new.poll() is None
    finally:
        stop_unit(new)
    # And back: a downgrade to the version under test.
    assert cli.text("exec", box, "--", "cat", "/proc/sys/kernel/random/boot_id") == boot
    cli("exec", box, "--", "sh", "-c", "kill $(cat /run/job)")
