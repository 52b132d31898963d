"""A machine's life from the shell: create, start, stop, keep, rename, delete."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest

import bough
from bough.paths import Home
from tests.acceptance.conftest import Cli
from tests.waiting import wait_until


def info(cli: Cli, name: str) -> dict[str, object]:
    found: dict[str, object] = cli.json("info", name)
    return found


def told(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return standard error without the progress."""
    lines = done.stderr.decode().splitlines()
    return "\n".join(line for line in lines if not line.endswith("..."))


def test_what_is_on_the_disk_stays(cli: Cli, booted: bough.Snapshot, gone: list[str]) -> None:
    """The machine is a fork: its parent's disk and its own identity stay, too."""
    gone.append("keeper")
    booted.fork("keeper")
    first_boot = cli.text("exec", "keeper", "--", "cat", "/proc/sys/kernel/random/boot_id")
    own = "cat /etc/machine-id; hostname; cat /root/.ssh/authorized_keys"
    before = cli.text("exec", "keeper", "--", "sh", "-c", own).splitlines()
    assert before[1] == "keeper"
    assert before[2].startswith("ssh-ed25519 ")
    cli("exec", "keeper", "--", "sh", "-c", "echo kept > /root/file && sync")
    cli("restart", "keeper", "--until", "booted", "--deadline", "90s", "--timeout", "4m", timeout_s=600)
    is_up = ("exec", "keeper", "--", "systemctl", "is-system-running")
    assert cli.text(*is_up, check=False) in ("running", "degraded")
    assert cli.text("exec", "keeper", "--", "cat", "/root/file") == "kept"
    assert cli.text("exec", "keeper", "--", "sh", "-c", own).splitlines() == before
    assert cli.text("exec", "keeper", "--", "cat", "/proc/sys/kernel/random/boot_id") != first_boot
    cli("stop", "keeper")
    assert info(cli, "keeper")["state"] == "stopped"
    assert info(cli, "keeper")["failure"] is None
    cli("start", "keeper", "--until", "booted")
    assert cli.text(*is_up, check=False) in ("running", "degraded")
    assert cli.text("exec", "keeper", "--", "cat", "/root/file") == "kept"


def test_a_guest_that_will_not_stop_is_powered_off_at_the_deadline(
    cli: Cli, booted: bough.Snapshot, gone: list[str]
) -> None:
    gone.append("stubborn")
    booted.fork("stubborn")
    # A unit that does not end delays systemd's shutdown for a minute and a half.
    script = "systemd-run --property=KillMode=none --property=ExecStop='/bin/sleep 300' sleep infinity"
    cli("exec", "stubborn", "--", "sh", "-c", script)
    done = cli("stop", "stubborn", "--deadline", "3s")
    assert b"3 s" in done.stderr
    assert info(cli, "stubborn")["state"] == "stopped"


def test_pause_and_resume(cli: Cli, box: str) -> None:
    before = cli.text("exec", box, "--", "cat", "/proc/sys/kernel/random/boot_id")
    cli("pause", box)
    try:
        assert info(cli, box)["state"] == "paused"
        assert told(cli("pause", box)) == f"{box} is paused already"
        assert info(cli, box)["state"] == "paused"
        cli.error("start", box, says="paused", hint=f"bough resume {box}")
        cli.error("exec", box, "--", "true", says="paused", hint=f"bough resume {box}")
    finally:
        cli("resume", box)
    assert cli.text("exec", box, "--", "cat", "/proc/sys/kernel/random/boot_id") == before
    for command in ("resume", "start"):
        assert told(cli(command, box)) == f"{box} is running already"


def test_stopping_what_does_not_run(cli: Cli, debian: str, gone: list[str]) -> None:
    gone.append("at-rest")
    cli("create", debian, "--name", "at-rest")
    for words in (("stop", "at-rest"), ("stop", "at-rest", "--force")):
        assert told(cli(*words)) == "at-rest is stopped already"
    assert info(cli, "at-rest")["state"] == "stopped"
    for command in ("pause", "resume", "suspend"):
        cli.error(command, "at-rest", says="is stopped", hint="bough start at-rest")


def test_a_machine_that_shuts_down_is_not_up(cli: Cli, booted: bough.Snapshot, gone: list[str]) -> None:
    """The guest reboots, then powers off, both from inside."""
    gone.append("anew")
    fork = booted.fork("anew")
    fork.wait("booted")  # a fork on a busy host still starts services
    before = fork.info().boot_id
    cli.error("wait", "anew", "--until", "rebooted", "--timeout", "4s", says="has not rebooted")
    cli("exec", "anew", "--", "systemctl", "reboot", check=False)
    cli("wait", "anew", "--until", "booted")
    assert fork.info().boot_id != before
    assert fork.exec("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")
    cli("wait", "anew", "--until", "rebooted", "--boot-id", str(before))
    # A machine that is powering off never comes up.
    cli("exec", "anew", "--", "systemctl", "poweroff", check=False)
    cli.error("wait", "anew", "--until", "booted", says="the guest powered off")
    cli("wait", "anew", "--until", "stopped", "--timeout", "60s")
    assert info(cli, "anew")["state"] == "stopped"
    assert info(cli, "anew")["failure"] is None


def test_rename(cli: Cli, debian: str, gone: list[str]) -> None:
    gone += ["before", "after"]
    cli("create", debian, "--name", "before")
    machine_id = info(cli, "before")["id"]
    cli("rename", "before", "after")
    assert info(cli, "after")["id"] == machine_id
    cli.error("info", "before", says="before")
    cli.error("rename", "after", "box box", says="name")


def test_the_store_of_one_that_has_never_run_is_as_it_should_be(
    cli: Cli, debian: str, gone: list[str]
) -> None:
    gone.append("never")
    cli("create", debian, "--name", "never")
    cli("doctor", "--store")


def test_delete_refuses_what_runs_and_takes_what_does_not(
    cli: Cli, box: str, bough_home: Home, debian: str
) -> None:
    cli.error("delete", box, says="running", hint="--force")
    assert cli.text("exec", box, "--", "echo", "alive") == "alive"
    cli("create", debian, "--name", "short-lived")
    root = bough_home.machines / str(info(cli, "short-lived")["id"])
    assert root.is_dir()
    cli("delete", "short-lived")
    assert not root.exists()
    assert "short-lived" not in cli.names()


def test_a_machine_is_found_by_name_id_and_beginning_of_id(cli: Cli, box: str) -> None:
    machine_id = str(info(cli, box)["id"])
    assert info(cli, machine_id)["name"] == box
    assert info(cli, machine_id[:6])["name"] == box


def test_list_and_info_for_people_and_programs(cli: Cli, box: str) -> None:
    listed = cli.text("list")
    assert box in listed
    assert "running" in listed
    assert "\x1b" not in listed, "colour in a pipe"
    told = cli.text("info", box)
    assert "debian:12" in told
    assert "\x1b" not in told
    assert {"id", "name", "state", "image", "vcpus", "memory_bytes", "jail", "accelerator"} <= info(
        cli, box
    ).keys()


def test_the_plan_is_shown_as_data_and_as_a_command_line(cli: Cli, box: str) -> None:
    plan = cli.json("info", box, "--plan")
    assert plan["plan"]["machine_type"].startswith(("pc-q35-", "virt-")), plan["plan"]["machine_type"]
    assert plan["argv"][0].endswith(("x86_64", "aarch64"))
    assert "-nodefaults" in plan["argv"]
    assert "qemu-system" in cli.text("info", box, "--plan")


def test_the_console_log(cli: Cli, box: str) -> None:
    cli("exec", box, "--", "sh", "-c", "echo said on the console > /dev/console")
    wait_until(lambda: "said on the console" in cli.text("logs", box))


def test_events_while_things_happen(cli: Cli, debian: str, gone: list[str]) -> None:
    gone += ["eventful", "herald"]
    with cli.popen("events", "--json", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        # Events come from the moment the command listens, which its first event shows.
        while not select.select([process.stdout], [], [], 0)[0]:
            cli("create", debian, "--name", "herald")
            cli("delete", "herald")
        cli("create", debian, "--name", "eventful")
        cli("delete", "eventful")
        kinds = []
        while "deleted" not in kinds:
            event = json.loads(process.stdout.readline())
            kinds += [event["kind"]] if event.get("name") == "eventful" else []
        process.send_signal(signal.SIGINT)
    assert kinds[0] == "created"


def has_ended(pid: int) -> bool:
    """Return whether the process has ended, also before its parent has reaped it: the service outlives the
    client that started it.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def service_pid(bough_home: Home) -> int:
    return int(bough_home.lock.read_text())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_machines_outlive_the_service(cli: Cli, box: str, bough_home: Home, how: signal.Signals) -> None:
    before = info(cli, box)
    boot = cli.text("exec", box, "--", "cat", "/proc/sys/kernel/random/boot_id")
    old = service_pid(bough_home)
    os.kill(old, how)
    wait_until(lambda: has_ended(old))
    after = info(cli, box)
    assert service_pid(bough_home) != old
    assert (after["pid"], after["state"], after["started"]) == (before["pid"], "running", before["started"])
    assert cli.text("exec", box, "--", "cat", "/proc/sys/kernel/random/boot_id") == boot


def test_many_first_commands_start_one_service(cli: Cli, box: str, bough_home: Home) -> None:
    old = service_pid(bough_home)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: has_ended(old))
    processes = [cli.popen("list", "--json", stdout=subprocess.PIPE) for _ in range(8)]
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert any(machine["name"] == box for machine in json.loads(out))


def test_a_killed_qemu_is_a_failure_with_its_cause(cli: Cli, booted: bough.Snapshot, gone: list[str]) -> None:
    gone.append("victim")
    booted.fork("victim")
    cli("exec", "victim", "--", "sh", "-c", "echo the last words > /dev/console")
    wait_until(lambda: "the last words" in cli.text("logs", "victim"), timeout_s=60)
    pid = info(cli, "victim")["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: info(cli, "victim")["state"] == "failed")
    failure = info(cli, "victim")["failure"]
    assert isinstance(failure, dict)
    assert "KILL" in str(failure["signal"]) or failure["exit_status"] == 137, failure
    assert "the last words" in failure["console"]
    # The machine is not lost: it starts again.
    cli("start", "victim")
    assert cli.text("exec", "victim", "--", "echo", "back") == "back"
