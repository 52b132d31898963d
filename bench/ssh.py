"""TCP into a guest: round trips, scp and rsync of many small files, against QEMU's hostfwd."""

from __future__ import annotations

import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench import echo
from bench.harness import Bench
from bench.hostfwd import copy_disk, free_port, plain_qemu, wait_for_ssh
from bench.machine import a_guest, at_rest, run_bough

if TYPE_CHECKING:
    from bough import Hypervisor, Machine

ABOUT = "round trips over a port, scp and rsync of many small files, against the user network of plain QEMU"
NAME = "bench-ssh"
FILES = 200
ECHO_PORT = 7777
COUNT = 100
TARGET = "/root/copies"


def run(bench: Bench) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="bough-bench-", dir="/var/tmp") as directory,
        a_guest(NAME) as (hypervisor, machine),
        _twin(hypervisor, machine, Path(directory)) as ports,
    ):
        config = Path(directory) / "config"
        config.write_text(run_bough("ssh-config", NAME) + _entry_of_twin(hypervisor, ports[22]))
        for host in (NAME, "twin"):
            serve = f"setsid python3 /root/echo.py serve {ECHO_PORT} < /dev/null > /dev/null 2>&1 &"
            listens = f"until ss -Hltn 'sport = :{ECHO_PORT}' | grep -q .; do sleep 0.2; done"
            _ssh(config, host, f"{serve} {listens}")
        _compare_round_trips(bench, machine, ports[ECHO_PORT])
        _compare_copies(bench, config, Path(directory))


def _compare_round_trips(bench: Bench, machine: Machine, twin_port: int) -> None:
    port = machine.forward(ECHO_PORT).host_port
    inside = ("python3", "/root/echo.py", "ask", str(ECHO_PORT), str(COUNT))
    over_port = "bough port"
    for name, kind in (("round trip", b"p"), ("round trip, answer in two writes", b"n")):
        bench.in_turns(
            name,
            ours=lambda kind=kind: _ask(port, kind),
            peer=lambda kind=kind: _ask(twin_port, kind),
            what=(over_port, "plain QEMU, hostfwd"),
            rounds=5,
        )
    bench.in_turns(
        "round trip beside one that stays in the guest",
        ours=lambda: _ask(port),
        peer=lambda: float(machine.exec(*inside, check=True).stdout),
        what=(over_port, "client in the guest"),
        rounds=5,
    )


def _compare_copies(bench: Bench, config: Path, directory: Path) -> None:
    tree = _make_tree(directory / "tree")
    scp = ("scp", "-q", "-F", config, "-r", tree)
    rsync = ("rsync", "-a", "-e", f"ssh -F {config}", f"{tree}/")
    for name, command, what in (
        (f"scp -r of {FILES:,} files", scp, "scp -r"),
        (f"rsync of {FILES:,} files", rsync, "rsync"),
    ):
        bench.in_turns(
            name,
            ours=lambda command=command: _fresh(config, NAME, *command),
            peer=lambda command=command: _fresh(config, "twin", *command),
            what=(f"{what} by bough ssh-config", f"{what} to plain QEMU, hostfwd"),
            rounds=2,
        )
    bench.in_turns(
        f"copy of {FILES:,} files",
        ours=lambda: _fresh_bough_copy(config, tree),
        peer=lambda: _fresh(config, NAME, *rsync),
        what=("bough cp", "rsync by bough ssh-config"),
        rounds=2,
    )


def _ask(port: int, kind: bytes = b"p") -> float:
    with socket.create_connection(("127.0.0.1", port)) as link:
        return echo.median_round_trip(link, COUNT, kind)


def _fresh(config: Path, host: str, *command: str | Path) -> float:
    """Run a copy into a new directory of the host. Return its seconds."""
    _ssh(config, host, f"rm -rf {TARGET}; mkdir {TARGET}")
    started = time.perf_counter()
    subprocess.run([*map(str, command), f"{host}:{TARGET}/"], check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - started


def _fresh_bough_copy(config: Path, tree: Path) -> float:
    _ssh(config, NAME, f"rm -rf {TARGET}")
    started = time.perf_counter()
    run_bough("cp", tree, f"{NAME}:{TARGET}")
    return time.perf_counter() - started


def _ssh(config: Path, host: str, command: str) -> None:
    subprocess.run(["ssh", "-n", "-F", str(config), host, command], check=True)


def _make_tree(tree: Path) -> Path:
    """Write files of 1 to 4 KiB, a hundred in each directory."""
    content = random.Random(1)
    for number in range(FILES):
        folder = tree / str(number // 100)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(number)).write_bytes(content.randbytes(content.randint(1024, 4096)))
    return tree


@contextmanager
def _twin(hypervisor: Hypervisor, machine: Machine, directory: Path) -> Iterator[dict[int, int]]:
    """Run a second guest by plain QEMU on a copy of the disk. Yield the host's port of each guest port.

    Both guests have booted, and accept bough's own ssh key.
    """
    at_rest(machine)
    machine.copy_to(Path(echo.__file__), "/root/echo.py")
    run_bough("ssh", NAME, "-n", "true")  # authorizes the key
    machine.stop()
    disk = copy_disk(machine, directory / "twin.qcow2")
    ports = {22: free_port(), ECHO_PORT: free_port()}
    with plain_qemu(machine, disk, {host: guest for guest, host in ports.items()}):
        wait_for_ssh(ports[22])
        machine.start()
        at_rest(machine)
        yield ports


def _entry_of_twin(hypervisor: Hypervisor, port: int) -> str:
    return (
        f"\nHost twin\n    HostName 127.0.0.1\n    Port {port}\n    User root\n"
        f"    IdentityFile {hypervisor.home.ssh_key}\n    IdentitiesOnly yes\n"
        "    StrictHostKeyChecking no\n    UserKnownHostsFile /dev/null\n    LogLevel ERROR\n"
    )
