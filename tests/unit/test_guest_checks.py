"""The scripts that wait inside a guest, run by this host's sh, and the words of tests on top of them."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bough import guest_checks
from bough.client.waits import AwaitedGuest
from bough.errors import CheckFailed, CommandFailed, DeadlineExceeded
from bough.guest_checks import (
    GAVE_UP,
    Attempts,
    Check,
    file_exists,
    port_is,
    render_wait,
    script_fails,
    script_passes,
    unit_is_active,
)
from tests.unit.local_machine import LocalProcess


def wait(check: Check, *, most: int = 3) -> tuple[int, str, Attempts]:
    """Return status, output and attempts of a wait."""
    argv = render_wait(check, every_s=0.01, most=most)
    done = subprocess.run(argv, capture_output=True, check=False, timeout=20)
    attempts = Attempts()
    attempts.feed(done.stderr)
    return done.returncode, done.stdout.decode(), attempts


def test_a_script_is_repeated_until_it_succeeds(tmp_path: Path) -> None:
    script = f"echo x >>{tmp_path}/n; [ $(wc -l <{tmp_path}/n) = 3 ] && echo 'all  done'"
    status, out, attempts = wait(script_passes(script), most=0)
    assert (status, out, attempts.count) == (0, "all  done", 3)


@pytest.mark.parametrize("places", [None, "/nowhere"])
def test_a_program_that_an_attempt_leaves_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: str | None
) -> None:
    """The wait ends although the program still holds the output. A guest may have no writable directory."""
    if places is not None:
        script = guest_checks._REPEAT.replace("/dev/shm /run /tmp /var/tmp", places)
        monkeypatch.setattr(guest_checks, "_REPEAT", script)
    held = "" if places is None else ">/dev/null 2>&1"
    began = time.monotonic()
    status, out, attempts = wait(script_passes(f"echo one; sleep 9 {held or '2>/dev/null'} & echo two"))
    assert (status, out.split(), attempts.count) == (0, ["one", "two"], 1)
    assert time.monotonic() - began < 8
    assert not list(Path("/dev/shm").glob("bough.??????"))


def test_a_large_output_is_whole() -> None:
    status, out, _ = wait(script_passes("yes | head -c 300000"))
    assert (status, len(out)) == (0, 299_999)


def test_a_script_that_never_succeeds_tells_its_last_output(tmp_path: Path) -> None:
    script = f"echo x >>{tmp_path}/n; wc -l <{tmp_path}/n; echo why >&2; exit 113"
    status, out, attempts = wait(script_passes(script))
    assert (status, out, attempts.count) == (1, "", 3)
    assert attempts.output == "why\n3"


def test_the_output_is_that_of_an_attempt_that_told_something(tmp_path: Path) -> None:
    attempts = Attempts()
    for part in (b"\x1eno route\n", b"\x1e", b"  \n"):
        attempts.feed(part)
    assert (attempts.count, attempts.output) == (2, "no route")


def test_attempts_keep_the_end_of_what_a_hostile_guest_tells() -> None:
    attempts = Attempts()
    for _ in range(100):
        attempts.feed(b"\x1e" + b"\xff" * 100_000)
    assert attempts.count == 100
    assert len(attempts.output) <= 64 * 1024


def test_a_script_that_must_fail() -> None:
    assert wait(script_fails("exit 9"))[0] == 0
    status, _, attempts = wait(script_fails("echo still there"))
    assert (status, attempts.output) == (1, "still there")


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    assert wait(file_exists(str(tmp_path / "other")))[0] == 0
    status, _, attempts = wait(file_exists(str(tmp_path / "a b" / "c")))
    assert status == 1
    assert attempts.output == f"{tmp_path} has:\nother\nthere is no {tmp_path}/a b/c"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("host", [None, "localhost"])
def test_a_port(family: int, host: str | None) -> None:
    if family is socket.AF_INET6 and host is not None:
        host = "::1"
    with socket.socket(family) as listener:
        try:
            listener.bind(("localhost", 0))
        except OSError:
            pytest.skip("no IPv6 on this host")
        port = listener.getsockname()[1]
        assert wait(port_is("open", port, host))[0] == 1
        listener.listen()
        assert wait(port_is("open", port, host))[0] == 0
        status, _, attempts = wait(port_is("closed", port, host))
        assert status == 1
        assert str(port) in attempts.output
    assert wait(port_is("closed", port, host))[0] == 0
    assert str(port) in wait(port_is("open", port, host))[2].output


ACTIVE = "LoadState=loaded\nActiveState=active\nSubState=running\nType=simple\nResult=success\n"
STARTING = ACTIVE.replace("=active", "=activating").replace("running", "start")
INACTIVE = ACTIVE.replace("=active", "=inactive").replace("running", "dead")
FAILED = ACTIVE.replace("=active", "=failed").replace("success", "exit-code")
ONE_SHOT = INACTIVE.replace("simple", "oneshot")


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a systemctl first in the PATH: `show` prints the lines of the next file of `facts-1`, `facts-2`."""
    program = tmp_path / "systemctl"
    program.write_text(
        f"""#!/bin/sh
        case "$*" in
          *show*) echo x >>{tmp_path}/n; n=$(($(wc -l <{tmp_path}/n)))
            while [ ! -e {tmp_path}/facts-$n ]; do n=$((n - 1)); done; cat {tmp_path}/facts-$n ;;
          *status*) echo "status of $*" ;;
        esac
        """
    )
    program.chmod(0o755)
    (tmp_path / "journalctl").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def states(systemctl: Path, *facts: str) -> None:
    for number, text in enumerate(facts, 1):
        (systemctl / f"facts-{number}").write_text(text)


@pytest.mark.parametrize(
    ("facts", "status", "count", "says"),
    [
        ([ACTIVE], 0, 1, ""),
        ([STARTING, STARTING, ACTIVE], 0, 3, "is activating (start)"),
        ([INACTIVE, STARTING, ACTIVE], 0, 3, "is activating (start)"),
        ([INACTIVE + "Job=7\n"] * 6 + [ACTIVE], 0, 7, "is inactive (dead)"),
        ([INACTIVE], GAVE_UP, 4, "is inactive, and no job starts it\nstatus of"),
        ([INACTIVE.replace("=loaded", "=not-found")], GAVE_UP, 4, "there is no unit web.service"),
        ([FAILED], GAVE_UP, 1, "has failed (exit-code)\nstatus of --no-pager"),
        ([ONE_SHOT + "ExecMainExitTimestampMonotonic=99\n"], 0, 1, ""),
        ([ONE_SHOT + "ExecMainExitTimestampMonotonic=0\n"], GAVE_UP, 4, "no job starts it"),
        ([INACTIVE + "ExecMainExitTimestampMonotonic=99\n"], GAVE_UP, 4, "no job starts it"),
    ],
)
def test_a_unit(systemctl: Path, facts: list[str], status: int, count: int, says: str) -> None:
    states(systemctl, *facts)
    done = wait(unit_is_active("web.service", grace_attempts=4), most=20)
    assert (done[0], done[2].count) == (status, count), done[2].output
    assert says in done[2].output


def test_a_one_shot_unit_that_systemd_has_forgotten(systemctl: Path) -> None:
    states(systemctl, ONE_SHOT + "ExecMainExitTimestampMonotonic=0\n")
    journal = systemctl / "journalctl"
    journal.unlink()
    journal.write_text(
        '#!/bin/sh\ncase "$*" in *" UNIT=once.service JOB_TYPE=start"*) echo Finished ;; esac\n'
    )
    journal.chmod(0o755)
    assert wait(unit_is_active("once", grace_attempts=4), most=9)[0] == 0
    assert wait(unit_is_active("other", grace_attempts=4), most=9)[0] == GAVE_UP


# -- the words ----------------------------------------------------------------------------------------


class LocalGuest(AwaitedGuest):
    """A guest whose commands run on this host. `patience` ends the command at once."""

    def __init__(self) -> None:
        self._name = "local"
        self._is_late = False

    def late(self) -> LocalGuest:
        self._is_late = True
        return self

    def spawn(self, *argv: str, patience: float | None = None, **options: Any) -> Any:
        class Late(LocalProcess):
            def __iter__(self) -> Iterator[tuple[str, bytes]]:
                yield "stderr", b"\x1efirst\nsecond\n"
                yield "stderr", b"\x1e"
                raise DeadlineExceeded("killed")

        if not self._is_late or patience is None:
            return LocalProcess(argv, {})
        return Late(("true",), {})


def test_commands_that_must_succeed() -> None:
    vm = LocalGuest()
    assert vm.succeed("echo one", "echo two") == "one\ntwo\n"
    with pytest.raises(CommandFailed, match="ended with 3: why"):
        vm.succeed("echo one", "echo why >&2; exit 3")


def test_commands_that_must_fail() -> None:
    vm = LocalGuest()
    assert vm.fail("echo one; false", "exit 9") == "one\n"
    with pytest.raises(CheckFailed, match="`echo one` succeeded in machine 'local'") as caught:
        vm.fail("false", "echo one")
    assert caught.value.output == "one\n"


def test_waits_of_a_test(tmp_path: Path) -> None:
    vm = LocalGuest()
    assert vm.wait_until_succeeds("echo ready") == "ready"
    vm.wait_until_fails("false")
    vm.wait_for_file(str(tmp_path))


def test_a_wait_that_is_too_late_shows_the_last_failure() -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        LocalGuest().late().wait_for_open_port(80, timeout=7)
    error = caught.value
    assert error.message == (
        "machine 'local': waited 7 s of the guest until TCP port 80 is open; attempts: 2: second"
    )
    assert (error.output, error.attempts, error.timeout_s) == ("first\nsecond", 2, 7)


def test_a_wait_that_cannot_succeed_any_more(systemctl: Path) -> None:
    states(systemctl, FAILED)
    with pytest.raises(CheckFailed) as caught:
        LocalGuest().wait_for_unit("web")
    assert caught.value.message == (
        "machine 'local': waited until unit web is active: unit web has failed (exit-code)"
    )
    assert "status of" in caught.value.output
