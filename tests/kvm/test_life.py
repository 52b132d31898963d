"""A machine on KVM: the probe, boot, commands, files, console, ports, mounts, and the guest's CPU."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.errors import BoughError
from tests.kvm.conftest import IS_INSIDE
from tests.kvm.patience import BOOT_S, TRIES, connect
from tests.kvm.small_guest import CMDLINE, SmallGuest
from tests.waiting import wait_until

_MIB = 1 << 20


@pytest.mark.users("dev", "root")
def test_doctor_finds_it(hv: bough.Hypervisor) -> None:
    """KVM and the whole jail, as root and as an ordinary user in group kvm."""
    found = hv.doctor()
    kvm = next(each for each in found["accelerators"] if each["name"] == "kvm")
    print(kvm)
    assert kvm["usable"]
    assert next(check for check in found["checks"] if check["name"] == "KVM")["ok"]
    lacking = [part["name"] for part in found["jail"] if not part["had"]]
    assert set(lacking) <= {"resources"}, "an ordinary user may have no control group of its own"


@pytest.mark.users("root")
def test_what_is_missing_is_told_with_its_command(hv: bough.Hypervisor) -> None:
    """A user outside the group kvm, and a kernel without the module."""
    if not IS_INSIDE:
        pytest.skip("removes a module, so it runs only in the outer machine")
    check = _check_as_stranger("dev")
    assert not check["ok"]
    assert check["fixes"]["any"] == "sudo usermod --append --groups kvm dev, then log in again"
    hv.shutdown()  # with forks that were begun in advance, and use the module
    subprocess.run(["/usr/sbin/modprobe", "-r", "kvm_amd"], check=True)
    check = _check_of(connect().doctor())
    print(check)
    assert check["fixes"]["any"] == "modprobe kvm_amd"
    subprocess.run(check["fixes"]["any"].split(), check=True)
    assert _check_of(connect().doctor())["ok"]


def _check_of(found: dict[str, Any]) -> dict[str, Any]:
    return dict(next(check for check in found["checks"] if check["name"] == "KVM"))


def _check_as_stranger(user: str) -> dict[str, Any]:
    """Return what doctor says of KVM to a user without the group kvm."""
    with tempfile.TemporaryDirectory(prefix="stranger-", dir="/var/tmp") as place:
        shutil.chown(place, user, user)
        argv = [sys.executable, "-m", "bough"]
        environment = os.environ | {"BOUGH_HOME": f"{place}/home", "XDG_RUNTIME_DIR": place, "HOME": place}
        environment |= {"USER": user, "LOGNAME": user}
        apart = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]
        options: dict[str, Any] = {"env": environment, "cwd": place, "capture_output": True}
        for _ in range(TRIES):  # a slow start of the service is an error for the command
            done = subprocess.run([*apart, *argv, "doctor", "--json"], **options, check=False)
            if done.stdout:
                break
        subprocess.run([*apart, *argv, "serve", "--stop"], **options, check=False)
    check = _check_of(json.loads(done.stdout))
    print(check)
    return check


def test_cold_boot(
    hv: bough.Hypervisor, small: str, hardware: dict[str, Any], gone: list[bough.Machine]
) -> None:
    """The disk's own boot loader and kernel, on KVM, with a named CPU model."""
    machine = hv.create(small, name="cold", **hardware)
    gone.append(machine)
    machine.start(timeout=BOOT_S)
    assert machine.info().accelerator == "kvm"
    assert "small guest is up" in machine.logs()
    argv = machine.plan()["argv"]
    assert argv[argv.index("-accel") + 1] == "kvm"
    model = machine.info().hardware["cpu_model"]
    assert model not in ("host", "max")
    assert argv[argv.index("-cpu") + 1] == model
    assert "/dev/kvm" in _open_files(machine)
    machine.stop()
    assert machine.state == "stopped"


def _open_files(machine: bough.Machine) -> list[str]:
    return [str(path.readlink()) for path in Path(f"/proc/{machine.info().pid}/fd").iterdir()]


def test_direct_boot(
    hv: bough.Hypervisor,
    small: str,
    hardware: dict[str, Any],
    gone: list[bough.Machine],
    files: SmallGuest,
) -> None:
    """Kernel and initrd of the host."""
    boot = {"kernel": str(files.kernel), "initrd": str(files.initrd), "cmdline": f"{CMDLINE} from.the.host"}
    machine = hv.create(small, name="direct", **hardware, **boot)
    gone.append(machine)
    machine.start(timeout=BOOT_S)
    assert "from.the.host" in machine.read_text("/proc/cmdline")


def test_commands_files_console(fork: bough.Machine, tmp_path: Path) -> None:
    assert fork.exec("sh", "-c", "cat; exit 3", input=b"in").exit_code == 3
    assert fork.exec("cat", input="in", check=True).stdout == "in"
    data = os.urandom(4 * _MIB)
    (tmp_path / "data").write_bytes(data)
    fork.copy_to(tmp_path / "data", "/tmp/data")
    told = fork.exec("sha256sum", "/tmp/data", check=True).stdout.split()[0]
    assert told == hashlib.sha256(data).hexdigest()
    fork.copy_from("/tmp/data", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    fork.shell("echo said on the console > /dev/ttyS0", check=True)
    wait_until(lambda: "said on the console" in fork.logs(), what="the console is logged")
    with fork.console() as console:
        console.send(b"typed")
        echoed = b""
        while b"typed" not in echoed:
            echoed += bytes(console.receive(600) or b"")


_SERVER = """
import socket
listener = socket.create_server(("0.0.0.0", 8080))
while True:
    connection, _ = listener.accept()
    connection.sendall(connection.recv(100).upper())
    connection.close()
"""


def test_ports(fork: bough.Machine) -> None:
    with fork.spawn("python3", "-c", _SERVER):
        port = fork.forward(8080)

        def answers() -> bool:
            try:
                with socket.create_connection((port.host, port.host_port), timeout=60) as connection:
                    connection.sendall(b"hello")
                    return connection.recv(100) == b"HELLO"
            except OSError:
                return False

        wait_until(answers, timeout_s=300, what="the guest's server answers", every_s=1)


def test_mounts(fork: bough.Machine, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/word").write_text("of the host")
    fork.mount(tmp_path / "shared", "/srv", writable=True)
    assert fork.read_text("/srv/word") == "of the host"
    fork.shell("echo of the guest > /srv/answer", check=True)
    assert (tmp_path / "shared/answer").read_text() == "of the guest\n"
    fork.unmount("/srv")


def test_the_cpu_is_named_and_stable(booted: bough.Snapshot, gone: list[bough.Machine]) -> None:
    """The same CPU in the machine's forks, and after a restart. No nested virtualization, KVM's clock."""
    first, second = booted.fork("cpu-1"), booted.fork("cpu-2")
    gone += [first, second]
    flags = _cpu(first)
    assert _cpu(second) == flags
    second.restart()
    assert _cpu(second) == flags
    print(flags["model name"], flags["flags"])
    assert "kvm-clock" in second.read_text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    assert not {"svm", "vmx"} & set(flags["flags"].split())


def _cpu(machine: bough.Machine) -> dict[str, str]:
    lines = machine.read_text("/proc/cpuinfo").splitlines()
    pairs = (line.partition(":")[::2] for line in lines if ":" in line)
    told = {name.strip(): value.strip() for name, value in pairs}
    return {
        name: told[name] for name in ("vendor_id", "cpu family", "model", "stepping", "model name", "flags")
    }


def test_host_on_request(
    hv: bough.Hypervisor, small: str, hardware: dict[str, Any], gone: list[bough.Machine], tmp_path: Path
) -> None:
    """`cpu = "host"` has the host's own features. Its memory is not exported to another CPU."""
    machine = hv.create(small, name="own", **hardware, cpu="host")
    gone.append(machine)
    machine.start(timeout=BOOT_S)
    host = Path("/proc/cpuinfo").read_text()
    model = next(line for line in host.splitlines() if line.startswith("model name")).partition(": ")[2]
    assert _cpu(machine)["model name"] == model.strip()
    machine.export(tmp_path / "own.bough")
    machine.delete(force=True)
    with pytest.raises(BoughError, match="host") as raised:
        hv.import_bundle(tmp_path / "own.bough")
    assert "--cold" in (raised.value.hint or "")
    assert "own" not in [each.name for each in hv.machines()]
