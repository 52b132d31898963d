"""Container images as machines, by Docker's rules: the command, the Python API, projects.

All tests share one small image in an OCI layout, and the booted snapshot of its first run.
"""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bough
from bough.errors import MachineFailed
from tests.acceptance.conftest import Cli, write
from tests.container_layers import directory, file, link, pack, write_layout
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")

MEMORY = "128MiB"
#: The program: a web server that ends with 5 at its stop signal; other words are a command.
ENTRY = """\
#!/bin/sh
case "$1" in
  serve) ;;
  fail) echo "cannot find the database"; exit 3 ;;
  done) echo "did the job"; exit 0 ;;
  *) exec "$@" ;;
esac
echo "serving as $(id -un) in $(pwd) with $LEVEL"
mkdir -p /tmp/www && echo "hello from $HOSTNAME" > /tmp/www/index.html
trap 'echo "stopping"; kill $server; exit 5' QUIT
httpd -f -p 8080 -h /tmp/www & server=$!
while :; do wait $server; sleep 1; done
"""
APPLETS = (
    "sh",
    "cat",
    "echo",
    "env",
    "grep",
    "httpd",
    "id",
    "kill",
    "ls",
    "mkdir",
    "ps",
    "pwd",
    "sleep",
    "true",
    "wget",
)
CONFIG = {
    "Entrypoint": ["/entry"],
    "Cmd": ["serve"],
    "Env": ["PATH=/opt/bin:/bin", "LEVEL=image", "QUOTED=a b"],
    "User": "web",
    "WorkingDir": "/srv/app",
    "ExposedPorts": {"8080/tcp": {}, "53/udp": {}},
    "StopSignal": "SIGQUIT",
    "Volumes": {"/data": {}},
    "Labels": {"who": "tests"},
    "Healthcheck": {"Test": ["CMD", "grep", "-q", "hello", "/tmp/www/index.html"], "Interval": 1000000000},
}
PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001:Web:/home/web:/bin/sh\n"
GROUP = "root:x:0:\nweb:x:1001:\nwheel:x:10:web\n"


def make_image(place: Path, busybox: bytes, **config: Any) -> str:
    """Write an OCI layout, and return its name."""
    items = [
        *(directory(name) for name in ("bin", "etc", "opt", "opt/bin", "root", "home", "srv")),
        directory("home/web", uid=1000, gid=1001),
        directory("tmp", mode=0o1777),
        file("bin/busybox", busybox, mode=0o755),
        *(link(f"bin/{name}", "busybox") for name in APPLETS),
        file("entry", ENTRY.encode(), mode=0o755),
        file("data.txt", b"not a program\n"),
        file("etc/passwd", PASSWD.encode()),
        file("etc/group", GROUP.encode()),
    ]
    write_layout(place, [pack(items)], program={**CONFIG, **config})
    return f"oci:{place}"


@pytest.fixture(scope="module")
def busybox(agent_disk: Path) -> bytes:
    words = ["unsquashfs", "-cat", agent_disk, "bin/busybox"]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout


@pytest.fixture(scope="module")
def image(
    cli: Cli, busybox: bytes, boot_kit: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Yield the name of the image, which is in the store and has been booted once."""
    name = make_image(tmp_path_factory.mktemp("image") / "layout", busybox)
    cli("run", "-m", MEMORY, name, "true", timeout_s=600)
    yield name
    cli("image", "delete", name, check=False)


@pytest.fixture(scope="module")
def web(cli: Cli, image: str) -> Iterator[str]:
    """Yield a machine with the program running, which all tests share and leave unchanged."""
    cli("run", "-d", "--name", "site", "-m", MEMORY, "-P", image)
    yield "site"
    cli("delete", "site", "--force", check=False)


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
        return str(answer.read().decode().strip())


# -- run ------------------------------------------------------------------------------------------------


def test_a_run_executes_the_entrypoint_with_its_words(cli: Cli, image: str) -> None:
    script = 'echo "$(id -u):$(id -g):$(id -G) $PWD $LEVEL $QUOTED $HOME"; exit 7'
    done = cli("run", "-m", MEMORY, image, "sh", "-c", script, check=False)
    assert (done.returncode, done.stdout.decode()) == (7, "1000:1001:1001 10 /srv/app image a b /home/web\n")


def test_a_run_without_words_runs_cmd(cli: Cli, image: str) -> None:
    done = cli("run", "-m", MEMORY, "--entrypoint", "/bin/echo", image, check=False)
    assert (done.returncode, done.stdout) == (0, b"\n")  # another entrypoint drops CMD
    file = cli("run", "--rm", "--name", "shown", "-m", MEMORY, image, "fail", check=False)
    assert (file.returncode, file.stdout) == (3, b"cannot find the database\n")
    assert "shown" not in cli.names()


def test_the_options_of_docker_run(cli: Cli, image: str, tmp_path: Path) -> None:
    variables = write(tmp_path / "env", "# for the test\nFROM_FILE=1\nLEVEL=file\n")
    shared = tmp_path / "shared"
    shared.mkdir()
    script = (
        'id -u; id -g; pwd; echo "$LEVEL $FROM_FILE $GIVEN"; ls /mnt/shared; cat /proc/sys/kernel/hostname'
    )
    write(shared / "note", "hello")
    out = cli.text(
        "run", "-m", MEMORY, "-e", "LEVEL=given", "--env-file", variables, "-e", "GIVEN", "-w", "/made/here",
        "-u", "12345", "-v", f"{shared}:/mnt/shared:ro", "--cpus", "1.5", "--hostname", "box", "--entrypoint",
        "/bin/sh", image, "--", "-c", script,
        stdin=None,
    )  # fmt: skip
    assert out.splitlines() == ["12345", "0", "/made/here", "given 1 ", "note", "box"]
    cli.error(
        "run", "-v", "data:/data", image, "true", says="no named volumes", hint="the machine's disk keeps"
    )


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--entrypoint", "/none"], 127, "/none"),
        (["--entrypoint", "none"], 127, "none"),
        (["--entrypoint", "/data.txt"], 126, "/data.txt"),
        (["-u", "nobody"], 126, "no user 'nobody'"),
        (["-u", "web:none"], 126, "no group 'none'"),
    ],
)
def test_a_command_that_does_not_start(
    cli: Cli, image: str, words: list[str], status: int, says: str
) -> None:
    done = cli("run", "-m", MEMORY, *words, image, "x", check=False)
    assert done.returncode == status
    assert says in done.stderr.decode()


# -- exec -----------------------------------------------------------------------------------------------


def test_exec_follows_the_image_and_the_caller(cli: Cli, web: str) -> None:
    script = 'echo "$(id -un) $PWD $LEVEL"'
    assert cli.text("exec", web, "--", "sh", "-c", script) == "web /srv/app image"
    asked = cli.text("exec", "-u", "root", "-w", "/etc", "-e", "LEVEL=mine", web, "--", "sh", "-c", script)
    assert asked == "root /etc mine"
    assert cli.text("exec", "-u", "web:wheel", web, "--", "id", "-G") == "10"
    done = cli("exec", web, "--", "/data.txt", check=False)
    assert done.returncode == 126


def test_a_shell_and_copies_are_roots(cli: Cli, web: str, tmp_path: Path) -> None:
    out = cli.text("shell", web, stdin=b'echo "$(id -un) $PWD [$LEVEL]"\n')
    assert out.splitlines()[-1] == "root /root []"
    cli("cp", write(tmp_path / "note", "x"), f"{web}:/root/note")
    assert cli.text("exec", "-u", "root", web, "--", "ls", "/root") == "note"


# -- the program of a machine -----------------------------------------------------------------------------


def test_the_program_runs_as_the_image_says(cli: Cli, web: str) -> None:
    info = cli.json("info", web)
    assert info["program"]["argv"] == ["/entry", "serve"]
    assert info["program"]["state"] == "runs"
    assert info["container"]["labels"] == {"who": "tests"}
    assert info["container"]["volumes"] == ["/data"]
    assert [port["guest_port"] for port in info["ports"]] == [8080]
    assert fetch(info["ports"][0]["host_port"]) == f"hello from {web}"
    assert "serving as web in /srv/app with image" in cli.text("logs", web)
    assert "program:" in cli.text("info", web)


def test_a_fork_continues_the_program(cli: Cli, web: str, gone: list[str]) -> None:
    gone.append("twin")
    before = cli.json("info", web)["program"]
    cli("fork", web, "twin")
    twin = cli.json("info", "twin")
    assert (twin["program"]["pid"], twin["program"]["state"]) == (before["pid"], "runs")
    assert fetch(twin["ports"][0]["host_port"]) == f"hello from {web}"  # its memory is the parent's
    assert cli.text("exec", "twin", "--", "sh", "-c", "ps | grep -c '[h]ttpd -f'") == "1"
    cli("stop", "twin")
    ended = cli.json("info", "twin")
    assert (ended["state"], ended["program"]["code"]) == ("stopped", 5)  # the trap of the stop signal
    assert cli.json("info", web)["program"]["state"] == "runs"


@pytest.mark.long
def test_a_machine_boots_stops_and_changes_its_program(cli: Cli, image: str, gone: list[str]) -> None:
    gone.append("slow")
    cli("create", image, "--name", "slow", "-m", MEMORY, "--init", "bough", "sleep", "1000")
    cli("start", "slow", timeout_s=600)
    assert cli.json("info", "slow")["program"]["argv"] == ["/entry", "sleep", "1000"]
    assert cli.text("exec", "slow", "--", "id", "-un") == "web"
    cli("stop", "slow")
    cli(
        "set",
        "slow",
        "--entrypoint",
        "/bin/true",
        "--as-user",
        "root",
        "--workdir",
        "/",
        "--init",
        "auto",
        "-P",
    )
    assert [port["guest_port"] for port in cli.json("info", "slow")["ports"]] == [8080]
    cli("set", "slow", "--no-publish-all")
    told = cli.error("start", "slow", says="its program ended with exit status 0", hint="sleep infinity")
    assert "slow" in told
    assert "stopped (exit status 0)" in cli.text("list")


def test_a_program_that_fails(cli: Cli, image: str, gone: list[str]) -> None:
    gone.append("broken")
    done = cli("run", "-d", "--name", "broken", "-m", MEMORY, image, "fail", check=False)
    told = done.stderr.decode()
    assert done.returncode == 1
    assert "its program ended with exit status 3" in told
    assert "cannot find the database" in told
    info = cli.json("info", "broken")
    assert (info["state"], info["failure"]["cause"]) == ("failed", "its program ended with exit status 3")
    gone.append("missing")
    done = cli("run", "-d", "--name", "missing", "-m", MEMORY, "--entrypoint", "/none", image, check=False)
    assert "could not be started: /none" in done.stderr.decode()
    wait_until(lambda: cli.json("info", "missing")["state"] == "failed")
    assert cli.json("info", "missing")["program"]["code"] == 127


def test_a_restart_of_the_service_and_of_the_program(cli: Cli, image: str, gone: list[str]) -> None:
    gone.append("again")
    script = "echo started; sleep 6; exit 1"
    cli("run", "-d", "--name", "again", "--restart", "on-failure", "-m", MEMORY, image, "sh", "-c", script)
    first = cli.json("info", "again")["program"]
    cli("serve", "--stop")
    assert cli.json("info", "again")["program"]["pid"] == first["pid"]
    wait_until(lambda: cli.json("info", "again")["restarts"]["count"] >= 1, timeout_s=60)
    assert "exit status 1" in cli.json("info", "again")["restarts"]["cause"]
    cli("stop", "again", "--force", check=False)


def test_images_that_name_no_program(
    cli: Cli, busybox: bytes, image: str, images: list[str], tmp_path: Path
) -> None:
    bare = make_image(tmp_path / "bare", busybox, Entrypoint=None, Cmd=None)
    cli.error("create", bare, says="no entrypoint and no cmd", hint="--entrypoint")
    cli("image", "delete", bare, check=False)
    cli.error("run", "-d", "--rm", image, says="--rm deletes")
    cli.error("run", "-d", "-t", image, says="on this terminal")
    images.append("plain")
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as stream:
        stream.truncate(1 << 20)
    cli("image", "import", disk, "--format", "raw", "--name", "plain")
    cli.error("create", "plain", "--workdir", "/srv", says="needs a container image")


# -- Python and projects ----------------------------------------------------------------------------------


def test_from_python(hv: bough.Hypervisor, image: str) -> None:
    with hv.run(image, memory=MEMORY) as machine:
        assert machine.info().program is not None
        assert machine.exec("id", "-un").stdout == "web\n"
        assert machine.exec("id", "-un", as_image=False).stdout == "root\n"
    with hv.run(image, memory=MEMORY, program=False) as machine:
        assert machine.info().program is None
    with pytest.raises(MachineFailed, match="exit status 0"):
        hv.run(image, memory=MEMORY, command=["done"])


def test_a_project_waits_for_the_images_health_check(cli: Cli, image: str, tmp_path: Path) -> None:
    write(
        tmp_path / "bough.toml",
        f"""
        name = "shelf"
        [machines.web]
        image = "{image}"
        memory = "{MEMORY}"
        environment = {{ LEVEL = "project" }}
        user = "1000:1001"
        working_dir = "/tmp"
        [machines.job]
        image = "{image}"
        memory = "{MEMORY}"
        command = "done"
        depends_on = {{ web = "healthy" }}
        [machines.last]
        image = "{image}"
        memory = "{MEMORY}"
        depends_on = {{ job = "completed" }}
        healthcheck = {{ disable = true }}
        """,
    )
    file = ["--file", tmp_path / "bough.toml"]
    try:
        cli("up", *file, timeout_s=600)
        assert "serving as web in /tmp with project" in cli.text("logs", "shelf-web")
        job = cli.json("info", "shelf-job")
        assert (job["state"], job["program"]["code"]) == ("stopped", 0)
        assert cli.json("info", "shelf-last")["program"]["state"] == "runs"
    finally:
        cli("down", "--volumes", *file)


# -- other inits and images -------------------------------------------------------------------------------


def test_an_image_with_an_init_of_its_own(cli: Cli, busybox: bytes, tmp_path: Path, gone: list[str]) -> None:
    name = make_image(tmp_path / "layout", busybox, Entrypoint=["/sbin/init"], Cmd=None, User="")
    # busybox's init, which does nothing without an inittab but wait for a console.
    gone.append("own")
    cli("create", name, "--name", "own", "-m", MEMORY, "--entrypoint", "/bin/busybox", "--init", "bough",
        "sleep", "500")  # fmt: skip
    plan = cli.json("info", "own", "--plan")
    assert not [word for word in plan["argv"] if "bough.init=" in word]
    cli("set", "own", "--init", "image")
    plan = cli.json("info", "own", "--plan")
    assert "type=11,value=bough.init=/bin/busybox,value=bough.init=sleep,value=bough.init=500" in plan["argv"]
    cli("delete", "own")
    cli("image", "delete", name, check=False)
