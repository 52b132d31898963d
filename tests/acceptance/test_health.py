"""Health checks in a real guest: each kind, repeated by the guest itself."""

from __future__ import annotations

from typing import Any

import bough
from bough.guest_checks import GAVE_UP, Attempts
from bough.projects.health_command import render_start, render_wait
from bough.spec.project.healthcheck import HealthCheckSpec

#: A check that is repeated quickly, and gives up after two failures.
QUICK = {"interval": "200ms", "start_interval": "200ms", "timeout": "20s", "retries": 2}


def health(vm: bough.Machine, *, start: bool = False, **check: Any) -> tuple[int | None, Attempts]:
    """Return the status of one wait, and its attempts; `start`: in the start period."""
    attempts = Attempts()
    spec = HealthCheckSpec.model_validate({**QUICK, **check})
    with vm.spawn(*(render_start if start else render_wait)(spec), patience=120) as process:
        process.close_stdin()
        for _, data in process:
            attempts.feed(data)
        return process.wait().code, attempts


def test_a_command(vm: bough.Machine) -> None:
    assert health(vm, test="systemctl is-system-running --wait >/dev/null; id -un | grep root")[0] == 0
    status, attempts = health(vm, test="echo the disk is on fire >&2; false")
    assert (status, attempts.count, attempts.output) == (1, 2, "the disk is on fire")
    status, attempts = health(vm, test=["sleep", "100"], timeout="1s", retries=1)
    assert (status, attempts.output) == (1, "the check took longer than 1 s")
    assert vm.fail("pgrep -x sleep") == ""


def test_a_port_and_a_file_that_come_later(fork: bough.Machine) -> None:
    fork.succeed("systemd-run --quiet sh -c 'sleep 2; touch /run/ready; exec python3 -m http.server 8080'")
    status, attempts = health(fork, file="/run/ready", start=True)
    assert status == 0
    assert attempts.count > 1, "the guest repeated the check"
    assert "there is no /run/ready" in attempts.output
    assert health(fork, port=8080, start=True)[0] == 0
    assert health(fork, port=8081)[0] == 1


def test_an_address(fork: bough.Machine) -> None:
    fork.succeed("systemd-run --quiet --working-directory=/etc python3 -m http.server 8080")
    url = "http://localhost:8080"
    assert health(fork, http=f"{url}/hostname", start=True)[0] == 0
    status, attempts = health(fork, http=f"{url}/nowhere?x=1")
    assert (status, attempts.output) == (1, f"{url}/nowhere?x=1 answers with status 404")
    status, attempts = health(fork, http="http://localhost:8081/")
    assert status == 1
    assert attempts.output.startswith("http://localhost:8081/: ")


def test_a_unit(fork: bough.Machine) -> None:
    assert health(fork, unit="systemd-journald")[0] == 0
    for name, text in (("once", "/bin/true"), ("broken", "sh -c 'echo no database; exit 3'")):
        # systemd forgets the result of a unit that no other unit wants.
        unit = f"[Service]\nType=oneshot\nExecStart={text}\n[Install]\nWantedBy=multi-user.target\n"
        fork.write_file(f"/etc/systemd/system/{name}.service", unit)
    fork.succeed(
        "systemctl enable once broken; systemctl start --no-block once; systemctl start broken || true"
    )
    assert health(fork, unit="once", start=True)[0] == 0
    status, attempts = health(fork, unit="broken", start=True)
    assert status == GAVE_UP
    assert attempts.output.startswith("unit broken.service has failed (exit-code)")
    assert "no database" in attempts.output


def test_a_line_of_the_journal_and_of_a_file(fork: bough.Machine) -> None:
    # The parent logged this line, which had another machine-id.
    assert health(fork, log="Linux version")[0] == 0
    fork.succeed("systemd-run --quiet --unit=talk sh -c 'sleep 2; echo database 7 is ready'")
    assert health(fork, log={"pattern": "[0-9]+ is ready$", "unit": "talk"}, start=True)[0] == 0
    assert health(fork, log={"pattern": "[0-9]+ is ready$", "unit": "ssh"})[0] == 1
    status, attempts = health(fork, log={"pattern": "ready", "file": "/etc/hostname"})
    assert status == 1
    assert attempts.output.startswith("no line matches ready; the last lines are:")


def test_a_pattern_that_grep_does_not_know_ends_the_wait(vm: bough.Machine) -> None:
    status, attempts = health(vm, log={"pattern": "x{99999}", "file": "/etc/hostname"}, start=True)
    assert status == GAVE_UP
    assert "grep -E does not accept the pattern x{99999}" in attempts.output
