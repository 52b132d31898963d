"""First boots with failing steps, host names with a domain, and identities on a disk that cannot
keep them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import bough
from tests.acceptance.conftest import Cli, write

SPEC = """
image = "debian:12"
memory = "512MiB"
hostname = "mail.example.com"
commands = ["echo one >> /root/ran", "id late && echo two >> /root/ran", "echo three >> /root/ran"]

[[users]]
name = "video"

[[users]]
name = "docker"
groups = ["docker"]

[[files]]
path = "/srv/late"
content = "late"
owner = "late"

[[files]]
path = "/srv/after"
content = "after"
"""


@pytest.fixture(scope="module")
def mail(cli: Cli, debian: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield a running machine whose first boot fails in a file and in a command."""
    spec = write(tmp_path_factory.mktemp("spec") / "mail.toml", SPEC)
    cli("create", "--file", spec, "--name", "mail")
    told = cli.error("start", "mail", says="first boot did not finish", hint="bough restart mail")
    assert "file /srv/late: " in told
    assert "command 2 (the 1 after it did not run): " in told
    yield "mail"
    cli("delete", "mail", "--force", check=False)


def in_guest(cli: Cli, name: str, script: str) -> str:
    return cli.text("exec", name, "--", "sh", "-c", script)


def test_steps_that_fail_keep_no_other_from_being_done(cli: Cli, mail: str, hv: bough.Hypervisor) -> None:
    script = "id -gn video; id -gn docker; cat /srv/after; echo; cat /root/ran; ls /etc/ssh/*_key | wc -l"
    assert in_guest(cli, mail, script).split() == ["video", "docker", "after", "one", "2"]
    assert "running (first boot failed)" in cli.text("list")
    first_boot = cli.json("info", mail)["first_boot"]
    assert first_boot["failed"] == ["file /srv/late", "command 2 (the 1 after it did not run)"]
    told = [(event.kind, event.detail) for event in past_events(hv, mail)]
    assert ("first-boot-failed", ", ".join(first_boot["failed"])) in told


def past_events(hv: bough.Hypervisor, name: str) -> list[bough.Event]:
    stream = hv.events(since="2020")
    found = []
    for event in stream:  # without an end, and with the machines of other tests
        if event.name == name:
            found.append(event)
            if event.kind == "first-boot-failed":
                break
    return found


def test_what_failed_is_tried_again_by_a_start(cli: Cli, mail: str) -> None:
    in_guest(cli, mail, "useradd late; echo changed > /srv/after")
    cli("restart", mail)
    assert in_guest(cli, mail, "cat /root/ran").split() == ["one", "two", "three"], "a command ran twice"
    assert in_guest(cli, mail, "stat -c %U /srv/late; cat /srv/after").split() == ["late", "changed"]
    assert "first boot failed" not in cli.text("list")
    assert cli.json("info", mail)["first_boot"]["error"] is None


def test_a_host_name_with_a_domain(cli: Cli, mail: str, gone: list[str]) -> None:
    names = "hostname; hostname -f; hostname -s; hostname -d; getent hosts $(hostname -s) | cut -d' ' -f1"
    whole = ["mail.example.com", "mail.example.com", "mail", "example.com"]
    assert in_guest(cli, mail, names).split()[:4] == whole
    gone += ["web", "again"]
    for parent, name in ((mail, "web"), ("web", "again")):
        cli("fork", parent, name)
        told = in_guest(cli, name, names).split()[:4]
        assert told == [f"{name}.example.com", f"{name}.example.com", name, "example.com"]
    cli.error(
        "create", "debian:12", "--hostname", "Mail.example..com", says="host name", hint="mail.example.com"
    )


IDENTITY = "cat /etc/machine-id /etc/hostname; hostname; ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
READ_ONLY = "echo u > /proc/sysrq-trigger; until grep -q ' / [^ ]* ro' /proc/mounts; do sleep 0.1; done"


def test_a_fork_of_a_guest_with_a_read_only_root(cli: Cli, fork: bough.Machine, gone: list[str]) -> None:
    fork.shell(READ_ONLY)
    before = fork.shell(IDENTITY).stdout.split()
    gone += ["ro", "ro2", "half"]
    cli("fork", fork.name, "ro")
    cli("fork", "ro", "ro2")
    told = {name: in_guest(cli, name, IDENTITY).split() for name in ("ro", "ro2")}
    for name, identity in told.items():
        assert identity[1:3] == [name, name]
        assert cli.json("info", name)["identity_error"] is None
    ids = {before[0], *(identity[0] for identity in told.values())}
    keys = {before[4], *(identity[4] for identity in told.values())}
    assert (len(ids), len(keys)) == (3, 3)
    cli("delete", "ro", "--force")
    # After its next boot the guest finds its parent's identity on its disk.
    cli("restart", "ro2")
    assert in_guest(cli, "ro2", "cat /etc/machine-id /etc/hostname").split() == told["ro2"][:2]


def test_what_a_fork_cannot_take_of_its_identity_is_told(
    cli: Cli, fork: bough.Machine, hv: bough.Hypervisor, gone: list[str]
) -> None:
    fork.shell(f"mv /bin/mount /bin/mount.away; {READ_ONLY}")
    before = fork.shell("cat /etc/machine-id; cat /sys/class/net/e*/address").stdout.split()
    gone.append("half")
    told = cli("fork", fork.name, "half", check=False).stderr.decode()
    assert "machine-id: Read-only file system (/etc/machine-id)" in told
    assert "hint: look inside with `bough shell half`; try again: bough restart half" in told
    assert "MAC address" not in told
    after = in_guest(cli, "half", "cat /etc/machine-id /sys/class/net/e*/address; hostname").split()
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert after[2] == "half"
    assert "running (identity incomplete)" in cli.text("list")
    assert "machine-id" in cli.json("info", "half")["identity_error"]
    stream = (event for event in hv.events(since="2020") if event.kind == "identity-failed")
    assert next(stream).name == "half"
