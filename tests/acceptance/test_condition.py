"""A guest that panicked, halted, sleeps or hangs: bough reports it, and commands do not wait in vain."""

from __future__ import annotations

import time

import pytest

import bough
from tests.acceptance.conftest import Cli
from tests.acceptance.test_clock import wait_right
from tests.conftest import MEMORY
from tests.waiting import wait_until

CRASH = "echo 1 > /proc/sys/kernel/sysrq; (sleep 0.5; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &"
#: Real-time priority. Linux would otherwise leave 5 % of the processor to the agent.
SPIN = """echo -1 > /proc/sys/kernel/sched_rt_runtime_us
for n in 1 2 3; do setsid chrt -f 90 sh -c 'while :; do :; done' >/dev/null 2>&1 & done"""


def kind_of(machine: bough.Machine) -> str | None:
    found = machine.info().condition
    return found["kind"] if found else None


def stop_quickly(cli: Cli, name: str, says: str) -> None:
    began = time.monotonic()
    assert says in cli("stop", name).stderr.decode()
    assert time.monotonic() - began < 30, "it waited for a guest that does nothing any more"


def test_a_panic_is_a_failure(fork: bough.Machine, cli: Cli) -> None:
    fork.shell(CRASH)
    wait_until(lambda: fork.state == "failed", what="it has failed")
    failure = fork.info().failure
    assert failure is not None
    assert failure.cause == "the guest's kernel panicked: sysrq triggered crash"
    assert "Kernel panic" in failure.console
    assert f"{fork.name} has failed" in cli("stop", fork.name).stderr.decode()


def test_a_panic_without_the_driver_has_it_start_again(
    hv: bough.Hypervisor, debian: str, request: pytest.FixtureRequest
) -> None:
    machine = hv.run(debian, name="panics", memory=MEMORY, restart="on-failure")
    request.addfinalizer(machine.discard)
    machine.shell("rmmod pvpanic_mmio", check=True)
    machine.shell(CRASH)
    wait_until(lambda: (machine.info().restarts or {})["count"] == 1, what="it is started again")
    assert "panicked: sysrq triggered crash" in (machine.info().restarts or {})["cause"]
    wait_until(lambda: machine.state == "running", what="it runs again")
    machine.delete(force=True)


def test_a_guest_that_reboots_after_a_panic(fork: bough.Machine) -> None:
    fork.shell("echo 1 > /proc/sys/kernel/panic; " + CRASH)
    fork.wait("rebooted")
    assert (fork.state, kind_of(fork)) == ("running", None)
    assert fork.stop() == "guest"
    assert fork.info().failure is None


def test_a_halted_guest(fork: bough.Machine, cli: Cli) -> None:
    fork.shell("systemctl halt")
    wait_until(lambda: kind_of(fork) == "halted", what="it has halted")
    assert "running (halted)" in cli.text("list")
    assert "halted" in cli.text("info", fork.name)
    hint = f"bough restart {fork.name}"
    cli.error("exec", fork.name, "--", "true", says="halted", hint=hint, timeout_s=20)
    cli.error("wait", fork.name, says="halted", hint=hint, timeout_s=20)
    stop_quickly(cli, fork.name, "had halted")
    assert (fork.state, fork.info().failure) == ("stopped", None)


def test_a_guest_that_sleeps(fork: bough.Machine, cli: Cli) -> None:
    fork.shell("(sleep 0.5; echo mem > /sys/power/state) >/dev/null 2>&1 &")
    wait_until(lambda: kind_of(fork) == "asleep", what="it sleeps")
    assert "running (asleep)" in cli.text("list")
    hint = f"bough resume {fork.name}"
    for command in ("wait", "pause", "suspend", "snapshot create", "fork"):
        cli.error(*command.split(), fork.name, says="sleeps", hint=hint, timeout_s=20)
    cli.error("exec", fork.name, "--", "true", says="sleeps", hint=hint, timeout_s=20)
    bough.connect().shutdown()
    assert "running (asleep)" in cli.text("list"), "the next service does not know"
    cli("resume", fork.name)
    machine = bough.connect().machine(fork.id)
    assert machine.exec("echo", "awake").stdout == "awake\n"
    assert kind_of(machine) is None
    wait_right(machine)
    machine.shell("(sleep 0.5; echo mem > /sys/power/state) >/dev/null 2>&1 &")
    wait_until(lambda: kind_of(machine) == "asleep", what="it sleeps again")
    cli("stop", fork.name)
    assert machine.state == "stopped"


def test_busy_is_not_hung(fork: bough.Machine, cli: Cli) -> None:
    # bough does not believe a line that any program in the guest can print.
    fork.shell("echo 'Kernel panic - not syncing: made up' > /dev/console")
    assert cli.json("info", fork.name)["condition"] is None
    fork.shell("(sleep 1; " + SPIN + ") >/dev/null 2>&1 &")
    wait_until(lambda: (cli.json("info", fork.name)["condition"] or {}).get("kind") == "busy", what="busy")
    assert "vCPUs are at work" in cli.text("info", fork.name)
    assert "running (busy)" in cli.text("list")
    assert fork.state == "running"


def test_a_hung_agent(fork: bough.Machine, cli: Cli) -> None:
    fork.shell("(sleep 1; systemctl kill -s STOP bough-agent) >/dev/null 2>&1 &")
    wait_until(lambda: (cli.json("info", fork.name)["condition"] or {}).get("kind") == "hung", what="hung")
    assert "the agent hangs" in cli.text("info", fork.name)
    assert fork.info().agent == "silent"
    assert "running (hung)" in cli.text("list")
    cli("stop", fork.name)  # by the power button
    assert fork.state == "stopped"
