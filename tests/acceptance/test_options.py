"""Options that no other test uses: each does what its help says, on a real machine.

tests/unit/test_every_command.py names options that no test uses.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough.paths import Home
from tests.acceptance.conftest import Cli, write
from tests.conftest import MEMORY
from tests.images_samples import convert, describe, make_disk, make_ova
from tests.linux_disks import MIB, Linux, make_file_system, run
from tests.publisher import serve_directory
from tests.waiting import wait_until

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me"


@pytest.fixture
def spare_name(cli: Cli, booted: bough.Snapshot, gone: list[str]) -> str:
    """Return the name of a running machine for one test."""
    gone.append("optional")
    cli("fork", booted.id, "optional")
    return "optional"


# -- machines -------------------------------------------------------------------------------------------


def test_run_with_options(cli: Cli, debian: str, gone: list[str]) -> None:
    before = set(cli.names())
    command = ["run", "--timeout", "4m", "--keep", "-t", "-i", "--as-user", "nobody"]
    told = cli(*command, "-m", MEMORY, debian, "--", "sh", "-c", "id -un; tty; cat", stdin=b"typed\n\x04")
    (made,) = set(cli.names()) - before
    gone.append(made)
    assert b"nobody\r\n/dev/pts/" in told.stdout
    assert b"typed" in told.stdout
    assert "uptime" not in cli.json("info", made) or cli.json("info", made)["state"] == "running"


def test_create_with_options(cli: Cli, debian: str, box: str, gone: list[str], tmp_path: Path) -> None:
    hardware = cli.json("info", box)["hardware"]
    greeting = write(tmp_path / "greeting", "hello\n")
    gone.append("full")
    made = json.loads(
        cli(
            "create", debian, "--name", "full", "--memory", MEMORY, "--start", "--json",
            "--arch", hardware["arch"], "--cpu", hardware["cpu_model"].partition(",")[0],
            "--machine-type", hardware["machine_type"], "--clock", "+2h", "--hostname", "fuller",
            "--restart", "on-failure", "--accelerator", "auto",
            "--extra-disk", "64MiB", "--ssh-key", KEY, "--env", "WORD=given",
            "--copy", f"{greeting}:/srv/word",
            "--command", "tr a-z A-Z < /srv/word > /srv/WORD", "--limit", "console=2MiB/s",
            "--port", "0:22", "--no-display", "--autostart", "--no-ssh-keys", "--force", "--user", "ada",
            timeout_s=600,
        ).stdout
    )  # fmt: skip
    assert made["name"] == "full"
    script = "hostname; cat /srv/WORD; echo $WORD; lsblk -bdno SIZE /dev/vdb; cat /root/.ssh/authorized_keys"
    told = cli.text("exec", "full", "--", "sh", "-c", script).splitlines()
    assert told == ["fuller", "HELLO", "given", str(64 << 20), KEY]
    ahead = int(cli.text("exec", "full", "--", "date", "+%s")) - time.time()
    assert 7000 < ahead < 7300, "the clock is not two hours ahead"
    told_spec = cli.json("info", "full")["spec"]
    assert (told_spec["restart"], told_spec["autostart"]) == ("on-failure", True)
    assert [port["guest_port"] for port in cli.json("port", "list", "full")] == [22]


def test_create_that_requires_the_whole_jail(cli: Cli, debian: str, gone: list[str]) -> None:
    """The machine is created, or the error names the missing parts of this host's jail."""
    gone.append("jailed")
    done = cli("create", debian, "--name", "jailed", "--require-jail", check=False)
    made = done.returncode == 0 and cli.json("info", "jailed")["spec"]["require_jail"]
    assert made or b"jail" in done.stderr


def test_create_with_a_floppy(
    cli: Cli, debian: str, gone: list[str], images: list[str], tmp_path: Path
) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(510) + b"\x55\xaa" + bytes(1440 * 1024 - 512))
    gone.append("floppy")
    cli("create", debian, "--name", "floppy", "--floppy", tmp_path / "disk.img")
    images.append(cli.json("info", "floppy")["spec"]["floppy"])
    assert images[0]


def test_resume_with_options(cli: Cli, spare_name: str) -> None:
    cli("pause", spare_name)
    cli("resume", spare_name, "--no-wait")
    cli("pause", spare_name)
    cli("resume", spare_name, "--timeout", "3m")
    assert cli.text("exec", spare_name, "--", "echo", "here") == "here"


# -- snapshots, forks, bundles --------------------------------------------------------------------------


def test_snapshots_with_options(cli: Cli, spare_name: str) -> None:
    made = cli.json("snapshot", "create", spare_name, "--disks-only", "--name", "only-disks")
    try:
        assert [s["id"] for s in cli.json("snapshot", "list", spare_name)] == [made["id"]]
        assert made["id"] in cli.text("snapshot", "info", "only-disks")
        assert json.loads(cli.text("snapshot", "info", "only-disks"))["memory"] is None
        cli("snapshot", "verify", "only-disks")
    finally:
        cli("snapshot", "delete", "only-disks")


def test_restore(cli: Cli, spare_name: str) -> None:
    cli("snapshot", "create", spare_name, "--now", "--name", "before")
    cli("exec", spare_name, "--", "touch", "/dev/shm/after")
    cli("restore", spare_name, "before")
    assert cli("exec", spare_name, "--", "ls", "/dev/shm/after", check=False).returncode != 0
    cli("exec", spare_name, "--", "touch", "/dev/shm/again")
    cli("restore", "--keep", spare_name, "before")
    assert cli("exec", spare_name, "--", "ls", "/dev/shm/again", check=False).returncode != 0
    kept = [s["id"] for s in cli.json("snapshot", "list", spare_name)]
    assert len(kept) == 2
    cli("delete", spare_name, "--force")
    for snapshot in reversed(kept):
        cli("snapshot", "delete", snapshot)


def test_fork_with_options(cli: Cli, box: str, gone: list[str]) -> None:
    gone += ["twin", "cold"]
    made = cli.json("fork", box, "twin", "--identity", "keep", "--timeout", "3m")
    assert [one["machine"]["name"] for one in made] == ["twin"]
    assert cli.text("exec", "twin", "--", "hostname") == box
    cli("fork", box, "cold", "--cold")
    assert cli.json("info", "cold")["state"] == "stopped"


def test_bundles_with_options(cli: Cli, spare_name: str, gone: list[str], tmp_path: Path) -> None:
    cli("exec", spare_name, "--", "touch", "/dev/shm/word")
    cli("export", "--without-image", spare_name, tmp_path / "whole.bough")
    cli("export", "--disks-only", "--without-image", spare_name, tmp_path / "disks.bough")
    gone += ["arrived", "disks"]
    made = cli.json("import", tmp_path / "whole.bough", "--name", "arrived", "--identity", "new",
                    "--accelerator", "auto", "--timeout", "3m")  # fmt: skip
    assert made["name"] == "arrived"
    assert cli.text("exec", "arrived", "--", "sh", "-c", "hostname; ls /dev/shm/word").split()[0] == "arrived"
    cli("import", "--cold", "--force", tmp_path / "disks.bough", "--name", "disks")
    assert cli.json("info", "disks")["state"] == "stopped"


# -- looking at a machine, reaching it --------------------------------------------------------------------


def test_logs_with_options(cli: Cli, spare_name: str) -> None:
    follow = cli.popen("logs", "--follow", spare_name, stdout=subprocess.PIPE)
    with follow:
        time.sleep(0.5)  # the command has started, or has printed earlier output
        say = "for i in 1 2 3 4 5 6; do printf '\\033[1mloud-%d\\n' $i > /dev/console; sleep 0.5; done"
        cli("exec", spare_name, "--", "sh", "-c", say)
        assert follow.stdout is not None
        assert any(b"loud-" in line for line in follow.stdout)
        follow.kill()
    wait_until(lambda: "loud-6" in cli.text("logs", spare_name), what="the console log has it")
    assert b"\x1b[1m" in cli("logs", "--raw", spare_name).stdout
    assert b"\x1b" not in cli("logs", spare_name).stdout
    assert len(cli("logs", "--tail", "9", spare_name).stdout) <= 10
    assert cli("logs", "--qemu", spare_name).returncode == 0


def test_events_since_a_time(cli: Cli, spare_name: str) -> None:
    with cli.popen("events", "--since", "2020-01-01T00:00:00Z", "--json", stdout=subprocess.PIPE) as events:
        assert events.stdout is not None
        assert any(spare_name in line.decode() for line in events.stdout)
        events.kill()


def test_exec_and_shell_with_options(cli: Cli, box: str) -> None:
    assert cli.text("exec", "-i", box, "--", "cat", stdin=b"typed") == "typed"
    told = cli.text("shell", box, "--as-user", "nobody", check=False, stdin=b"id -un; exit\n")
    assert "nobody" in told or "not available" in told, "nobody's shell is nologin"
    assert cli.text("shell", box, stdin=b"id -un; exit 0\n") == "root"


def test_the_proxy_by_itself(cli: Cli, box: str, bough_home: Home) -> None:
    words = ["proxy", box, "22", "--wait", "10s", "--authorize", "root"]
    with cli.popen(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"SSH-"
        process.kill()
    keys = cli.text("exec", box, "--", "cat", "/root/.ssh/authorized_keys")
    assert bough_home.ssh_public_key.read_text().strip() in keys


def test_mounts_with_options(cli: Cli, spare_name: str, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    write(shared / "word", "shared\n")
    cli("mount", spare_name, f"{shared}:/srv/x", "--owner", "nobody", "--cache", "0s")
    assert cli.text("exec", spare_name, "--", "stat", "-c", "%U", "/srv/x/word") == "nobody"
    assert [mount["target"] for mount in cli.json("mount", spare_name)] == ["/srv/x"]
    cli("umount", spare_name, "/srv/x")
    cli("mount", spare_name, f"{shared}:/srv/x")
    user = cli.popen("exec", spare_name, "--", "sh", "-c", "cd /srv/x; exec sleep 60")
    try:
        wait = "until ls -l /proc/*/cwd 2>/dev/null | grep -q /srv/x; do sleep 0.1; done"
        cli("exec", "--timeout", "60s", spare_name, "--", "sh", "-c", wait)
        cli("umount", "--force", spare_name, "/srv/x")
        assert cli.json("mount", spare_name) == []
    finally:
        user.kill()
        user.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_cp_with_options(cli: Cli, box: str, tmp_path: Path) -> None:
    write(tmp_path / "owned", "mine\n")
    os.chown(tmp_path / "owned", 12, 34)
    cli("cp", "--owner", tmp_path / "owned", f"{box}:/root/owned")
    assert cli.text("exec", box, "--", "stat", "-c", "%u:%g", "/root/owned") == "12:34"


# -- images ---------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "disk.raw")


def test_an_import_of_one_of_two_linuxes(cli: Cli, images: list[str], tmp_path: Path) -> None:
    two = tmp_path / "two.raw"
    with two.open("wb") as stream:
        stream.truncate(52 * MIB)
    script = "label: gpt\nstart=2048, size=49152, type=linux\nstart=51200, size=49152, type=linux\n"
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", two, text=script)
    make_file_system(two, Linux().write(tmp_path / "one"), MIB)
    make_file_system(two, Linux(release="ID=void\n").write(tmp_path / "other"), 25 * MIB)
    images.append("of-two")
    assert cli.json("image", "import", two, "--name", "of-two", "--root", "2")["os"] == "void"


def test_image_import_with_options(cli: Cli, images: list[str], disk: Path, tmp_path: Path) -> None:
    digits = hashlib.sha256(disk.read_bytes()).hexdigest()
    images += ["plain", "second"]
    made = cli.json("image", "import", disk, "--name", "plain", "--sha256", digits, "--arch", "x86_64",
                    "--os", "Plan 9", "--max-size", "1GiB", "--cloud-init", "--no-agent")  # fmt: skip
    assert (made["arch"], made["cloud_init"]) == ("x86_64", True)
    assert "Plan 9" in json.dumps(cli.json("image", "list"))
    disks = {name: convert(disk, "vmdk", tmp_path / name).read_bytes() for name in ("a.vmdk", "b.vmdk")}
    files = {"machine.ovf": describe(*disks), **disks}
    cli(
        "image",
        "import",
        make_ova(tmp_path / "two.ova", files),
        "--disk",
        "b.vmdk",
        "--name",
        "second",
        "--agent",
    )


def test_a_published_image_with_options(cli: Cli, images: list[str], disk: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    qcow2 = convert(disk, "qcow2", site / "disk.qcow2")
    (site / "SUMS").write_text(f"{hashlib.sha256(qcow2.read_bytes()).hexdigest()}  disk.qcow2\n")
    with serve_directory(site) as url:
        write(
            site / "catalogue.toml",
            f'format = 1\nserial = 20200101\n[[images]]\nnames = ["tiny:1"]\ntitle = "tiny"\nos = "debian"\n'
            f'version = "1"\n[[images.files]]\narch = "x86_64"\naddress = "{url}/disk.qcow2"\n'
            f'checksums = "{url}/SUMS"\n',
        )
        try:
            cli("image", "catalogue", "update", "--from", f"{url}/catalogue.toml", "--force")
            assert cli.json("image", "catalogue", "update", "--force")
            found = cli.json("image", "search", "tiny", "--arch", "x86_64")
            assert "tiny:1" in json.dumps(found)
            images.append("tiny")
            pulled = cli.json(
                "image", "pull", "tiny:1", "--arch", "x86_64", "--no-signature", "--name", "tiny"
            )
            assert pulled["arch"] == "x86_64"
        finally:
            assert cli.json("image", "catalogue", "reset")


def test_a_lock_and_a_prune(cli: Cli, debian: str, tmp_path: Path) -> None:
    cli("image", "lock", debian, tmp_path / "debian.lock")
    assert "systemd" in (tmp_path / "debian.lock").read_text()
    assert "systemd" in json.dumps(cli.json("image", "lock", debian))
    assert isinstance(cli.json("image", "prune"), list | dict)


# -- the host and the service -----------------------------------------------------------------------------


def test_doctor_with_options(cli: Cli) -> None:
    assert cli.json("doctor", "--arch", os.uname().machine, check=False)["checks"]
    cli("doctor", "--store", "--repair")


def test_the_version_for_programs(cli: Cli) -> None:
    assert cli.json("version")["version"] == bough.__version__


@pytest.fixture
def other_home(tmp_path: Path) -> Iterator[Cli]:
    other = Cli({"BOUGH_HOME": str(tmp_path / "home")})
    yield other
    other("serve", "--stop", check=False)


def test_serve_on_a_tcp_port(other_home: Cli, tmp_path: Path) -> None:
    with other_home.popen("serve", "--listen", "127.0.0.1:0", stderr=subprocess.PIPE) as service:
        token = tmp_path / "home" / "token"
        wait_until(token.exists, what="the token is there")
        other_home("list")
        service.terminate()
        service.wait(30)
    assert token.stat().st_mode & 0o777 == 0o600
