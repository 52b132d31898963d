"""The guest matches its spec, and is a whole computer with its own kernel."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.conftest import Cli
from tests.acceptance.test_exec import read_until
from tests.waiting import wait_until

SPEC = """
image = "debian:12"
vcpus = 2
memory = "640MiB"
disk = "10GiB"
disks = ["64MiB", {{ size = "32MiB", serial = "scratch" }}]
clock = "-30d"
hostname = "workbench"
ssh_keys = ["{key}"]
environment = {{ EDITOR = "ed", "WITH_SPACE" = "a b" }}
commands = ["echo first > /root/order", "echo second >> /root/order"]

[[users]]
name = "ada"
sudo = true
ssh_keys = ["{key}"]
groups = ["video"]

[[files]]
path = "/etc/motd"
content = "welcome\\n"

[[files]]
path = "/usr/local/bin/hello"
source = "hello.sh"
mode = "0755"
owner = "ada"
"""


@pytest.fixture(scope="module")
def bench(cli: Cli, debian: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield a running machine from a TOML file with every setting."""
    place = tmp_path_factory.mktemp("spec")
    (place / "hello.sh").write_text("#!/bin/sh\necho hello from $(whoami)\n")
    key = make_key(place)
    (place / "bough.toml").write_text(SPEC.format(key=key))
    cli("create", "--file", place / "bough.toml", "--name", "bench")
    cli("start", "bench")
    yield "bench"
    cli("delete", "bench", "--force", check=False)


def make_key(place: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / "key"], check=True)
    return (place / "key.pub").read_text().strip()


def in_guest(cli: Cli, name: str, script: str) -> str:
    return cli.text("exec", name, "--", "sh", "-c", script)


def test_processors_memory_and_disks(cli: Cli, bench: str) -> None:
    assert in_guest(cli, bench, "nproc") == "2"
    kib = int(in_guest(cli, bench, "sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo"))
    assert 520 * 1024 < kib <= 640 * 1024
    # The root file system has grown into the disk.
    assert int(in_guest(cli, bench, "df --output=size -B1 / | tail -n 1")) > 9.3 * 1024**3
    sizes = in_guest(cli, bench, "lsblk --nodeps --noheadings --bytes --output size,type | grep disk").split()
    assert {str(10 * 1024**3), str(64 * 1024**2), str(32 * 1024**2)} <= set(sizes)
    assert in_guest(cli, bench, "ls /dev/disk/by-id | grep scratch")


def test_names_users_keys_files_and_commands(cli: Cli, bench: str) -> None:
    assert in_guest(cli, bench, "hostname") == "workbench"
    assert in_guest(cli, bench, "cat /root/order") == "first\nsecond"
    assert in_guest(cli, bench, "cat /etc/motd") == "welcome"
    assert in_guest(cli, bench, "stat -c '%a %U' /usr/local/bin/hello") == "755 ada"
    assert cli.text("exec", "-u", "ada", bench, "--", "hello") == "hello from ada"
    assert cli.text("exec", "-u", "ada", bench, "--", "sudo", "-n", "id", "-un") == "root"
    assert "video" in in_guest(cli, bench, "id -nG ada").split()
    for home in ("/root", "/home/ada"):
        assert in_guest(cli, bench, f"cut -d' ' -f1 {home}/.ssh/authorized_keys").startswith("ssh-ed25519")


def test_environment(cli: Cli, bench: str) -> None:
    assert in_guest(cli, bench, 'echo "$EDITOR:$WITH_SPACE"') == "ed:a b"
    assert cli.text("exec", "-e", "EDITOR=vi", bench, "--", "sh", "-c", "echo $EDITOR") == "vi"


def test_clock(cli: Cli, bench: str) -> None:
    behind = time.time() - int(in_guest(cli, bench, "date +%s"))
    assert abs(behind - 30 * 86400) < 120


def test_the_clock_of_an_ordinary_machine(cli: Cli, box: str) -> None:
    before = time.time()
    inside = float(in_guest(cli, box, "date +%s.%N"))
    assert before - 2 < inside < time.time() + 2


def test_as_complete_a_debian_as_ever(cli: Cli, box: str) -> None:
    """systemd is up without failed units, and the usual parts of a Debian are there."""
    assert (
        in_guest(cli, box, "systemctl is-system-running --wait || systemctl --failed --no-legend")
        == "running"
    )
    assert in_guest(cli, box, ". /etc/os-release; echo $ID $VERSION_ID") == "debian 12"
    for program in (
        "apt-get",
        "dpkg",
        "sshd",
        "ip",
        "journalctl",
        "python3",
        "less",
        "logger",
        "mount",
        "ps",
    ):
        assert cli("exec", box, "--", "sh", "-c", f"command -v {program}", check=False).returncode == 0, (
            program
        )
    assert in_guest(cli, box, "dpkg --audit") == ""
    # A fork's journal is found a few seconds after its new identity.
    wait_until(lambda: in_guest(cli, box, "journalctl --list-boots 2>/dev/null | wc -l") != "0")


def test_a_machine_id_of_its_own(cli: Cli, box: str, bench: str) -> None:
    for script in (
        "cat /etc/machine-id",
        "cat /etc/ssh/ssh_host_ed25519_key.pub",
    ):
        assert in_guest(cli, box, script) != in_guest(cli, bench, script), script


def test_waiting_until_it_is_up(cli: Cli, box: str) -> None:
    cli("wait", box, "--until", "booted")
    assert in_guest(cli, box, "systemctl is-system-running || true") in ("running", "degraded")
    assert in_guest(cli, box, "getent hosts localhost >/dev/null && ip route show default")


# -- its own kernel -----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_another_kernel_package_is_what_boots_next(cli: Cli, debian: str, gone: list[str]) -> None:
    gone.append("kernels")
    cli("create", debian, "--name", "kernels", "--memory", "768MiB")
    cli("start", "kernels")
    cli("wait", "kernels", "--until", "booted")
    before = in_guest(cli, "kernels", "uname -r")
    # The other flavour of the kernel: generic for a cloud image, and vice versa.
    other = "linux-image-amd64" if "cloud" in before else "linux-image-cloud-amd64"
    if os.uname().machine == "aarch64":
        other = other.replace("amd64", "arm64")
    # apt-get ends with 0 if a list could not be fetched, unless any error counts.
    update = ("apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update")
    if cli("exec", "--timeout", "300s", "kernels", "--", *update, check=False, timeout_s=320).returncode != 0:
        pytest.skip("the guest reaches no package mirror from here")
    install = f"DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends {other} >&2"
    cli("exec", "--timeout", "900s", "kernels", "--", "sh", "-c", install, timeout_s=900)
    remove = f"DEBIAN_FRONTEND=noninteractive apt-get purge -qq -y linux-image-{before} >&2"
    cli("exec", "--timeout", "300s", "kernels", "--", "sh", "-c", remove, timeout_s=300)
    cli("restart", "kernels")
    after = in_guest(cli, "kernels", "uname -r")
    assert after != before
    assert ("cloud" in after) != ("cloud" in before)


def test_a_kernel_from_the_host(cli: Cli, box: str, debian: str, gone: list[str], tmp_path: Path) -> None:
    release = in_guest(cli, box, "uname -r")
    for name in ("vmlinuz", "initrd.img"):
        cli("cp", f"{box}:/boot/{name}-{release}", tmp_path / name)
        (tmp_path / name).chmod(0o644)
    root = in_guest(cli, box, "findmnt --noheadings --output source /")
    gone.append("direct")
    cli(
        "create", debian, "--name", "direct", "--kernel", tmp_path / "vmlinuz",
        "--initrd", tmp_path / "initrd.img", "--cmdline", f"root={root} rw console=ttyS0 from.the.host",
    )  # fmt: skip
    cli("start", "direct")
    assert "from.the.host" in in_guest(cli, "direct", "cat /proc/cmdline")


def test_uefi(cli: Cli, debian: str, gone: list[str]) -> None:
    gone.append("modern")
    cli("create", debian, "--name", "modern", "--memory", "512MiB", "--firmware", "uefi")
    cli("start", "modern")
    assert in_guest(cli, "modern", "test -d /sys/firmware/efi && echo uefi") == "uefi"


# -- console and shell --------------------------------------------------------------------------------


@contextmanager
def on_a_terminal(cli: Cli, *words: str, rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    """Run bough with its own terminal; it is ended when the block ends."""
    ours, theirs = pty.openpty()
    set_size(theirs, rows, columns)
    process = cli.popen(*words, stdin=theirs, stdout=theirs, stderr=theirs)
    try:
        yield Terminal(process, ours, theirs)
    finally:
        process.kill()
        process.wait(20)
        os.close(ours)
        os.close(theirs)


def set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class Terminal(NamedTuple):
    process: subprocess.Popen[bytes]
    ours: int
    theirs: int


def test_the_serial_console_and_the_key_to_leave_it(cli: Cli, box: str) -> None:
    with on_a_terminal(cli, "console", box) as (process, ours, _):
        os.write(ours, b"\r")
        read_until(ours, b"login: ")
        os.write(ours, b"\x1d")  # Ctrl-]
        assert process.wait(20) == 0


def test_a_shell(cli: Cli, box: str) -> None:
    with on_a_terminal(cli, "shell", box) as (process, ours, _):
        os.write(ours, b"echo $((6 * 7))-$(hostname)\r")
        read_until(ours, b"42-box")
        os.write(ours, b"exit 5\r")
        assert process.wait(20) == 5


def test_a_shell_of_a_user_is_a_login_session(cli: Cli, box: str) -> None:
    cli("exec", box, "--", "useradd", "--create-home", "grace")
    limits = "echo 'grace hard nofile 4321' > /etc/security/limits.d/grace.conf"
    cli("exec", box, "--", "sh", "-c", limits)
    with on_a_terminal(cli, "shell", "-u", "grace", box) as (process, ours, _):
        os.write(ours, b"echo $USER:$XDG_RUNTIME_DIR:$(ulimit -Hn):$(grep -o session- /proc/self/cgroup).\r")
        read_until(ours, b":4321:session-.", timeout_s=120)
        os.write(ours, b"exit 6\r")
        assert process.wait(60) == 6
    # Without one: the environment alone.
    assert cli.text("exec", "-u", "grace", box, "--", "sh", "-c", "echo $HOME; ulimit -Hn") != "4321"


def test_a_window_that_changes_its_size(cli: Cli, box: str) -> None:
    script = "trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.1; done"
    with on_a_terminal(cli, "exec", "-t", box, "--", "bash", "-c", script, rows=30, columns=100) as (
        process,
        ours,
        theirs,
    ):
        read_until(ours, b"30 100")
        set_size(theirs, 41, 99)
        process.send_signal(signal.SIGWINCH)  # the client is not in the foreground of this terminal
        read_until(ours, b"41 99")
        assert process.wait(20) == 0
