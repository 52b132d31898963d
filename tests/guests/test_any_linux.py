"""Each use of a machine in guests without systemd, networkd, bash, useradd and Python."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest

import bough
from tests.acceptance.conftest import Cli
from tests.waiting import wait_until

#: Print the address of the only card, whose name depends on udev.
_CARD = "cat /sys/class/net/[!l]*/address"


def test_a_command(fork: bough.Machine) -> None:
    told = fork.exec("sh", "-c", "id -u; pwd; echo $HOME $USER; echo wrong >&2; exit 3")
    assert (told.exit_code, told.stdout, told.stderr) == (3, "0\n/root\n/root root\n", "wrong\n")
    assert "bough" not in fork.exec("env").stdout, "a command inherits something of the agent"
    assert "/.bough" not in fork.exec("cat", "/proc/self/maps").stdout
    assert fork.exec("cat", input="through stdin").stdout == "through stdin"


def test_a_user_of_the_guest(fork: bough.Machine) -> None:
    fork.shell("echo 'other:x:1234:77::/tmp:/bin/sh' >>/etc/passwd; echo 'extra:x:78:other' >>/etc/group")
    told = fork.exec("id", user="other").stdout
    assert re.match(r"uid=1234(\(other\))? gid=77 ", told), told
    assert "78" in told.partition("groups=")[2]


def test_a_terminal(fork: bough.Machine) -> None:
    with fork.spawn("sh", "-c", "stty size; tty; read line; echo got $line", tty=True) as process:
        process.resize(40, 100)
        process.write(b"hello\n")
        output = b"".join(data for _, data in process)
    assert b"/dev/pts/" in output
    assert b"got hello" in output


def test_a_copy_of_a_tree(fork: bough.Machine, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "deep").mkdir(parents=True)
    (source / "deep/file").write_bytes(bytes(range(256)) * 4000)
    (source / "link").symlink_to("deep/file")
    (source / "deep/file").chmod(0o640)
    fork.copy_to(source, "/root/tree")
    told = fork.shell("stat -c '%a %s' /root/tree/deep/file; readlink /root/tree/link").stdout
    assert told.split("\n")[:2] == ["640 1024000", "deep/file"]
    fork.copy_from("/root/tree", tmp_path / "back")
    assert (tmp_path / "back/deep/file").read_bytes() == (source / "deep/file").read_bytes()
    fork.write_file("/root/tree/deep/file", b"new")
    assert fork.read_file("/root/tree/deep/file") == b"new"


def test_a_stream_onto_a_file(fork: bough.Machine, cli: Cli) -> None:
    fork.shell("echo old >/root/f; chmod 600 /root/f; chown 5:6 /root/f")
    cli("cp", "-", f"{fork.name}:/root/f", stdin=b"new")
    assert fork.shell("stat -c '%a %u:%g' /root/f; cat /root/f").stdout == "600 5:6\nnew"


def test_a_port(fork: bough.Machine) -> None:
    # Not every guest has a program that listens: the agent disk has one.
    with fork.spawn("sh", "-c", "echo served | /.bough/bin/busybox nc -l -p 8080"):
        fork.wait_for_open_port(8080)
        port = fork.forward(8080)
        with socket.create_connection(("127.0.0.1", port.host_port), timeout=30) as connection:
            assert connection.recv(100) == b"served\n"


def test_a_shared_directory(fork: bough.Machine, tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("from the host\n")
    tmp_path.chmod(0o755)
    fork.mount(tmp_path, "/mnt/shared", writable=True)
    assert fork.exec("cat", "/mnt/shared/hello").stdout == "from the host\n"
    fork.shell("echo back >/mnt/shared/answer", check=True)
    assert (tmp_path / "answer").read_text() == "back\n"
    fork.unmount("/mnt/shared")
    assert not fork.exec("test", "-e", "/mnt/shared/hello").ok


def test_it_has_booted(fork: bough.Machine) -> None:
    assert fork.info().booted is True
    fork.wait("booted", timeout=60)


def test_forks_have_their_own_identity(fork: bough.Machine) -> None:
    fork.shell("mkdir -p /etc/ssh; echo old >/etc/ssh/ssh_host_ed25519_key")
    snapshot = fork.snapshot()
    others = [snapshot.fork(), snapshot.fork()]
    try:
        told = {machine.exec("hostname").stdout.strip() for machine in others}
        assert told == {machine.name for machine in others}
        keys = [machine.read_text("/etc/ssh/ssh_host_ed25519_key") for machine in others]
        assert keys[0] != keys[1]
        assert all("PRIVATE KEY" in key for key in keys)
        random = {machine.exec("head", "-c", "16", "/dev/urandom", text=False).stdout for machine in others}
        assert len(random) == 2
        macs = {machine.shell(_CARD).stdout for machine in (*others, fork)}
        assert len(macs) == 3
        ids = {machine.exec("cat", "/etc/machine-id").stdout for machine in others}
        assert len(ids) == (2 if others[0].exec("test", "-e", "/etc/machine-id").ok else 1)
        assert abs(float(others[0].exec("date", "+%s").stdout) - time.time()) < 3
    finally:
        for machine in others:
            machine.delete(force=True)
        snapshot.delete()


def test_a_suspended_machine_goes_on(fork: bough.Machine) -> None:
    fork.shell("mkdir -p /run; echo kept >/run/kept")
    fork.suspend()
    assert fork.state == "suspended"
    fork.resume()
    assert fork.exec("cat", "/run/kept").stdout == "kept\n"


def test_a_bundle_comes_back_with_its_memory(
    hv: bough.Hypervisor, fork: bough.Machine, tmp_path: Path
) -> None:
    fork.shell("echo kept >/run/kept")
    fork.export(tmp_path / "guest.bough")
    back = hv.import_bundle(tmp_path / "guest.bough", name="guest-back", identity="new")
    try:
        back.start()
        assert back.exec("cat", "/run/kept").stdout == "kept\n"
        assert back.exec("hostname").stdout == "guest-back\n"
    finally:
        back.delete(force=True)


def test_an_address_of_the_uplink(fork: bough.Machine) -> None:
    """ifupdown and Alpine's own settings give one; elsewhere busybox's DHCP client of the agent disk does."""

    def has_address() -> bool:
        table = fork.exec("cat", "/proc/net/fib_trie").stdout
        return len(set(re.findall(r"-- (\d+\.\d+\.\d+\.\d+)\n +/32 host LOCAL", table)) - {"127.0.0.1"}) > 0

    wait_until(has_address, timeout_s=90, what="the guest has an address")
    assert "nameserver" in fork.exec("cat", "/etc/resolv.conf").stdout


def test_it_powers_itself_off(fork: bough.Machine) -> None:
    assert fork.stop(deadline=120) == "guest"
    assert fork.state == "stopped"


@pytest.mark.long
def test_it_boots_again(fork: bough.Machine) -> None:
    """What was written is there, with the identity of the fork."""
    fork.shell("echo kept >/root/kept")
    fork.stop()
    fork.start()
    fork.wait("booted")
    assert fork.exec("cat", "/root/kept", "/etc/hostname").stdout == f"kept\n{fork.name}\n"


@pytest.mark.long
def test_it_reboots(fork: bough.Machine) -> None:
    before = fork.info().boot_id
    fork.reboot(timeout=120)
    assert fork.info().boot_id != before
    assert fork.exec("true").ok


def test_the_first_boot_made_users_and_files(fork: bough.Machine) -> None:
    told = fork.exec("sh", "-c", "id -un; id -Gn; pwd; echo $GREETING; [ -x $SHELL ]", user="dev")
    assert (told.exit_code, told.stdout) == (0, "dev\ndev friends\n/home/dev\nhello\n")
    assert fork.read_text("/root/done") == "hello\ndone\n"
    assert fork.shell("stat -c '%U %a' /home/dev/.ssh/authorized_keys").stdout == "dev 600\n"
