"""Restarts of the guest's agent, while commands run."""

from __future__ import annotations

import subprocess
import time

import bough
from tests.acceptance.conftest import Cli
from tests.waiting import wait_until

#: The process that has the port open, its parent, and the main process of the unit.
FIND = r"""
agent() { for p in $(pgrep -f '[b]ough.guest.agent_keeper'); do
    ls -l /proc/$p/fd 2>/dev/null | grep -q /dev/vport && echo $p; done; }
"""


def test_a_command_that_restarts_the_agent_comes_to_its_end(cli: Cli, fork: bough.Machine) -> None:
    script = "read a; echo $a; systemctl restart bough-agent && echo restarted; read b; echo $b; exit 3"
    with cli.popen(
        "exec", fork.name, "--", "sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        out, _ = process.communicate(b"one\ntwo\n", timeout=120)
    assert (out, process.returncode) == (b"one\nrestarted\ntwo\n", 3)
    assert cli.text("exec", fork.name, "--", "systemctl", "is-active", "bough-agent") == "active"


def test_an_agent_that_is_killed(cli: Cli, fork: bough.Machine) -> None:
    with cli.popen(
        "exec", fork.name, "--", "sh", "-c", "echo begun; read line; echo got $line; exit 4",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        time.sleep(3)  # the keeper is told of commands that run for more than a second
        killed = cli("exec", fork.name, "--", "sh", "-c", FIND + "kill -9 $(agent)", check=False)
        # Younger than a second, perhaps: then it is said that its end is not known.
        assert killed.returncode == 0 or b"not known" in killed.stderr
        out, _ = process.communicate(b"word\n", timeout=120)
    assert (out, process.returncode) == (b"got word\n", 4)


def test_a_guest_that_shuts_down_does_not_wait_for_commands(cli: Cli, fork: bough.Machine) -> None:
    with cli.popen(
        "exec", fork.name, "--", "sh", "-c", "trap '' HUP TERM; echo begun; sleep 3600; sleep 3600",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        stopped = time.monotonic()
        cli("stop", fork.name)
        # systemd itself would give it 90 s.
        assert time.monotonic() - stopped < 60
        process.communicate(timeout=60)
    assert process.returncode != 0


def test_daemons_outlive_the_agent(cli: Cli, fork: bough.Machine) -> None:
    script = "setsid sleep 3611 >/dev/null 2>&1 </dev/null & sleep 2; systemctl restart bough-agent"
    cli("exec", fork.name, "--", "sh", "-c", script)
    wait_until(lambda: cli("exec", fork.name, "--", "true", check=False).returncode == 0)
    assert cli("exec", fork.name, "--", "pgrep", "-f", "-x", "sleep 3611", check=False).returncode == 0
