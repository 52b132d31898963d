"""A command in a running guest."""

from __future__ import annotations

from bench.harness import Bench
from bench.machine import a_guest, run_bough
from bench.openssh import a_kept_connection

ABOUT = "`true` in a running guest, against ssh into the same guest with a connection that is kept"


def run(bench: Bench) -> None:
    with a_guest("bench-exec") as (_, machine), a_kept_connection("bench-exec") as ssh:
        ssh_true = "ssh with ControlMaster, true"
        bench.in_turns(
            "ping from Python",
            ours=machine.ping,
            peer=None,
            what=("machine.ping()", ""),
            rounds=50,
            warm_ups=5,
        )
        bench.in_turns(
            "exec from Python",
            ours=lambda: machine.exec("true"),
            peer=lambda: ssh.run("true"),
            what=("machine.exec('true')", ssh_true),
            rounds=50,
            warm_ups=5,
        )
        bench.in_turns(
            "exec from the shell",
            ours=lambda: run_bough("exec", "bench-exec", "--", "true"),
            peer=lambda: ssh.run("true"),
            what=("bough exec bench-exec -- true", ssh_true),
            rounds=30,
            warm_ups=3,
        )
