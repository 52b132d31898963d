"""bough outside its checkout, for root and for other users."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.paths import Home
from tests.acceptance.conftest import Cli
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


def test_version_help_and_completion(cli: Cli) -> None:
    assert cli.text("version").split()[-1]
    assert cli.text("--help").count("\n") > 20
    for shell in ("bash", "zsh", "fish"):
        assert "bough" in cli.text("completion", shell), shell


def test_doctor_names_each_thing_and_proves_accelerators(cli: Cli) -> None:
    report = cli.json("doctor", check=False)
    names = {check["name"]: check for check in report["checks"]}
    assert all(check["ok"] for check in names.values() if check["required"]), names
    accelerators = {each["name"]: each for each in report["accelerators"]}
    assert accelerators["tcg"]["usable"]
    assert accelerators["kvm"]["usable"] or accelerators["kvm"]["detail"]


def test_a_wheel_holds_all_that_is_needed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("bough-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= names, wanted - names
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert b"bough = bough.cli.entry:main" in zipfile.ZipFile(wheel).read(entry_points)


# -- an ordinary user ---------------------------------------------------------------------------------

USER = "bough-test"


@pytest.fixture
def ordinary_user(bough_home: Home, debian: str) -> Iterator[Path]:
    """Yield a new user of this host, whose BOUGH_HOME has the image."""
    if os.geteuid() != 0 or shutil.which("useradd") is None:
        pytest.skip("only root makes users (who runs this as an ordinary user tests that everywhere else)")
    subprocess.run(["useradd", "--create-home", USER], check=True)
    place = Path(tempfile.mkdtemp(prefix="bough-test-", dir="/var/tmp"))
    try:
        place.chmod(0o711)
        things = [bough_home.images, bough_home.labels]
        subprocess.run(["cp", "-a", "--sparse=always", *things, place], check=True)
        # Run a copy of bough, too: the checkout and root's Python may be closed to others.
        site = next(Path(sys.prefix).glob("lib/python3*/site-packages"))
        shutil.copytree(site, place / "site", symlinks=True)
        shutil.copytree(ROOT / "src" / "bough", place / "site" / "bough")
        subprocess.run(["chown", "-R", f"{USER}:", place], check=True)
        yield place
    finally:
        home = pwd.getpwnam(USER).pw_dir
        _wait_ended(USER)
        subprocess.run(["userdel", USER], check=True)
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(place)


def _wait_ended(user: str) -> None:
    """Wait for the ending service: userdel refuses while it still runs."""
    uid = pwd.getpwnam(user).pw_uid
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(
        _uid_of(process) == uid for process in Path("/proc").glob("[0-9]*")
    ):
        time.sleep(0.05)


def _uid_of(process: Path) -> int | None:
    try:
        return process.stat().st_uid
    except FileNotFoundError:
        return None


#: A text on the console, as for a user who is logged in there.
EDITOR = """
systemctl stop serial-getty@ttyS0
setsid -c env TERM=vt100 vi /root/letter </dev/ttyS0 >/dev/ttyS0 2>&1 &
while ! [ -e /root/.letter.swp ]; do sleep 0.1; done
"""


def test_everything_works_without_root(ordinary_user: Path, fork: bough.Machine, cli: Cli) -> None:
    """A machine of root continues as that user's, with data that is only in its memory: an editor's text."""
    fork.shell(EDITOR, check=True)
    cli("console", fork.name, stdin=b"iDear Sir")
    wait_until(lambda: "Dear Sir" in fork.logs(), what="the editor shows what was typed")
    assert not fork.shell("test -e /root/letter").ok
    bundle = ordinary_user / "letter.bough"
    fork.export(bundle)
    bundle.chmod(0o644)
    python = f"/usr/bin/python3.{sys.version_info.minor}"
    if not Path(python).exists():
        pytest.skip(f"no {python}: what is installed here cannot be run by another user")
    script = f"""
        set -e
        export BOUGH_HOME={ordinary_user} PYTHONPATH={ordinary_user}/site XDG_RUNTIME_DIR={ordinary_user}/run
        mkdir -p -m 0700 $XDG_RUNTIME_DIR
        bough() {{ {python} -m bough "$@"; }}
        leave() {{
            set +e; bough delete --force one; bough delete --force there; kill $(cat {ordinary_user}/lock)
        }}
        trap leave EXIT
        bough create debian:12 --name one --memory 512MiB
        bough start one
        bough exec one -- uname -s
        bough info one --json
        boot() {{ bough exec one -- cat /proc/sys/kernel/random/boot_id; }}
        before=$(boot)
        bough serve --stop
        rm -rf $BOUGH_HOME/run $XDG_RUNTIME_DIR
        test "$(boot)" = "$before" && echo the same boot
        bough delete --force one
        bough import {bundle} --name there
        printf ',\\rgoodbye\\033:wq\\r' | bough console there
        until bough exec there -- grep goodbye /root/letter; do sleep 0.2; done
        bough exec there -- cat /root/letter
    """
    done = subprocess.run(
        ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "env", "-i",
         f"PATH={os.environ['PATH']}", f"HOME=/home/{USER}", "bash", "-c", script],
        capture_output=True, text=True, check=False, timeout=300, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Linux\n") or "\nLinux\n" in done.stdout, done.stdout
    assert "the same boot\n" in done.stdout
    assert "Dear Sir,\ngoodbye\n" in done.stdout
