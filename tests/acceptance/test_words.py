"""The words of tests, on a real guest: commands, units, ports, files, the console, power."""

from __future__ import annotations

import threading
import time

import pytest

import bough
from bough.errors import CheckFailed, CommandFailed, DeadlineExceeded

LATE_SERVICE = """[Service]
Type=notify
ExecStart=/bin/sh -c 'sleep 1; systemd-notify --ready; exec sleep infinity'
NotifyAccess=all
"""
ONE_SHOT = "[Service]\nType=oneshot\nExecStart=/bin/true\n"
BROKEN = "[Service]\nExecStart=/bin/sh -c 'echo the disk is on fire >&2; exit 3'\n"


def test_commands_of_a_test(vm: bough.Machine) -> None:
    assert vm.succeed("echo one", "echo two") == "one\ntwo\n"
    assert vm.succeed("id -un", user="nobody") == "nobody\n"
    assert vm.fail("ls /nowhere") == ""
    with pytest.raises(CommandFailed, match="No such file"):
        vm.succeed("ls /nowhere")
    with pytest.raises(CheckFailed, match="had to fail"):
        vm.fail("true")


def test_waits_for_units(fork: bough.Machine) -> None:
    for name, text in (("late", LATE_SERVICE), ("once", ONE_SHOT), ("broken", BROKEN)):
        fork.write_file(f"/etc/systemd/system/{name}.service", text)
    fork.succeed("systemctl daemon-reload; systemctl start --no-block late once")
    fork.wait_for_unit("late")
    assert fork.succeed("systemctl is-active late") == "active\n"
    fork.wait_for_unit("once")
    fork.fail("systemctl is-active once")
    fork.exec("systemctl", "start", "broken")
    with pytest.raises(CheckFailed, match="unit broken has failed") as caught:
        fork.wait_for_unit("broken")
    assert "the disk is on fire" in caught.value.output


def test_a_unit_gets_a_grace_until_it_has_a_job(fork: bough.Machine) -> None:
    fork.write_file("/etc/systemd/system/later.service", "[Service]\nExecStart=sleep infinity\n")
    fork.succeed("systemctl daemon-reload; (sleep 1; systemctl start later) >/dev/null 2>&1 &")
    fork.wait_for_unit("later")
    began = time.monotonic()
    with pytest.raises(CheckFailed, match="there is no unit nowhere"):
        fork.wait_for_unit("nowhere")
    assert time.monotonic() - began > 4


def test_waits_for_ports_and_files(vm: bough.Machine) -> None:
    vm.wait_for_open_port(22)
    vm.wait_for_open_port(22, "127.0.0.1")
    vm.wait_for_closed_port(4711)
    vm.wait_for_closed_port(4711, "localhost")
    with vm.spawn("sh", "-c", "sleep 1; touch /run/made; sleep 60"):
        vm.wait_for_file("/run/made")
    vm.succeed("rm /run/made")
    assert vm.wait_until_succeeds("echo ready") == "ready"
    vm.wait_until_fails("ls /run/made")


def test_a_time_out_shows_the_last_failure_and_ends_the_check(vm: bough.Machine) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        vm.wait_until_succeeds("echo no answer from 4711 >&2; false", timeout=2)
    assert "no answer from 4711" in caught.value.message
    assert caught.value.attempts >= 1
    vm.wait_until_fails("pgrep -f 'no answer from [4]711'")


def test_the_console_is_read_as_it_prints(fork: bough.Machine) -> None:
    threading.Timer(
        0.5, lambda: fork.succeed("printf '\\033[1mcolou\\033[0mred 42\\r\\n' >/dev/console")
    ).start()
    assert fork.wait_for_console_text(r"coloured \d+") == "coloured 42"
    assert fork.wait_for_console_text("coloured") == "coloured", "earlier output counts"
    with pytest.raises(DeadlineExceeded, match="the console shows no text like 'nothing'"):
        fork.wait_for_console_text("nothing", timeout=0.5)


def test_an_error_names_its_subtest(vm: bough.Machine) -> None:
    with pytest.raises(CommandFailed) as caught, vm.subtest("the disk is writable"):
        vm.succeed("false")
    assert caught.value.__notes__ == ["in the subtest 'the disk is writable'"]


def test_power(fork: bough.Machine) -> None:
    boot = fork.succeed("cat /proc/sys/kernel/random/boot_id")
    fork.reboot()
    assert fork.succeed("cat /proc/sys/kernel/random/boot_id") != boot
    fork.crash()
    assert fork.state == "stopped"
