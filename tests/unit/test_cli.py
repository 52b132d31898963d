"""The command line without a service: help, usage errors, the reference, and specs from flags."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from bough.cli.main import COMMANDS, cli
from bough.cli.output import clean
from bough.cli.reference import render_reference
from bough.cli.spec import spec_of, spec_options
from bough.spec import parse_spec

ROOT = Path(__file__).resolve().parents[2]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me"


def bough(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from bough.cli.entry import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
    )


def test_the_reference_is_up_to_date() -> None:
    assert (ROOT / "docs/cli.md").read_text() == render_reference(), "run `make docs`"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    done = CliRunner().invoke(cli, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("Usage: ")
    with click.Context(cli) as context:
        command = cli.get_command(context, name)
    assert command is not None
    assert command.help


def test_a_misspelled_command() -> None:
    done = bough("strat")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: no such command: 'strat'\n\nhint: did you mean 'start'?\n"


def test_a_misspelled_option() -> None:
    done = bough("list", "--jsno")
    assert done.returncode == 2
    assert "--json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_that_cannot_be() -> None:
    done = bough("list", BOUGH_HOME="/dev/null/x")
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot create /dev/null/x")
    assert "hint: set BOUGH_HOME" in done.stderr


def test_what_the_version_needs_is_little() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "BOUGH_DEBUG": "1"}
    code = (
        "import sys; sys.argv = ['bough', 'version']\n"
        "from bough.cli.entry import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'rich', 'pydantic', 'asyncio', 'h11', 'wsproto', 'fastapi', 'tarfile'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_what_the_short_way_needs_is_next_to_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from bough.cli.fast_path import attempt\n"
        "assert attempt(['exec', 'web', 'true']) is None\n"  # no service listens
        "heavy = {'typing', 'json', 're', 'socket', 'pathlib', 'threading', 'contextlib', 'click', 'h11'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    env = {"PYTHONPATH": str(ROOT / "src"), "BOUGH_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-S", "-c", code], check=True, env=env)


@pytest.mark.parametrize(
    "words",
    [
        ["exec", "web"],
        ["exec", "-t", "web", "true"],
        ["exec", "web", "--"],
        ["run", "debian:12"],
        ["run", "--memory", "1GiB", "debian:12", "true"],
        ["exec", "w/e?b", "true"],
        ["exec", "web", "echo", "ä"],
        ["exec", "web", "echo", "a\nb"],
        ["list", "a", "b"],
        [],
    ],
)
def test_what_goes_the_long_way(words: list[str]) -> None:
    from bough.cli.fast_path import attempt

    assert attempt(words) is None


def test_what_a_client_needs_is_little() -> None:
    code = (
        "import sys, bough.client.hypervisor, bough.client.process, bough.client.websocket\n"
        "heavy = {'rich', 'pydantic', 'asyncio', 'click', 'fastapi', 'httpx', 'tarfile'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_commands(shell: str) -> None:
    assert "bough" in bough("completion", shell).stdout
    done = bough(_BOUGH_COMPLETE="bash_complete", COMP_WORDS="bough st", COMP_CWORD="1")
    assert sorted(done.stdout.split()) == ["plain,standby", "plain,start", "plain,stop"]


def spec(tmp_path: Path, *words: str, image: str | None = "debian:12", keys: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {}

    @click.command()
    @spec_options
    def command(force: bool, **given: Any) -> None:
        found.update(spec_of(image, given).data)

    arguments = [*words] if keys else ["--no-ssh-keys", *words]
    done = CliRunner(env={"HOME": str(tmp_path)}).invoke(command, arguments)
    if done.exception:
        raise done.exception
    return found


def test_every_flag(tmp_path: Path) -> None:
    (tmp_path / "motd").write_text("hello")
    (tmp_path / "motd").chmod(0o600)
    line = """
        --vcpus 2 -m 512MiB --disk 20G --arch x86_64 --cpu Nehalem --machine-type pc-q35-7.2 --firmware uefi
        --kernel /boot/k --initrd /boot/i --cmdline quiet --clock -7d --hostname web --accelerator tcg
        --extra-disk 1G --extra-disk 2G --user bob --env A=1 --env B=x=y --command true -p 8080:80
        --isolated --require-jail --limit cpu=50% --limit disk=1MiB/s
    """
    made = spec(tmp_path, *line.split(), "--ssh-key", KEY, "--copy", f"{tmp_path}/motd:/etc/motd")
    parsed = parse_spec(made)
    assert parsed.environment == {"A": "1", "B": "x=y"}
    assert [disk.size >> 30 for disk in parsed.disks] == [1, 2]
    assert (parsed.files[0].data, parsed.files[0].mode) == (b"hello", "0600")
    assert (parsed.users[0].name, parsed.users[0].ssh_keys) == ("bob", (KEY,))
    assert parsed.ssh_keys == (KEY,)
    assert (parsed.uplink, parsed.require_jail) == ("isolated", True)
    assert (parsed.limits.cpu, parsed.limits.disk) == (50, 1 << 20)
    assert parse_spec(spec(tmp_path, "--no-uplink")).uplink is False


def test_a_file_and_flags(tmp_path: Path) -> None:
    (tmp_path / "start.sh").write_text("#!/bin/sh\n")
    path = tmp_path / "m.toml"
    path.write_text(
        'image = "debian:11"\nmemory = "1GiB"\nkernel = "vmlinuz"\nports = ["80:80"]\n'
        '[environment]\nA = "1"\n[[files]]\npath = "/opt/start"\nsource = "start.sh"\n'
    )
    made = spec(tmp_path, "-f", str(path), "-m", "2GiB", "-p", "81:81", "--env", "B=2", image=None)
    parsed = parse_spec(made)
    assert (parsed.image, parsed.memory >> 30) == ("debian:11", 2)
    assert parsed.kernel == f"{tmp_path}/vmlinuz"
    assert [port.host_port for port in parsed.ports] == [80, 81]
    assert parsed.environment == {"A": "1", "B": "2"}
    assert parsed.files[0].data == b"#!/bin/sh\n"


def test_own_keys_are_let_in(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519.pub").write_text(KEY + "\n")
    assert spec(tmp_path, keys=True)["ssh_keys"] == [KEY]
    assert "ssh_keys" not in spec(tmp_path)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07shown", "shown"),
        ("\x1b]52;c;c3RlYWw=\x1b\\shown", "shown"),
        ("\x1bP+q544e\x1b\\shown", "shown"),
        ("a\rb\x08\x7f\x9bc", "a\nbc"),
        ("safe\u202etxt.exe", "safetxt.exe"),
    ],
)
def test_what_a_guest_prints_does_nothing_to_the_terminal(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned
