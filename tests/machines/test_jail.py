"""The jail from outside, by /proc, and from inside, by attempts: as root and as an ordinary user.

There are two tests from inside. A program takes QEMU's place in the same jail and tries what a hostile QEMU
would. And the real QEMU, with its filter of system calls, gets QMP commands that reach for things of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bough.errors import BoughError, QmpRefused
from bough.paths import Home, MachinePaths
from bough.qemu.jail import SYSTEM_FILES, Jail, render_jail
from bough.qemu.plan import Plan
from bough.qemu.process import QemuProcess
from bough.qemu.process_start import _sight, start_process
from bough.qemu.qmp import Qmp
from bough.qemu.syscalls import open_filter
from tests.machines.conftest import ACCELERATOR, IS_ROOT

INSIDE = Path(__file__).with_name("inside.py")
PYTHON = "/usr/bin/python3"
#: What a QEMU with KVM gets in addition: the device, and as root's its group, unless that is root's.
GRANTED = {"/dev/kvm"} if ACCELERATOR == "kvm" else set()
GROUPS = sorted({Path(device).stat().st_gid for device in GRANTED} - {0})
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup") + (() if IS_ROOT else ("user",))


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


@pytest.fixture(autouse=True)
def _whole_jail(plan: Plan) -> None:
    if plan.jail.bwrap is None:
        pytest.skip(f"this host gives no jail: {plan.jail.refused}")


# -- from outside -------------------------------------------------------------------------------------


async def test_its_status(process: QemuProcess, plan: Plan) -> None:
    told = status(process.pid)
    assert told["Seccomp"] == "2"
    assert told["NoNewPrivs"] == "1"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(told[kind], 16) == 0, kind
    uids = {int(uid) for uid in told["Uid"].split()}
    assert uids == {plan.uid if IS_ROOT else os.getuid()}
    assert 0 not in uids
    if IS_ROOT:
        assert told["Groups"].split() == [str(group) for group in GROUPS]
        with pytest.raises(KeyError):
            pwd.getpwuid(uids.pop())
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert "Max core file size        0 " in limits


async def test_its_namespaces_are_its_own(process: QemuProcess) -> None:
    for name in NAMESPACES:
        assert Path(f"/proc/{process.pid}/ns/{name}").readlink() != Path(f"/proc/self/ns/{name}").readlink()
    interfaces = Path(f"/proc/{process.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


async def test_what_is_mounted(process: QemuProcess, plan: Plan, paths: MachinePaths) -> None:
    """Only system directories, the image and the disks are mounted; only the disks are writable."""
    mounts = {}
    for line in Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        mounts[fields[4]] = fields[5].split(",")
    image = plan.disks[0].backing[0].path
    system = {"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", *SYSTEM_FILES}
    own = {"/", "/tmp", "/dev", "/dev/pts"}
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "console")}
    devices |= GRANTED
    kernel = {path for path in mounts if path == "/proc" or path.startswith("/proc/")}
    assert set(mounts) <= system | own | devices | kernel | {image, str(paths.disks)}, sorted(mounts)
    writable = {path for path, options in mounts.items() if "rw" in options}
    assert writable <= {str(paths.disks), "/proc", "/dev/pts"} | devices, sorted(writable)
    assert "nosuid" in mounts[str(paths.disks)]
    assert "nodev" in mounts[str(paths.disks)]


async def test_its_open_files(process: QemuProcess, plan: Plan, paths: MachinePaths) -> None:
    """Sockets, the disks, the image for reading, random numbers, and the lock that shows that the process
    lives.
    """
    allowed = GRANTED | {
        "/dev/null",
        "/dev/urandom",
        str(paths.disk(0)),
        plan.disks[0].backing[0].path,
        str(paths.log / "lock"),
    }
    kinds = ("socket:", "pipe:", "anon_inode:")
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile
        assert target in allowed or target.startswith(kinds), target
        if target in (plan.disks[0].backing[0].path, str(paths.log / "lock")):
            flags = (
                (Path(f"/proc/{process.pid}/fdinfo") / link.name).read_text().split("flags:")[1].split()[0]
            )
            assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY


async def test_its_processes_and_files_as_it_sees_them(process: QemuProcess, paths: MachinePaths) -> None:
    root = Path(f"/proc/{process.pid}/root")
    assert len([path for path in (root / "proc").iterdir() if path.name.isdigit()]) <= 2
    assert not any((root / name).exists() for name in ("root", "home", "run", "etc/passwd", "var/lib", "sys"))
    assert [path.name for path in (root / "var/tmp").iterdir()] == [paths.root.parents[2].name]
    assert (root / str(paths.disk(0)).lstrip("/")).exists()
    for hidden in (paths.log, paths.record, paths.runtime, paths.root.parents[1] / "lock"):
        assert not (root / str(hidden).lstrip("/")).exists()
    machines = root / str(paths.root.parent).lstrip("/")
    assert [path.name for path in machines.iterdir()] == [paths.root.name]


# -- from inside: a program in QEMU's place -----------------------------------------------------------


@pytest.fixture
def neighbour(home: Home) -> Iterator[MachinePaths]:
    """Make another machine with the files that its QEMU and the service leave on the disk."""
    other = home.machine("0therm4ch1ne")
    for directory in (other.root, other.disks):
        directory.mkdir(mode=0o711)
    other.log.mkdir(mode=0o700)
    # As open as a mistake could make the files: only the jail protects them.
    for path in (other.disk(0), other.record, other.console_log):
        path.write_bytes(b"somebody else's")
        path.chmod(0o666)
    yield other
    shutil.rmtree(other.root)


@contextlib.contextmanager
def host_sockets(home: Home) -> Iterator[tuple[int, str]]:
    """Yield (port, abstract name) of the service's socket, a port on the loopback, and an abstract socket."""
    name = f"bough-test-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(socket.socket(socket.AF_UNIX))
        home.runtime.mkdir(parents=True, exist_ok=True)
        api.bind(str(home.api_socket))
        api.listen()
        stack.callback(home.api_socket.unlink)
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind("\0" + name)
        abstract.listen()
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        yield port, name


def foreign_files(home: Home, neighbour: MachinePaths, paths: MachinePaths) -> list[str]:
    own = [paths.log, paths.record, paths.runtime, paths.qmp_socket]
    others = [neighbour.root, neighbour.disk(0), neighbour.record, neighbour.console_log]
    shared = [
        home.root / "lock",
        home.root / "token",
        home.host_facts,
        home.labels,
        home.incoming,
        home.runtime,
    ]
    users = [Path.home(), Path.home() / ".ssh", Path.cwd(), Path(__file__)]
    system = (
        "/etc/passwd /etc/shadow /etc/hostname /root /home /run /var/lib /var/log /sys /boot /mnt /srv /opt"
    )
    devices = "/dev/kvm /dev/mem /dev/sda /dev/vda /dev/net/tun /dev/fuse /dev/input /proc/kcore"
    return [*map(str, (*own, *others, *shared, *users)), *system.split(), *devices.split()]


@pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"no {PYTHON}")
async def test_a_program_in_its_place_gets_nothing(
    plan: Plan, paths: MachinePaths, home: Home, neighbour: MachinePaths, record_property: Any
) -> None:
    from bough.qemu.process_start import _give_disks

    if plan.uid is not None:
        _give_disks(paths, plan.uid)
    with host_sockets(home) as (port, name):
        wishes = {
            "read": foreign_files(home, neighbour, paths),
            "write": [
                "/usr/bin/env",
                str(neighbour.disk(0)),
                "/proc/sysrq-trigger",
                plan.disks[0].backing[0].path,
            ],
            "connect": [str(home.api_socket), "/run/systemd/private", "/run/dbus/system_bus_socket"],
            "port": port,
            "abstract": name,
            "kill": os.getpid(),
        }
        argv = [PYTHON, "-I", "-S", "-c", INSIDE.read_text(), json.dumps(wishes)]
        outer = open_filter()
        assert outer is not None
        command = render_jail(plan.jail, _sight(plan, paths), argv, uid=plan.uid, filter_descriptor=outer)
        done = await asyncio.to_thread(
            subprocess.run,
            ["timeout", "--kill-after=1", "60", *command],
            capture_output=True,
            text=True,
            check=False,
            pass_fds=[outer],
        )
        os.close(outer)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    got = {name: what for name, what in report["attempts"].items() if not what.startswith("refused")}
    assert got == {}
    assert len(report["processes"]) <= 2
    assert report["interfaces"] == ["lo"]
    assert set(report["environment"]) <= {"PATH", "PWD", "LC_CTYPE"}
    assert report["descriptors"][:3] == [0, 1, 2]
    assert len(report["descriptors"]) <= 4
    if IS_ROOT:
        assert report["ids"] == [[plan.uid] * 3, [plan.uid] * 3, GROUPS]
    print(f"{len(report['attempts'])} attempts of a program in the jail, all refused")


# -- from inside: QEMU itself -------------------------------------------------------------------------


def reaches(home: Home, neighbour: MachinePaths, port: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield QMP commands by which a QEMU would reach things outside of its machine."""
    files = [
        "/etc/passwd",
        "/etc/shadow",
        str(neighbour.disk(0)),
        str(neighbour.record),
        "/dev/sda",
        "/dev/mem",
    ]
    for number, path in enumerate([*files, str(Path(__file__))]):
        for read_only in (True, False):
            node = f"file{number}{read_only:d}"
            yield (
                "blockdev-add",
                {"driver": "file", "node-name": node, "filename": path, "read-only": read_only},
            )
    yield (
        "blockdev-add",
        {
            "driver": "nbd",
            "node-name": "n",
            "server": {"type": "inet", "host": "127.0.0.1", "port": str(port)},
        },
    )
    for number, path in enumerate(
        ("/usr/bin/x", "/etc/cron.d/x", "/root/.ssh/authorized_keys", "/tmp/x", "/x")
    ):
        yield "chardev-add", {"id": f"out{number}", "backend": {"type": "file", "data": {"out": path}}}
    unix = {"type": "unix", "data": {"path": str(home.api_socket)}}
    yield "chardev-add", {"id": "api", "backend": {"type": "socket", "data": {"addr": unix, "server": False}}}
    inet = {"type": "inet", "data": {"host": "127.0.0.1", "port": str(port)}}
    yield "chardev-add", {"id": "tcp", "backend": {"type": "socket", "data": {"addr": inet, "server": False}}}
    yield "object-add", {"qom-type": "secret", "id": "secret", "file": "/etc/shadow"}
    yield (
        "object-add",
        {
            "qom-type": "memory-backend-file",
            "id": "mem",
            "mem-path": "/dev/shm/x",
            "size": 4096,
            "share": True,
        },
    )
    yield "object-add", {"qom-type": "input-linux", "id": "keys", "evdev": "/dev/input/event0"}
    yield "dump-guest-memory", {"paging": False, "protocol": "file:/tmp/dump"}
    yield "pmemsave", {"val": 0, "size": 4096, "filename": "/var/tmp/memory"}
    yield "screendump", {"filename": "/usr/share/screen"}


async def test_qemu_reaches_nothing_that_is_not_its_machines(
    process: QemuProcess, paths: MachinePaths, home: Home, neighbour: MachinePaths
) -> None:
    qmp = await Qmp.connect(paths.qmp_socket)
    tried = 0
    with host_sockets(home) as (port, _):
        for command, arguments in reaches(home, neighbour, port):
            with pytest.raises(QmpRefused):
                await qmp.execute(command, **arguments)
            tried += 1
        # Asynchronous commands: QEMU accepts them, and they fail.
        for uri in (f"tcp:127.0.0.1:{port}", f"unix:{home.api_socket}", "fd:nothing"):
            with contextlib.suppress(QmpRefused):
                await qmp.execute("migrate", uri=uri)
            assert await migration_end(qmp) in (None, "failed"), uri
            tried += 1
    await qmp.close()
    assert process.is_alive()
    print(f"{tried} attempts of QEMU by QMP, all refused")


async def migration_end(qmp: Qmp) -> str | None:
    on_its_way = ("setup", "active", "cancelling")
    async with asyncio.timeout(20):
        while (status := (await qmp.execute("query-migrate")).get("status")) in on_its_way:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # QEMU sends an event only on request
    return status


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("migrate", {"uri": "exec:/bin/sh -c true"}),
        ("migrate", {"uri": "exec:/usr/bin/id"}),
        ("netdev_add", {"type": "tap", "id": "tap", "script": "/bin/true"}),
        ("netdev_add", {"type": "tap", "id": "tap", "helper": "/bin/true"}),
        ("netdev_add", {"type": "bridge", "id": "bridge", "br": "br0"}),
    ],
)
async def test_starting_a_program_fails(
    process: QemuProcess, paths: MachinePaths, command: str, arguments: dict[str, Any]
) -> None:
    """The filter kills QEMU 7.2 (SIGSYS); later versions get an error."""
    qmp = await Qmp.connect(paths.qmp_socket)
    with contextlib.suppress(BoughError):
        await qmp.execute(command, timeout_s=10, **arguments)
        assert command == "migrate", "it was done"
        assert await migration_end(qmp) in (None, "failed")
    await qmp.close()
    if process.is_alive():
        return
    assert (await process.wait()).signal in ("SIGSYS", "SIGKILL")


async def test_what_is_missing_is_told(plan: Plan, paths: MachinePaths) -> None:
    process = await start_process(replace(plan, jail=Jail(), uid=None), paths)
    assert process.jail is not None
    missing = {part.name for part in process.jail.parts if not part.had}
    assert missing == {"files", "processes", "network", "user", "system calls", "resources"}
    process.kill()
    await process.wait()


# -- as an ordinary user ------------------------------------------------------------------------------


@pytest.fixture
def ordinary_user() -> Iterator[pwd.struct_passwd]:
    name = f"bough-test-{os.getpid() % 10000}"
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", name], check=True, capture_output=True)
    yield pwd.getpwnam(name)
    subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)


@pytest.mark.skipif(not (IS_ROOT and shutil.which("useradd")), reason="only root makes users")
@pytest.mark.skipif(bool(GRANTED), reason="the user would not be in group kvm")
def test_all_of_this_as_an_ordinary_user(ordinary_user: pwd.struct_passwd) -> None:
    """Run this file again as a user of the test, with the system's Python: root's own may be hidden."""
    checkout = Path(__file__).parents[2]
    python = f"/usr/bin/python3.{sys.version_info.minor}"
    packages = [str(checkout / "src"), sysconfig.get_path("purelib")]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-B", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=checkout,
            env={
                "HOME": ordinary_user.pw_dir,
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join(packages),
            },
            timeout=300,
            user=ordinary_user.pw_uid,
            group=ordinary_user.pw_gid,
            extra_groups=[],
        )

    if not Path(python).exists() or run("-c", "import bough, pytest, pydantic").returncode:
        pytest.skip("the user cannot read this checkout, or the system has no such Python")
    done = run("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/machines/test_jail.py")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
