"""The state of each init, from the files and processes of a made-up guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from bough.guest import agent_boot, agent_init

BUSYBOX_TAB = "::sysinit:/etc/init.d/rcS\n::wait:/bin/late --now\ntty1::respawn:/sbin/getty 38400 tty1\n"


class Guest:
    """A guest's root with a process 1."""

    def __init__(self, root: Path, program: str) -> None:
        self.root = root
        self._link("/proc/1/exe", program)
        self.children()

    def write(self, path: str, content: str | bytes = b"") -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)

    def children(self, *commands: str, listed: bool = True) -> None:
        """Give process 1 these children. A kernel may not list them."""
        pids = range(100, 100 + len(commands))
        self.write("/proc/1/task/1/children", " ".join(map(str, pids)) if listed else "")
        for pid, command in zip(pids, commands, strict=True):
            self.write(f"/proc/{pid}/cmdline", command.replace(" ", "\0") + "\0")
            self.write(f"/proc/{pid}/stat", f"{pid} (a b) S 1 1 1")

    def level(self, current: str, before: str = "N") -> None:
        """Record a runlevel in utmp, after a record of another kind."""
        record = (1).to_bytes(4, "little") + bytes([ord(current), ord(before)])
        self.write("/run/utmp", (2).to_bytes(4, "little").ljust(384, b"\0") + record.ljust(384, b"\0"))

    def _link(self, path: str, target: str) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True)
        place.symlink_to(target)

    @property
    def init(self) -> str:
        return agent_init.find_init(str(self.root))

    @property
    def state(self) -> str:
        return agent_init.find_state(str(self.root))


def test_boughs_own_init_goes_before_directories_of_the_image(tmp_path: Path) -> None:
    guest = Guest(tmp_path, "/.bough/lib/ld.so")
    guest.write("/run/systemd/system/x")
    guest.write("/run/openrc/softlevel", "boot")
    assert guest.init == agent_init.SYSTEMD
    code = "from bough.guest.agent_init_process import main; main()"
    guest.write("/proc/1/cmdline", f"/.bough/lib/ld.so\0python3\0-c\0import sys; {code}\0")
    assert guest.init == agent_init.BOUGH
    assert guest.state == agent_init.RUNNING


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("/sbin/openrc-init", "openrc-init"),
        ("/bin/busybox", "busybox"),
        ("/bin/busybox (deleted)", "busybox"),
        ("/usr/bin/runit", "runit"),
        ("/lib/runit/runit-init", "runit"),
        ("/usr/bin/s6-svscan", "s6"),
        ("/usr/bin/dinit", "dinit"),
        ("/usr/bin/bash", "unknown"),
        ("/sbin/init", "unknown"),
    ],
)
def test_process_1_tells_which_init_it_is(tmp_path: Path, program: str, name: str) -> None:
    assert Guest(tmp_path, program).init == name


def test_systemd_and_sysvinit_have_a_file(tmp_path: Path) -> None:
    guest = Guest(tmp_path, "/sbin/init")
    guest.write("/etc/inittab")
    assert guest.init == "sysvinit"
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert guest.init == "systemd"


def test_a_guest_without_proc_is_unknown(tmp_path: Path) -> None:
    assert agent_init.find_init(str(tmp_path)) == "unknown"
    assert agent_init.find_state(str(tmp_path)) == "unknown"


@pytest.mark.parametrize("program", ["/bin/busybox", "/sbin/openrc-init", "/sbin/init"])
def test_openrc(tmp_path: Path, program: str) -> None:
    guest = Guest(tmp_path, program)
    guest.write("/etc/inittab")
    guest.write("/run/openrc/softlevel", "sysinit\n")
    assert guest.state == "starting"
    guest.write("/run/openrc/softlevel", "boot\n")
    assert guest.state == "starting"
    (tmp_path / "run/openrc/rc.starting").mkdir()
    guest.write("/run/openrc/softlevel", "default\n")
    assert guest.state == "starting"
    (tmp_path / "run/openrc/rc.starting").rmdir()
    assert guest.state == "running"
    (tmp_path / "run/openrc/rc.stopping").mkdir()
    assert guest.state == "starting"  # another runlevel is about to begin
    guest.write("/run/openrc/softlevel", "shutdown\n")
    assert guest.state == "stopping"
    guest.write("/run/openrc/softlevel", "single\n")
    assert guest.state == "maintenance"


@pytest.mark.parametrize("listed", [True, False])
def test_sysvinit(tmp_path: Path, listed: bool) -> None:
    guest = Guest(tmp_path, "/usr/sbin/init")
    guest.write("/etc/inittab")
    assert guest.state == "unknown"  # nothing is recorded, and nothing runs
    guest.children("/bin/sh /etc/init.d/rcS", listed=listed)
    assert guest.state == "starting"
    guest.level("2")
    guest.children("/bin/sh /etc/init.d/rc 2", "/sbin/getty 38400 tty1", listed=listed)
    assert guest.state == "starting"
    guest.children("/sbin/getty 38400 tty1", "/sbin/getty 38400 tty2", listed=listed)
    assert guest.state == "running"
    guest.level("S")
    assert guest.state == "maintenance"
    guest.level("0", "2")
    guest.children("/bin/sh /etc/init.d/rc 0", listed=listed)
    assert guest.state == "stopping"


def test_a_damaged_utmp_tells_nothing(tmp_path: Path) -> None:
    guest = Guest(tmp_path, "/sbin/init")
    guest.write("/etc/inittab")
    guest.write("/run/utmp", b"\1\0\0\0" * 5)
    assert guest.state == "unknown"


def test_busybox_runs_the_steps_of_the_boot_first(tmp_path: Path) -> None:
    guest = Guest(tmp_path, "/bin/busybox")
    guest.write("/etc/inittab", BUSYBOX_TAB)
    guest.children("/bin/sh /etc/init.d/rcS")
    assert guest.state == "starting"
    guest.children("/bin/late --now")
    assert guest.state == "starting"
    guest.children("/sbin/getty 38400 tty1")
    assert guest.state == "running"


def test_busybox_without_an_inittab_has_its_own_steps(tmp_path: Path) -> None:
    guest = Guest(tmp_path, "/bin/busybox")
    guest.children("/bin/sh /etc/init.d/rcS")
    assert guest.state == "starting"
    guest.children("-/bin/sh")
    assert guest.state == "running"


def test_runit(tmp_path: Path) -> None:
    guest = Guest(tmp_path, "/sbin/runit")
    guest.children("/bin/sh /etc/runit/1")
    assert guest.state == "starting"
    guest.children("/bin/sh /etc/runit/2")
    assert guest.state == "starting"
    guest.children("runsvdir -P /etc/service")
    assert guest.state == "running"
    guest.children("runsvdir -P /etc/service", "/bin/sh /etc/runit/3")
    assert guest.state == "stopping"


@pytest.mark.parametrize(
    ("init", "first"),
    [
        ("sysvinit", ["shutdown", "-h", "-P", "now"]),
        ("openrc-init", ["openrc-shutdown", "--poweroff", "now"]),
        ("runit", ["init", "0"]),
        ("s6", ["poweroff"]),
        ("unknown", ["poweroff"]),
    ],
)
def test_the_own_command_of_an_init_comes_first(init: str, first: list[str]) -> None:
    commands = agent_init.ending_commands(init, "poweroff")
    assert commands[0] == first
    assert ["poweroff"] in commands


def test_commands_are_tried_until_one_works(tmp_path: Path) -> None:
    marks = [
        ["false"],
        [str(tmp_path / "missing")],
        ["touch", str(tmp_path / "ended")],
        ["touch", "/nowhere/x"],
    ]
    assert agent_init.end_by_command(marks)
    assert (tmp_path / "ended").exists()
    assert not agent_init.end_by_command([["false"]])


def test_the_end_of_the_boot_is_seen_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps of the boot, an init looks as if it had ended."""
    states = iter(["starting", "running", "starting", "running", "running"])
    monkeypatch.setattr(agent_init, "find_state", lambda: next(states))
    monkeypatch.setattr(agent_boot, "_LOOK_AGAIN_S", 0.0)
    told = agent_boot.await_boot({"timeout_s": 30}, lambda *_: None)
    assert told["state"] == "running"
    assert len(str(told["boot_id"])) == 36
    assert next(states, None) is None


def test_a_boot_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_init, "find_state", lambda: "starting")
    assert agent_boot.await_boot({"timeout_s": 0}, lambda *_: None)["state"] == "starting"
