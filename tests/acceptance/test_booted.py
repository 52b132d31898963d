"""The end of a guest's boot: bough knows it without a question, and operations wait whose forks would boot
on.
"""

from __future__ import annotations

import bough
from tests.acceptance.conftest import Cli
from tests.waiting import wait_until

#: Delays the end of the guest's boot for longer than a snapshot takes.
SLOW = """[Service]
Type=oneshot
ExecStart=/bin/sleep 15
[Install]
WantedBy=multi-user.target
"""


def test_a_snapshot_waits_for_the_end_of_the_boot(fork: bough.Machine, cli: Cli, gone: list[str]) -> None:
    gone += ["early", "late"]
    assert fork.info().booted is True, "as its parent was"
    fork.write_file("/etc/systemd/system/slow.service", SLOW)
    fork.exec("systemctl", "enable", "slow", check=True)
    fork.restart()
    assert fork.info().booted is False
    assert "still booting" in cli.text("info", fork.name)

    cli("fork", fork.name, "early", "--now")
    assert cli.json("info", "early")["booted"] is False
    told = cli("snapshot", "create", fork.name).stderr.decode()
    assert "waiting until the guest is up" in told
    assert fork.info().booted is True
    assert "still booting" not in cli.text("info", fork.name)
    cli("fork", fork.name, "late")
    assert cli.json("info", "late")["booted"] is True
    state = cli("exec", "late", "--", "systemctl", "is-system-running", check=False).stdout.decode().strip()
    assert state in ("running", "degraded")
    # bough watches the fork of a booting guest until it has booted.
    wait_until(lambda: cli.json("info", "early")["booted"] is True, timeout_s=120)
