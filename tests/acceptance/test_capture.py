"""A live host is captured over ssh, as if it were a stranger's; the copy boots and is refreshed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import bough
from tests.acceptance.conftest import Cli

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh on this host")

CUSTOMIZE = r"""
set -e
useradd -m -u 1234 joe
echo 'vm.swappiness = 7' > /etc/sysctl.d/90-own.conf
mkdir -p /srv/data/deep '/srv/a b'
printf 'first\n' > '/srv/a b/file with spaces'
ln '/srv/a b/file with spaces' /srv/data/linked
ln -s ../data /srv/data/loop
truncate -s 1G /srv/data/sparse
chown joe: /srv/data/deep
chmod 2750 /srv/data/deep
setfattr -n user.note -v kept /srv/data/linked 2>/dev/null ||
    python3 -c 'import os; os.setxattr("/srv/data/linked", "user.note", b"kept")'
printf 'x' > "$(printf '/srv/data/not-utf8-\377')"
mkdir -p /etc/cron.d /root/.ssh
cat > /etc/systemd/system/cron.service <<'END'
[Service]
ExecStart=/bin/sh -c 'echo mailed > /srv/mailed; sleep infinity'
[Install]
WantedBy=multi-user.target
END
cat > /etc/systemd/system/shop.service <<'END'
[Service]
ExecStart=/bin/sh -c 'echo open > /run/shop; sleep infinity'
[Install]
WantedBy=multi-user.target
END
systemctl enable -q cron shop
echo secret > /root/.ssh/id_ed25519
echo big > /var/tmp/left-out.iso
sync
"""
CHECK = r"""
id -u joe; cat /proc/sys/vm/swappiness; cat '/srv/a b/file with spaces'
stat -c '%h %a %U' /srv/data/linked /srv/data/deep
python3 -c 'import os; print(os.getxattr("/srv/data/linked", "user.note").decode())'
du -k /srv/data/sparse | cut -f1; ls /srv/data | wc -l; systemctl is-active shop
ls /srv/mailed /var/tmp/left-out.iso /root/.ssh/id_ed25519 2>&1 | grep -c 'No such'
grep -c . /etc/bough-quiet
"""


@pytest.fixture
def host(cli: Cli, booted: bough.Snapshot, gone: list[str], tmp_path: Path) -> str:
    """Return the ssh address of a customised machine that this test's ssh reaches."""
    gone.append("prod")
    cli("fork", booted.id, "prod")
    cli("exec", "prod", "--", "sh", "-c", CUSTOMIZE)
    config = tmp_path / "config"
    config.write_text(cli.text("ssh-config", "prod"))
    found = shutil.which("ssh")
    programs = tmp_path / "bin"
    programs.mkdir()
    wrapper = programs / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {found} -F {config} "$@"\n')
    wrapper.chmod(0o755)
    name = next(line.split()[1] for line in config.read_text().splitlines() if line.startswith("Host "))
    return f"ssh://{name}"


@pytest.fixture
def ours(cli: Cli, tmp_path: Path) -> Cli:
    return Cli({"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_host_is_captured(host: str, ours: Cli, cli: Cli, gone: list[str], images: list[str]) -> None:
    images.append("prod-copy")
    plan = ours.json("image", "capture", host, "--name", "prod-copy", "--dry-run", "--loud")
    assert next(mount["point"] for mount in plan["copied"]) == "/"
    ours(
        *("image", "capture", host, "--name", "prod-copy", "--scrub", "--exclude", "*.iso"),
        *("--quiet", "--size", "9GiB", "--bandwidth", "1gbit"),
        *("--before", "echo quiet > /srv/data/hook", "--after", "rm /srv/data/hook"),
        timeout_s=1200,
    )  # fmt: skip
    assert "capture-prod-copy" not in cli.names()
    gone += ["copy", "newer"]
    cli("run", "prod-copy", "--name", "copy", "--memory", "512MiB", "--", "true", timeout_s=600)
    told = cli.text("exec", "copy", "--", "sh", "-c", CHECK).splitlines()
    assert told == ["1234", "7", "first", "2 644 root", "2 2750 joe", "kept", "0", "6", "active", "3", "1"]
    assert cli.text("exec", "copy", "--", "hostname") == "copy"
    mine, theirs = (cli.text("exec", name, "--", "cat", "/etc/machine-id") for name in ("copy", "prod"))
    assert mine != theirs
    cli("exec", "copy", "--", "bough-speak")
    cli("restart", "copy", timeout_s=600)
    cli("exec", "copy", "--", "sh", "-c", "until test -e /srv/mailed; do sleep 0.2; done", timeout_s=120)

    cli("exec", "prod", "--", "sh", "-c", "echo second > '/srv/a b/new'; rm /srv/data/linked; sync")
    moved = ("--address", host, "--bandwidth", "1gbit")
    assert ours.json("image", "refresh", "prod-copy", *moved, timeout_s=1200)["labels"] == ["prod-copy"]
    cli("run", "prod-copy", "--name", "newer", "--memory", "512MiB", "--", "true", timeout_s=600)
    script = "cat '/srv/a b/new'; ls /srv/data/linked 2>&1 | grep -c 'No such'"
    assert cli.text("exec", "newer", "--", "sh", "-c", script).splitlines() == ["second", "1"]


def test_what_is_no_host(cli: Cli, host: str, ours: Cli) -> None:
    cli.error("image", "capture", "db", "--name", "x", says="ssh", hint="ssh://")
    ours.error(
        "image", "capture", "ssh://nowhere.invalid", "--name", "x", says="could not log in", hint="ssh"
    )
    ours.error("image", "capture", host, "--name", "x", "--size", "1GiB", says="too small")
