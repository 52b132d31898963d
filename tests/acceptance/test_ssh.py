"""`bough ssh` and `bough ssh-config`, with OpenSSH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.paths import Home
from tests.acceptance.conftest import BOUGH, Cli

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh on this host")


@pytest.fixture
def nobody(tmp_path: Path) -> Cli:
    """Return a user without ~/.ssh and without an ssh-agent."""
    return Cli({"HOME": str(tmp_path), "SSH_AUTH_SOCK": ""})


@pytest.fixture
def bare(cli: Cli, box: str) -> Iterator[str]:
    """Yield `box` without any authorized key; its keys are restored afterwards."""
    keys = "/root/.ssh/authorized_keys"
    cli("exec", box, "--", "sh", "-c", f"mv {keys} {keys}.kept")
    yield box
    cli("exec", box, "--", "mv", f"{keys}.kept", keys)


def ssh(config: Path, *words: str, cli: Cli) -> subprocess.CompletedProcess[bytes]:
    command = ["ssh", "-F", str(config), "-o", "BatchMode=yes", *words]
    return subprocess.run(command, capture_output=True, check=False, timeout=120, env=cli.env, stdin=-3)


def write_config(cli: Cli, *words: str, path: Path) -> Path:
    path.write_text(cli.text(*words))
    return path


def test_a_command_by_bough_ssh(nobody: Cli, bare: str) -> None:
    done = nobody("ssh", bare, "hostname; cat; exit 3", stdin=b"piped", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"box\npiped", b"")
    assert nobody.text("ssh", bare, "-o", "BatchMode=yes", "--", "echo", "again") == "again"
    assert not Path(nobody.environment["HOME"], ".ssh").exists()


def test_the_key_is_written_once_and_spoils_no_other(cli: Cli, bare: str, bough_home: Home) -> None:
    cli("exec", bare, "--", "sh", "-c", "printf 'ssh-ed25519 AAAA no-line-end' > /root/.ssh/authorized_keys")
    for _ in range(2):
        cli("ssh", bare, "true")
    lines = cli.text("exec", bare, "--", "cat", "/root/.ssh/authorized_keys").splitlines()
    assert lines == ["ssh-ed25519 AAAA no-line-end", bough_home.ssh_public_key.read_text().strip()]
    assert bough_home.ssh_key.stat().st_mode & 0o777 == 0o600


def test_as_another_user_of_the_guest(nobody: Cli, box: str) -> None:
    nobody("exec", box, "--", "useradd", "-m", "-s", "/bin/sh", "ada")
    try:
        assert nobody.text("ssh", box, "-l", "ada", "whoami") == "ada"
        keys = "stat -c '%U %a' /home/ada/.ssh /home/ada/.ssh/authorized_keys"
        assert nobody.text("exec", box, "--", "sh", "-c", keys) == "ada 700\nada 600"
    finally:
        nobody("exec", box, "--", "sh", "-c", "pkill -KILL -u ada; userdel -r ada 2> /dev/null")
    done = nobody("ssh", box, "-l", "ada", "-o", "BatchMode=yes", "true", check=False)
    assert done.returncode == 255
    assert "does not accept bough's own ssh key for ada" in done.stderr.decode()


def test_an_agent_with_many_keys(cli: Cli, box: str, tmp_path: Path) -> None:
    """sshd ends a login after six unknown keys."""
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        for number in range(7):
            key = tmp_path / f"key{number}"
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
            added = os.environ | {"SSH_AUTH_SOCK": str(socket)}
            subprocess.run(["ssh-add", "-q", key], check=True, env=added, timeout=30)
        assert Cli({"SSH_AUTH_SOCK": str(socket)}).text("ssh", box, "echo in") == "in"
    finally:
        agent.kill()
        agent.wait()


def test_a_config_of_python_m_bough(cli: Cli, box: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bough", "ssh-config", box]
    told = subprocess.run(command, capture_output=True, check=True, env=cli.env, timeout=120).stdout
    (tmp_path / "config").write_bytes(told)
    done = ssh(tmp_path / "config", box, "echo in", cli=cli)
    assert (done.stdout, done.stderr) == (b"in\n", b"")


def test_one_entry_for_every_machine(
    cli: Cli, booted: bough.Snapshot, tmp_path: Path, gone: list[str]
) -> None:
    """A machine that is made after the entry is reached, by its name with the ending."""
    config = write_config(cli, "ssh-config", "--wildcard", path=tmp_path / "config")
    gone.append("later")
    cli("fork", booted.id, "later")
    done = ssh(config, "later.bough", "whoami; hostname", cli=cli)
    assert (done.stdout, done.stderr) == (b"root\nlater\n", b"")
    done = ssh(config, "never.bough", "true", cli=cli)
    assert done.returncode == 255
    assert "never" in done.stderr.decode()
    banner = cli("proxy", "--suffix", ".bough", "later.bough", "22", stdin=b"")
    assert banner.stdout.startswith(b"SSH-2.0-")


def test_a_config_that_was_appended_twice_and_a_machine_made_anew(
    cli: Cli, booted: bough.Snapshot, tmp_path: Path, gone: list[str]
) -> None:
    gone.append("anew")
    config = tmp_path / "config"
    config.write_text("# an editor left no line end")
    for _ in range(2):
        cli("fork", booted.id, "anew")
        with config.open("a") as stream:
            stream.write(cli("ssh-config").stdout.decode())
        done = ssh(config, "anew", "cat /etc/hostname", cli=cli)
        assert (done.stdout, done.stderr) == (b"anew\n", b"")
        cli("delete", "anew", "--force")


@pytest.mark.parametrize("name", ["a b'c\"d", "100%h $HOME `x`", "\\n,:ö"])
def test_a_home_with_an_odd_name(cli: Cli, box: str, bough_home: Home, tmp_path: Path, name: str) -> None:
    odd = tmp_path / name
    odd.mkdir()
    # The output of ssh-config for such a home, from the same service.
    (odd / "home").symlink_to(bough_home.root)
    shown = Home(odd / "home")
    from bough.cli.ssh import render_entry

    config = tmp_path / "config"
    text = render_entry(shown, box, "root")
    assert str(bough_home.root) not in text
    config.write_text(text.replace(sys.argv[0], str(BOUGH)))
    done = ssh(config, box, "echo in", cli=cli)
    assert (done.stdout, done.stderr) == (b"in\n", b"")
