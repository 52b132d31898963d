"""Machines of container images: bough's init in an image without a shell, and images with an own init.

All tests of an image fork one booted machine. Whatever concerns Docker's rules is in tests/acceptance.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.errors import AgentUnavailable
from tests.conftest import RUN
from tests.container_layers import file, pack, write_layout
from tests.guests.disks import alpine_root
from tests.waiting import wait_until

MEMORY = "256MiB"
#: The program says what it sees, and ends with 5 at its stop signal.
PROGRAM = "trap 'echo stopping; exit 5' TERM; echo begun; while :; do sleep 0.2; done"


@pytest.fixture(scope="module")
def busybox(agent_disk: Path) -> bytes:
    words = ["unsquashfs", "-cat", agent_disk, "bin/busybox"]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout


@pytest.fixture(scope="module")
def scratch(
    hv: bough.Hypervisor, busybox: bytes, boot_kit: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[bough.Snapshot]:
    """Yield a snapshot of a machine whose image has one file, /busybox, and that runs its program."""
    layout = tmp_path_factory.mktemp("scratch") / "layout"
    write_layout(
        layout,
        [pack([file("busybox", busybox, mode=0o755)])],
        program={"Entrypoint": ["/busybox", "sh", "-c"], "Cmd": [PROGRAM]},
    )
    machine = hv.create(f"oci:{layout}", name="scratch-first", memory=MEMORY, disk="9GiB")
    machine.start()
    yield (snapshot := machine.snapshot("scratch-booted"))
    machine.delete(force=True)
    snapshot.delete()


@pytest.fixture
def fork(scratch: bough.Snapshot) -> Iterator[bough.Machine]:
    machine = scratch.fork()
    yield machine
    machine.discard()


@pytest.fixture(autouse=True)
def _nothing_left(nothing_left: None) -> None:
    pass


def processes(machine: bough.Machine) -> list[str]:
    lines = machine.exec("/.bough/bin/busybox", "ps", "-o", "pid,args").stdout.splitlines()
    return [line for line in lines[1:] if not line.split()[1].startswith("[")]


def is_boughs_init(machine: bough.Machine) -> bool:
    return "agent_init_process" in machine.read_text("/proc/1/cmdline")


def program_of(machine: bough.Machine) -> list[str]:
    """Return the pid of the container program, if it runs."""
    return [line.split()[0] for line in processes(machine) if "trap" in line]


def has_program(machine: bough.Machine) -> bool:
    return len(program_of(machine)) == 1


# -- bough's init ---------------------------------------------------------------------------------------


def test_what_a_container_finds(fork: bough.Machine) -> None:
    assert is_boughs_init(fork)
    assert fork.shell("cat /etc/hostname; hostname").stdout.split() == [fork.name] * 2
    assert "127.0.0.1 localhost" in fork.read_text("/etc/hosts")
    mounts = {line.split()[1]: line.split()[2] for line in fork.read_text("/proc/mounts").splitlines()}
    kinds = {"/": "ext4", "/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/dev/pts": "devpts"}
    kinds |= {"/dev/shm": "tmpfs", "/sys/fs/cgroup": "cgroup2", "/.bough": "squashfs"}
    assert kinds.items() <= mounts.items()
    assert int(fork.shell("df -k / | tail -1").stdout.split()[1]) > 8 << 20, "the root fills a larger disk"
    assert not {"/run", "/tmp"} & set(mounts), "these directories are the image's"
    assert fork.shell("echo to a descriptor >/dev/stderr").stderr == "to a descriptor\n"


def test_the_kernel_finds_its_modules(fork: bough.Machine) -> None:
    assert "overlay" not in fork.read_text("/proc/filesystems")
    options = "lowerdir=/a,upperdir=/b,workdir=/c"
    fork.shell(f"mkdir -p /a /b /c /d && mount -t overlay -o {options} x /d", check=True)


def test_an_address_of_the_uplink(fork: bough.Machine) -> None:
    def has_address() -> bool:
        return "inet 10." in fork.shell("ip addr show eth0").stdout

    wait_until(has_address, timeout_s=60, what="the guest has an address")
    assert "nameserver" in fork.read_text("/etc/resolv.conf")


def test_files_and_ports(fork: bough.Machine, tmp_path: Path) -> None:
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/deep/file").write_bytes(bytes(range(256)) * 400)
    fork.copy_to(tmp_path / "tree", "/tree")
    fork.copy_from("/tree", tmp_path / "back")
    assert (tmp_path / "back/deep/file").read_bytes() == bytes(range(256)) * 400
    with fork.spawn("/busybox", "sh", "-c", "echo served | /busybox nc -l -p 8080"):
        fork.wait_for_open_port(8080)
        port = fork.forward(8080)
        with socket.create_connection(("127.0.0.1", port.host_port), timeout=30) as connection:
            assert connection.recv(100) == b"served\n"
    (tmp_path / "hello").write_text("from the host\n")
    tmp_path.chmod(0o755)
    fork.mount(tmp_path, "/mnt/shared")
    assert fork.exec("/busybox", "cat", "/mnt/shared/hello").stdout == "from the host\n"


def test_the_agent_is_started_again(fork: bough.Machine) -> None:
    pids = [line.split()[0] for line in processes(fork) if "agent_init_process" in line]
    kill = (
        f"(sleep 0.5; kill -KILL {' '.join(pid for pid in pids if pid != '1')}) </dev/null >/dev/null 2>&1 &"
    )
    fork.exec("/busybox", "setsid", "sh", "-c", kill)

    def is_new() -> bool:
        try:
            return "agent_keeper" in str(processes(fork))
        except AgentUnavailable:
            return False

    wait_until(is_new, timeout_s=60, what="there is another agent")


def test_process_1_reaps(fork: bough.Machine) -> None:
    fork.exec("/busybox", "sh", "-c", "(sleep 0.1 &) ; (true &)")

    def zombies() -> list[str]:
        lines = fork.shell("cat /proc/[0-9]*/stat 2>/dev/null").stdout.splitlines()
        return [line for line in lines if line.rpartition(")")[2].split()[0] == "Z"]

    wait_until(lambda: not zombies(), timeout_s=20, what="no process is a zombie")


def test_signals_do_not_end_process_1(fork: bough.Machine) -> None:
    for name in ("HUP", "ALRM", "PIPE", "CHLD", "WINCH", "SEGV", "KILL", "STOP", "QUIT"):
        fork.exec("/busybox", "kill", f"-{name}", "1")
    assert fork.exec("/busybox", "true").ok


def test_forks_have_their_own_identity(fork: bough.Machine) -> None:
    others = [fork.fork(), fork.fork()]
    try:
        assert [machine.shell("hostname").stdout.strip() for machine in others] == [
            one.name for one in others
        ]
        for question in ("od -N16 -tx1 /dev/urandom", "cat /sys/class/net/eth0/address"):
            assert len({machine.shell(question).stdout for machine in others}) == 2
        assert has_program(others[0]), "the program goes on in a fork"
    finally:
        for machine in others:
            machine.delete(force=True)


def test_a_suspended_machine_goes_on(fork: bough.Machine) -> None:
    fork.suspend()
    fork.resume()
    assert has_program(fork)


def test_the_program_gets_its_stop_signal_at_a_stop(fork: bough.Machine) -> None:
    assert fork.stop(deadline=120) == "guest"
    assert (fork.info().program or {})["code"] == 5
    assert "stopping" in fork.logs()


def test_a_program_that_is_killed_powers_off(fork: bough.Machine) -> None:
    fork.exec("/busybox", "kill", "-KILL", *program_of(fork), check=False)
    wait_until(lambda: fork.state in ("stopped", "failed"), timeout_s=60, what="the machine is off")
    assert (fork.info().program or {})["signal"] == "KILL"


def test_the_power_button(fork: bough.Machine) -> None:
    """A stop presses the power button if no agent answers."""
    stops = "sleep 0.5; for p in $(pidof ld.so); do [ $p = 1 ] || kill -STOP $p; done"
    fork.exec("/busybox", "setsid", "sh", "-c", f"({stops}) </dev/null >/dev/null 2>&1 &")
    time.sleep(2)
    assert fork.stop(deadline=200) == "guest"


# -- an init of the image -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a layer with a Debian of systemd."""
    target = tmp_path_factory.mktemp("systemd") / "root.tar"
    words = ["mmdebstrap", "--variant=minbase", "--include=systemd-sysv,dbus", "bookworm", target]
    subprocess.run(words, check=True, capture_output=True)
    return target.read_bytes()


@pytest.fixture(scope="module")
def alpine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a layer with an Alpine of OpenRC on busybox's init."""
    store, root = request.config.stash[RUN].images, tmp_path_factory.mktemp("alpine")
    with store.alone():
        disk = alpine_root(store.root)
    subprocess.run(["debugfs", "-R", f"rdump / {root}", disk], check=True, capture_output=True)
    words = [
        "tar",
        "-c",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--exclude=./lost+found",
        "-C",
        root,
        ".",
    ]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout


@pytest.mark.long
@pytest.mark.parametrize("name", ["systemd", "alpine"])
def test_an_image_whose_program_is_an_init(
    hv: bough.Hypervisor,
    boot_kit: Path,
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    layer = request.getfixturevalue(name)
    write_layout(tmp_path / "layout", [layer], program={"Cmd": ["/sbin/init"]})
    machine = hv.create(f"oci:{tmp_path}/layout", name=name, memory="512MiB", vcpus=1)
    try:
        machine.start()
        machine.wait("booted", timeout=300)
        assert not is_boughs_init(machine)
        assert machine.info().program is None
        assert machine.exec("cat", "/proc/1/comm").stdout.strip() in ("systemd", "init")
        snapshot = machine.snapshot("own-init")
        fork = snapshot.fork()
        assert fork.exec("hostname").stdout.strip() == fork.name
        fork.delete(force=True)
        snapshot.delete()
        machine.shell("kill -KILL $(pidof ld.so | tr ' ' '\\n' | sort -n | tail -1)", check=False)
        wait_until(lambda: machine.exec("true").ok, timeout_s=60, what="the agent answers again")
        machine.reboot(timeout=300)
        machine.wait("booted", timeout=300)
        assert machine.stop(deadline=200) == "guest"
    finally:
        machine.delete(force=True)


@pytest.mark.long
def test_boughs_init_instead_of_the_images(
    hv: bough.Hypervisor, boot_kit: Path, alpine: bytes, tmp_path: Path
) -> None:
    write_layout(tmp_path / "layout", [alpine], program={"Cmd": ["/sbin/init"]})
    machine = hv.create(
        f"oci:{tmp_path}/layout", name="no-init", memory=MEMORY, init="bough", command=["sleep", "1000"]
    )
    try:
        machine.start()
        assert is_boughs_init(machine)
        assert machine.stop(deadline=120) == "guest"
    finally:
        machine.delete(force=True)
